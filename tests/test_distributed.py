"""Several processes that train together: `jax.distributed` on CPUs, with gloo."""

import functools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

import distributed_lm
import optax_zoo as zoo
from distributed_program import ROOTS, SAVED, Training, data_mesh
from helpers import assert_same
from lm import UsageError
from lm.cluster import Cluster
from lm.data import load_corpus, random_windows
from lm.processes import FAILED, STOPPED
from lm.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="callbacks with several results fail in its shard_map"
)

ROOT = Path(__file__).parents[1]
TIMEOUT = 240  # for a slow machine; what hangs, hangs for ever


@pytest.fixture
def start():
    """Starts programs, and ends them with the test."""
    running = []

    def start(program, *arguments):
        path = os.pathsep.join(
            [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
        )
        process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


# --- Shampoo ----------------------------------------------------------------------------------


@functools.cache
def in_one_process(devices):
    """The losses and the last parameters with as many devices of this process."""
    training = Training(data_mesh(jax.devices()[:devices]))
    return np.array(list(training.losses())), training.params()


def trained(start, processes, devices, folder, *checkpoints):
    """Starts them all; returns exit codes, errors and result files."""
    address, numbers = free_address(), range(processes)
    files = [folder / f"{number}.npz" for number in numbers]
    running = [
        start(
            "tests/distributed_program.py",
            *(address, processes, number, devices, files[number], *checkpoints),
        )
        for number in numbers
    ]
    in_one_process(processes * devices)  # meanwhile
    errors = [process.communicate(timeout=TIMEOUT)[1] for process in running]
    return [process.returncode for process in running], errors, files


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(4, 1), (2, 2)])
def test_processes_train_as_one_and_share_the_roots(processes, devices, start, tmp_path):
    codes, errors, files = trained(start, processes, devices, tmp_path)
    assert set(codes) == {0}, errors
    losses, params = in_one_process(processes * devices)
    assert losses[-1] < 0.5 * losses[0]
    for file in files:
        with np.load(file) as found:
            np.testing.assert_allclose(found["losses"], losses, rtol=1e-6)
            for name, values in params.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6)
            assert found["roots"] == 4 * ROOTS // processes


@pytest.mark.slow
def test_one_is_killed_and_all_go_on_with_the_roots_in_flight(start, tmp_path):
    codes, (error, _), _ = trained(start, 2, 1, tmp_path, tmp_path, 20)
    assert codes[0] in (1, -signal.SIGABRT)  # JAX's own, if it was sooner than gloo
    assert codes[1] == -signal.SIGKILL
    assert "Gloo" in error or "another task died" in error

    codes, errors, files = trained(start, 2, 1, tmp_path, tmp_path, 0)
    assert codes == [0, 0], errors
    losses, params = in_one_process(2)
    with np.load(files[0]) as found:
        np.testing.assert_allclose(found["losses"], losses[SAVED:], rtol=1e-6)
        for name, values in params.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6)
        assert found["roots"] == 2 * ROOTS // 2  # those in flight again, and one refresh more


# --- the language model -----------------------------------------------------------------------

# A signal to stop may take a second, and so a hundred steps.
TINY = (  # noqa: SIM905
    "--steps 100000 --warmup 5 --eval-every 20 --eval-windows 8 --batch 4 --context 16 --width 16 "
    "--layers 1 --heads 2 --learning-rate 1e-2"
).split()


@pytest.fixture
def arguments(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a stitch in time saves nine. " * 40)
    return ["--text", str(text), *TINY]


def settings_of(*arguments):
    return tyro.cli(distributed_lm.DistributedSettings, args=arguments).resolved()


def losses(folder):
    columns = ("step", "train_loss", "held_out_loss")
    return np.array([[row[name] for name in columns] for row in folder.rows()], float)


@pytest.mark.slow
def test_a_run_is_stopped_resumed_and_killed(start, arguments, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run", distributed_lm.KIND)
    arguments = [*arguments, "--optimizer", "adamw"]

    def run(*dying):
        options = ["--local", 2, "--out", folder.path, *(["--resume"] if folder.config() else [])]
        process = start("tests/dying_lm.py", *dying, *arguments, *options)
        _, errors = process.communicate(timeout=TIMEOUT)
        return process.returncode, errors, len(folder.rows())

    code, errors, stopped = run("SIGTERM", "parent", 1, 10)
    assert code == STOPPED, errors
    assert errors.splitlines()[-1].endswith(" --resume")
    assert stopped >= 10
    assert [one.name for one in (folder.path / "checkpoints").iterdir()] == [str(stopped)]

    code, errors, last = run("SIGKILL", "self", 0, stopped + 5)  # the coordinator
    assert code == FAILED, errors
    *_, victim, survivor, remedy = errors.splitlines()
    assert victim == "process 0: ended by SIGKILL"
    assert survivor.startswith(("process 1: lost contact", "process 1: ended by JAX")), errors
    assert remedy.endswith(" --resume")
    assert last == stopped + 4

    class EnoughError(Exception):
        pass

    def enough(text, seed, step, *others):
        if step > last:
            raise EnoughError
        return random_windows(text, seed, step, *others)

    monkeypatch.setattr(distributed_lm, "random_windows", enough)
    whole = tmp_path / "whole"
    settings, mesh = settings_of(*arguments, "--out", str(whole)), data_mesh(jax.devices()[:2])
    with pytest.raises(EnoughError):
        distributed_lm.run(settings, load_corpus(settings.text), mesh)
    wanted = losses(RunFolder(whole, distributed_lm.KIND))
    np.testing.assert_allclose(losses(folder), wanted, rtol=1e-5)


@pytest.mark.slow
def test_shampoo_is_divided_and_goes_on_with_fewer_devices(arguments, tmp_path):
    settings, mesh = settings_of(*arguments), data_mesh(jax.devices()[:2])
    training = distributed_lm.prepare(settings, mesh)
    before = jax.tree.map(lambda x: (x.shape, x.sharding), training.state)
    state, loss = training.step(training.state, np.zeros((4, 17), np.uint8))
    assert np.isfinite(loss)
    assert jax.tree.map(lambda x: (x.shape, x.sharding), state) == before
    for leaf in jax.tree.leaves(state):
        assert leaf.ndim < 2 or leaf.addressable_shards[0].data.size == leaf.size // 2

    one = data_mesh(jax.devices()[:1])
    fewer = distributed_lm.prepare(settings, one).state
    with RunFolder(tmp_path).checkpoints() as checkpoints:
        distributed_lm.save(checkpoints, 1, state, mesh)
        found = distributed_lm.restored(checkpoints, 1, settings, fewer, one)
    assert_same(found.params, state.params)
    assert_same(zoo.reshard(found.opt_state, state.opt_state), state.opt_state)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--local 0", ["--local 0", "at least 1"]),
        ("--local 2 --process 1", ["--local 2", "leave it out"]),
        ("--coordinator host:1", ["--coordinator", "--processes", "--process", "all three"]),
        ("--coordinator host --processes 2 --process 0", ["--coordinator host", "HOST:PORT"]),
        ("--coordinator host:1 --processes 2 --process 2", ["--process 2", "from 0 to 1"]),
        ("--local 3", ["--batch 4", "multiple of the 3 processes"]),
        ("--local 2 --resume", ["--resume", "no run", "without"]),
    ],
)
def test_errors_come_before_anything_is_started(more, words, arguments, tmp_path, capsys):
    assert distributed_lm.main([*arguments, "--out", str(tmp_path / "run"), *more.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer_is_named():
    with socket.socket() as silent:
        silent.bind(("localhost", 0))  # and does not listen
        address = f"localhost:{silent.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"--coordinator {address}: nothing answered within 1"):
            Cluster(address, 2, 1, wait=1).connect()


def test_every_device_gets_as_much(arguments, tmp_path):
    settings = settings_of(*arguments, "--out", str(tmp_path / "run"))
    mesh = data_mesh(jax.devices()[:3])
    with pytest.raises(UsageError, match="--batch 4: must be a multiple of the 3 devices"):
        distributed_lm.run(settings, load_corpus(settings.text), mesh)
    assert not (tmp_path / "run").exists()
