"""Shampoo's trajectory is a pure function of its inputs, to the bit, however the host behaves."""

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_zoo as zoo
from helpers import AlteredTask, assert_same, random_tree, some
from optax_zoo import _host

SHAPES = {"w": (6, 4), "b": (5,), "k": (4, 4, 3)}
STEPS = 200
EVERY = 10
METHODS = ("schur_newton", "eigh")
methods = pytest.mark.parametrize("method", some(METHODS, "schur_newton"))


@functools.cache
def optimizer(method: str, exponent: int = 2) -> optax.GradientTransformation:
    return zoo.shampoo(
        0.03,
        exponent=exponent,
        weight_decay=1e-2,
        refresh=zoo.Refresh(every=EVERY, delay=EVERY, start=2),
        roots=zoo.Roots(method=method, on="host"),
    )


@functools.cache
def noise(seed: int = 1) -> Any:
    """Stacked over the steps."""
    return random_tree(seed, shapes={name: (STEPS, *shape) for name, shape in SHAPES.items()})


def begin(method: str) -> tuple[Any, Any]:
    params = random_tree(0, shapes=SHAPES)
    return params, optimizer(method).init(params)


def advance(tx: optax.GradientTransformation, carry: Any, noise: Any) -> Any:
    """One step downhill on a noisy quadratic: an error would feed on itself."""
    params, state = carry
    grads = jax.tree.map(lambda p, n: p + 0.3 * n, params, noise)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@functools.cache
def step(method: str):
    return jax.jit(functools.partial(advance, optimizer(method)))


@functools.cache
def scanned(method: str):
    def run(carry, noise):
        return jax.lax.scan(lambda c, n: (advance(optimizer(method), c, n), None), carry, noise)[0]

    return jax.jit(run)


def digest(tree: Any) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def digests(method: str, carry: Any = None, first: int = 0, last: int = STEPS, seed: int = 1):
    """Parameters and state after each step, in short, and the last ones in full."""
    carry, found = carry or begin(method), []
    for t in range(first, last):
        carry = step(method)(carry, {name: n[t] for name, n in noise(seed).items()})
        found.append(digest(carry))
    return found, carry


@functools.cache
def undisturbed(method: str, seed: int = 1) -> list[str]:
    return digests(method, seed=seed)[0]


def first_difference(a: Sequence[str], b: Sequence[str]) -> int | None:
    """The 1-based step at which two runs part."""
    assert len(a) == len(b)
    return next((t for t, (x, y) in enumerate(zip(a, b, strict=True), start=1) if x != y), None)


def assert_undisturbed(method: str, found: Sequence[str]) -> None:
    assert len(set(found)) == len(found), "the state stands still"
    parted = first_difference(found, undisturbed(method))
    assert parted is None, f"another trajectory from step {parted} on"


# --- how the host may behave ------------------------------------------------------------------


@contextlib.contextmanager
def slow_host(seconds: float, *, slow: Sequence[str] = ("begin", "redeem")) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in slow:
            patch.setattr(_host, name, _slowed(getattr(_host, name), seconds))
        yield


def _slowed(function, seconds):
    return lambda task, *others: function(AlteredTask(task, sleeping(seconds)), *others)


@functools.cache
def sleeping(seconds: float) -> Any:
    """One function for each duration: what was begun is known when it is redeemed."""

    def run(task, item):
        time.sleep(seconds)
        return task.run(item)

    return run


@contextlib.contextmanager
def forgetful_host() -> Iterator[list[Any]]:
    """Every ticket is lost: nothing is begun. Yields what was to be."""
    lost: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_host, "begin", lambda task, ticket, *_: lost.append(ticket))
        with _host.inline():  # forgets what earlier runs have left in the cache
            pass
        yield lost


@methods
def test_twice_the_same(method):
    with _host.inline():
        pass
    assert_undisturbed(method, digests(method)[0])


@methods
def test_a_slow_host_changes_nothing(method):
    with slow_host(0.005):
        found, _ = digests(method)
    assert_undisturbed(method, found)


@methods
def test_lost_tickets_change_nothing(method):
    with forgetful_host() as lost:
        found, _ = digests(method)
    assert lost, "no root was to begin on the host"
    assert_undisturbed(method, found)


@methods
def test_everything_inline_changes_nothing(method):
    with _host.inline():
        found, _ = digests(method)
    assert_undisturbed(method, found)


@pytest.mark.slow
def test_interleaved_optimizers_keep_apart():
    """Two configurations and, of each, two streams of gradients."""
    with _host.inline():
        pass
    runs = [(method, seed, begin(method), []) for method in METHODS for seed in (1, 2)]
    for t in range(STEPS):
        for i, (method, seed, carry, found) in enumerate(runs):
            carry = step(method)(carry, {name: n[t] for name, n in noise(seed).items()})
            found.append(digest(carry))
            runs[i] = method, seed, carry, found
    for method, seed, _, found in runs:
        parted = first_difference(found, undisturbed(method, seed))
        assert parted is None, f"{method} with gradients {seed} parts at step {parted}"


@pytest.mark.slow
@methods
def test_scan_with_host_roots_is_scan_inline(method):
    beside = jax.block_until_ready(scanned(method)(begin(method), noise()))
    with _host.inline():
        inline = jax.block_until_ready(scanned(method)(begin(method), noise()))
    assert_same(beside, inline)
    assert not np.array_equal(beside[0]["w"], begin(method)[0]["w"])


def assert_undisturbed_when_restored(method: str, restore: Callable[[int, Any], Any]) -> None:
    """From step 20 on, after each step, for one interval; the host has forgotten everything."""
    first, last = 2 * EVERY, 3 * EVERY + 1
    found, carry = digests(method, last=first)
    for t in range(first, last):
        restored = restore(t, carry)
        with _host.inline():
            pass
        one, carry = digests(method, restored, t, t + 1)
        found += one
    found += digests(method, carry, last)[0]
    assert_undisturbed(method, found)


@methods
def test_new_arrays_at_every_phase_change_nothing(method):
    def copied(t, carry):
        del t
        return jax.tree.map(lambda x: jnp.asarray(np.array(x)), carry)

    assert_undisturbed_when_restored(method, copied)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_orbax_round_trip_at_every_phase_changes_nothing(method, tmp_path):
    abstract = jax.eval_shape(lambda: begin(method))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    with ocp.StandardCheckpointer() as checkpointer:

        def through_a_file(t, carry):
            checkpointer.save(tmp_path / str(t), carry)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / str(t), abstract)
            assert_same(restored, carry)
            return restored

        assert_undisturbed_when_restored(method, through_a_file)


# --- other processes --------------------------------------------------------------------------


def in_another_process(program: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of this module under the suite's own settings."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, sys.executable, "-c", f"import conftest, {Path(__file__).stem} as t; {program}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset pins a process to a core")
def test_one_core_changes_nothing():
    core = min(os.sched_getaffinity(0))
    program = "[print(d) for m in t.METHODS for d in t.digests(m)[0]]"
    done = in_another_process(program, "taskset", "-c", str(core))
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert_undisturbed(METHODS[0], found[:STEPS])
    assert_undisturbed(METHODS[1], found[STEPS:])


SAVED, KILLED, END = 33, 35, 60  # roots begun at step 30 are due at 40


def save_and_be_killed(method: str, path: str) -> None:
    """Trains, saves, goes on and dies while a worker still computes what began at step 30."""
    _, carry = digests(method, last=3 * EVERY - 1)
    with slow_host(600.0, slow=["begin"]):
        _, carry = digests(method, carry, 3 * EVERY - 1, SAVED)
        with open(path, "wb") as file:
            np.savez(file, *map(np.asarray, jax.tree.leaves(carry)))
        digests(method, carry, SAVED, KILLED)
        os.kill(os.getpid(), signal.SIGKILL)


def resume(method: str, path: str) -> list[str]:
    with np.load(path) as file:
        leaves = [jnp.asarray(file[name]) for name in file.files]
    carry = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(lambda: begin(method))), leaves)
    return digests(method, carry, SAVED, END)[0]


@pytest.mark.slow
def test_a_killed_run_resumes_on_its_trajectory(tmp_path):
    method, path = "eigh", str(tmp_path / "carry.npz")
    killed = in_another_process(f"t.save_and_be_killed({method!r}, {path!r})")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = in_another_process(f"print(*t.resume({method!r}, {path!r}))")
    assert resumed.returncode == 0, resumed.stderr
    assert first_difference(resumed.stdout.split(), undisturbed(method)[SAVED:END]) is None


LARGE_STEPS_IN_FLIGHT = """
import sys, jax, jax.numpy as jnp, optax_zoo as zoo
tx = zoo.shampoo(1e-2, refresh=zoo.Refresh(every=2, delay=int(sys.argv[1]), start=1))
params = jnp.ones((512, 512))
state, update = tx.init(params), jax.jit(tx.update)
for i in range(5):
    updates, state = update(jax.random.normal(jax.random.key(i), params.shape), state, params)
print("dispatched")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "delay"), [("all", 2), ("one", 0), ("one", 2)])
def test_large_steps_that_nobody_waits_for_neither_hang_nor_abort(cores, delay):
    """Arrays that XLA copies in its own time, from one asynchronous program to the next."""
    if cores == "one" and not shutil.which("taskset"):
        pytest.skip("taskset pins a process to a core")
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if cores == "one" else []
    done = subprocess.run(
        [*pinned, sys.executable, "-c", LARGE_STEPS_IN_FLIGHT, str(delay)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "dispatched\n"), done.stderr
