"""Host work: the cache, the threads, the fingerprint, and what may go wrong with a machine."""

import ctypes
import dataclasses
import gc
import itertools
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

from optax_zoo import _host

PATIENCE = 60.0  # seconds after which something hangs
ONE = [np.ones(3)]


@dataclasses.dataclass(frozen=True)
class Double:
    """Doubles each array; what a test watches or breaks is no part of the key."""

    name: str
    run_hook: Callable[[Any], None] = dataclasses.field(default=lambda item: None, compare=False)
    split_hook: Callable[[], None] = dataclasses.field(default=lambda: None, compare=False)

    def split(self, arrays):
        self.split_hook()
        return [np.array(array) for array in arrays]

    def run(self, item):
        self.run_hook(item)
        return 2 * item

    def join(self, results):
        return tuple(results)


class Gate:
    """A hook that stops the workers until it is opened, and counts who came."""

    def __init__(self):
        self.come, self.open, self.count = threading.Event(), threading.Event(), 0

    def __call__(self, item: Any) -> None:
        self.count += 1
        self.come.set()
        assert self.open.wait(PATIENCE)


class Fails:
    """A hook that raises the first times, and counts its calls."""

    def __init__(self, times: int, error: type[BaseException] = RuntimeError):
        self.times, self.error, self.count = times, error, 0

    def __call__(self, item: Any = None) -> None:
        self.count += 1
        if self.count <= self.times:
            raise self.error(f"injected {self.count}")


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """A host of the test's own, which must be left without a thread."""
    host = _host._Host()
    monkeypatch.setattr(_host, "_host", host)
    yield host
    wait_until(lambda: not any(thread.is_alive() for thread in host.threads))
    # A thread signs off while it holds the limit, and counts itself out before it restores it.
    wait_until(lambda: nobody_limits(host.one_blas_thread))
    assert not host.awaited


def nobody_limits(blas) -> bool:
    with blas.lock:
        return blas.inside == 0


def wait_until(condition: Callable[[], Any]) -> None:
    tick = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        tick.wait(0.005)
    raise AssertionError("waited in vain")


def entries(host) -> int:
    return sum(len(tickets) for tickets in host.cache.values())


def run_python(code: str, *prefix: str) -> str:
    """What a program prints in a fresh interpreter, which must end by itself and in order."""
    path = os.pathsep.join([str(Path(_host.__file__).parents[1]), str(Path(__file__).parent)])
    found = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr, found.stderr
    return found.stdout


# The cache.


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("arrays", [[], ONE, [np.zeros(0), np.arange(6.0).reshape(2, 3)]])
def test_redeem_gives_the_joined_results_in_order(begun, arrays):
    task = Double("order")
    if begun:
        _host.begin(task, b"t", arrays)
    for _ in range(2):
        answer = _host.redeem(task, b"t", arrays)
        assert [a.tolist() for a in answer] == [(2 * a).tolist() for a in arrays]


def test_work_is_done_once_for_equal_tasks_and_tickets():
    count = Fails(0)
    for _ in range(3):
        _host.begin(Double("once", count), 1, ONE)
    for _ in range(3):
        _host.redeem(Double("once", count), 1, ONE)
    assert count.count == 1
    _host.redeem(Double("other", count), 1, ONE)
    _host.redeem(Double("once", count), 2, ONE)
    assert count.count == 3


def test_work_runs_on_other_threads_that_are_no_daemons():
    seen = []
    task = Double("t", lambda item: seen.append(threading.current_thread()))
    caller = threading.Thread(target=_host.redeem, args=(task, 1, ONE), daemon=True)
    caller.start()
    caller.join(PATIENCE)
    assert seen[0] is not caller
    assert not seen[0].daemon


def test_two_tickets_of_a_task_are_kept_and_the_newest_win():
    count = Fails(0)
    task = Double("newest", count)
    for ticket in (1, 2, 3):
        _host.redeem(task, ticket, ONE)
    for ticket in (3, 2):
        _host.redeem(task, ticket, ONE)
    assert count.count == 3
    _host.redeem(task, 1, ONE)
    assert count.count == 4


def test_tasks_used_least_are_forgotten(host):
    count = Fails(0)
    _host.redeem(Double("0", count), 1, ONE)
    for n in range(1, 20):
        _host.redeem(Double(str(n), count), 1, ONE)
        _host.redeem(Double("0", count), 1, ONE)
    assert count.count == 20
    assert len(host.cache) == 8


def test_a_storm_of_begins_leaves_threads_and_entries_bounded(host, monkeypatch):
    monkeypatch.setattr(_host, "workers", lambda: 3)
    gate = Gate()
    tasks = [Double(str(n), gate) for n in range(10)]
    before = threading.active_count()
    for ticket in range(1000):
        _host.begin(tasks[ticket % 10], ticket, ONE)
    assert threading.active_count() <= before + 3
    assert entries(host) <= 16
    gate.open.set()
    wait_until(lambda: not host.threads)
    assert gate.count <= 3 + 16  # of 1000: evicted work was never started


def test_work_that_was_evicted_while_awaited_is_still_done(monkeypatch):
    monkeypatch.setattr(_host, "workers", lambda: 1)
    gate = Gate()
    task = Double("evicted", gate)
    with ThreadPoolExecutor(1) as caller:
        _host.begin(task, 0, 3 * ONE)
        assert gate.come.wait(PATIENCE)
        answer = caller.submit(_host.redeem, task, 0, 3 * ONE)
        wait_until(lambda: _host._host.awaited)
        for ticket in range(1, 10):
            _host.begin(task, ticket, ONE)
        gate.open.set()
        assert len(answer.result(PATIENCE)) == 3


def test_awaited_work_passes_older_prefetches(monkeypatch):
    monkeypatch.setattr(_host, "workers", lambda: 1)
    order, gate = [], Gate()
    _host.begin(Double("gate", gate), 0, ONE)
    assert gate.come.wait(PATIENCE)
    for n in range(3):
        _host.begin(Double(str(n), lambda item: order.append(item[0])), 0, [np.full(1, n)])
    with ThreadPoolExecutor(1) as caller:
        task = Double("late", lambda item: order.append(item[0]))
        answer = caller.submit(_host.redeem, task, 0, [np.full(1, 9)])
        wait_until(lambda: _host._host.awaited)
        gate.open.set()
        answer.result(PATIENCE)
    wait_until(lambda: len(order) == 4)
    assert order == [9, 0, 1, 2]


def test_interleaved_tasks_from_many_threads(monkeypatch):
    monkeypatch.setattr(_host, "workers", lambda: 3)

    def call(n):
        task, arrays = Double(str(n % 5)), [np.full(2, n), np.full(3, n + 0.5)]
        if n % 3:
            _host.begin(task, n // 2, arrays)
            _host.begin(Double(str(n % 4)), n, arrays)
        return [a.tolist() for a in _host.redeem(task, (n // 2, n), arrays)]

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(call, range(300), timeout=PATIENCE))
    assert found == [[[2 * n] * 2, [2 * n + 1.0] * 3] for n in range(300)]


def test_inputs_are_freed_and_answers_kept(host):
    refs = []
    task = Double("memory", lambda item: refs.append(weakref.ref(item)))
    _host.begin(task, 1, 3 * ONE)
    _host.redeem(task, 1, 3 * ONE)
    wait_until(lambda: not host.threads)
    gc.collect()
    assert len(refs) == 3
    assert not any(ref() is not None for ref in refs)


def test_inline_computes_everything_at_redeem(host):
    count = Fails(0)
    task = Double("inline", count)
    _host.redeem(task, 1, ONE)
    with _host.inline():
        with _host.inline():
            pass
        _host.begin(task, 1, ONE)
        assert not host.cache
        _host.redeem(task, 1, ONE)
        assert count.count == 2
    _host.begin(task, 2, ONE)
    assert entries(host) == 2


def test_workers_leave_a_core_to_the_program(monkeypatch):
    for cores, expected in [(1, 1), (2, 1), (3, 2), (9, 8), (64, 8)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=cores: range(n), raising=False)
        assert _host.workers() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _host.workers() == 1


# Failures of the machine.


@pytest.fixture
def warnings_of(caplog):
    caplog.set_level(logging.WARNING, logger="optax_zoo")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "optax_zoo"]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit])
def test_work_that_fails_once_is_repeated_and_logged(begun, error, warnings_of):
    fails = Fails(1, error)
    task = Double("once", fails)
    if begun:
        _host.begin(task, 1, 2 * ONE)
    assert len(_host.redeem(task, 1, 2 * ONE)) == 2
    (message,) = warnings_of()
    assert f"{error.__name__}: injected 1" in message
    assert "unaffected" in message


@pytest.mark.parametrize("begun", [False, True])
def test_work_that_keeps_failing_raises_its_error_and_is_not_kept(begun, warnings_of):
    task = Double("thrice", Fails(3))
    if begun:
        _host.begin(task, 1, ONE)
    with pytest.raises(RuntimeError, match="injected 3"):
        _host.redeem(task, 1, ONE)
    assert len(warnings_of()) == 2
    assert len(_host.redeem(task, 1, ONE)) == 1
    assert len(warnings_of()) == 2


def test_a_prefetch_that_cannot_even_be_split_does_not_raise(warnings_of):
    task = Double("split", split_hook=Fails(1, MemoryError))
    _host.begin(task, 1, ONE)
    assert len(_host.redeem(task, 1, ONE)) == 1
    assert len(warnings_of()) == 1


def test_all_who_wait_for_failing_work_get_its_answer():
    gate, fails = Gate(), Fails(1)

    def hook(item):
        gate(item)
        fails(item)

    task = Double("shared", hook)
    with ThreadPoolExecutor(4) as callers:
        answers = [callers.submit(_host.redeem, task, 1, ONE) for _ in range(4)]
        wait_until(lambda: len(_host._host.awaited) == 4)
        gate.open.set()
        assert all(len(answer.result(PATIENCE)) == 1 for answer in answers)
    assert gate.count == 2


@pytest.mark.parametrize("begun", [False, True])
def test_without_threads_the_caller_computes(begun, monkeypatch, warnings_of):
    def start(thread):
        raise RuntimeError("can't start new thread")

    seen = []
    task = Double("threads", lambda item: seen.append(threading.current_thread()))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        if begun:
            _host.begin(task, 1, ONE)
        assert len(_host.redeem(task, 1, ONE)) == 1
        assert seen == [threading.current_thread()]
        assert "can't start new thread" in warnings_of()[0]
    _host.redeem(task, 1, ONE)
    assert seen[1] is not threading.current_thread()


def test_work_begun_while_no_thread_could_start_is_redeemed_later(monkeypatch, warnings_of):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        _host.begin(Double("later"), 1, ONE)
    assert len(_host.redeem(Double("later"), 1, ONE)) == 1
    assert not warnings_of()


def test_a_worker_killed_at_work_is_replaced(warnings_of):
    gate = Gate()

    def hook(item):
        if not gate.come.is_set():
            identity = ctypes.c_ulong(threading.get_ident())
            gate.come.set()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(SystemExit))
            while True:
                pass

    assert len(_host.redeem(Double("killed", hook), 1, 2 * ONE)) == 2
    assert "SystemExit" in warnings_of()[0]


def test_a_limit_that_cannot_be_set_is_an_error_not_a_hang(monkeypatch, warnings_of):
    def controller():
        raise OSError("no libraries")

    with monkeypatch.context() as patch:
        patch.setattr(threadpoolctl, "ThreadpoolController", controller)
        with pytest.raises(OSError, match="no libraries"):
            _host.redeem(Double("limit"), 1, ONE)
    assert len(warnings_of()) == 2
    assert len(_host.redeem(Double("limit"), 1, ONE)) == 1


def test_an_entry_whose_thread_vanished_is_repeated(host, monkeypatch, warnings_of):
    seen = []
    task = Double("vanished", lambda item: seen.append(threading.current_thread()))
    with monkeypatch.context() as patch:
        patch.setattr(host, "_run", lambda *unit: None)
        _host.begin(task, 1, ONE)
        wait_until(lambda: not host.threads)
    assert len(_host.redeem(task, 1, ONE)) == 1
    assert "died" in warnings_of()[0]
    assert seen[0] is not threading.current_thread()


def test_an_interrupt_leaves_nothing_behind(host, monkeypatch):
    gate = Gate()
    task = Double("interrupt", gate)
    _host.begin(task, 1, ONE)
    entry = host.cache[task][1]
    wait = entry.done.wait
    with monkeypatch.context() as patch:
        patch.setattr(entry.done, "wait", Fails(1, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _host.redeem(task, 1, ONE)
    assert not host.awaited
    gate.open.set()
    assert wait(PATIENCE)
    assert len(_host.redeem(task, 1, ONE)) == 1
    assert gate.count == 1


# One BLAS thread.


def blas_threads() -> list[int]:
    info = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in info if library["user_api"] == "blas"]


def test_workers_that_overlap_all_have_one_blas_thread(monkeypatch):
    monkeypatch.setattr(_host, "workers", lambda: 3)
    import scipy.linalg  # noqa: F401

    seen, gates = [], [Gate(), Gate()]

    def hook(item):
        n = int(item[0])
        if n < 2:
            gates[n](item)
        seen.append(blas_threads())

    with threadpoolctl.threadpool_limits(2, "blas"):
        before = blas_threads()
        task = Double("blas", hook)
        _host.begin(task, 1, [np.full(1, n) for n in range(8)])
        assert gates[0].come.wait(PATIENCE)
        assert gates[1].come.wait(PATIENCE)
        gates[0].open.set()
        wait_until(lambda: len(seen) == 7)
        gates[1].open.set()
        _host.redeem(task, 1, [])
        wait_until(lambda: blas_threads() == before)
    assert len(seen) == 8
    assert all(set(threads) == {1} for threads in seen)


@pytest.mark.slow
def test_a_blas_that_jax_loads_later_is_limited_too():
    code = """
        import jax, numpy as np, threadpoolctl
        from optax_zoo import _host
        from test_host import Double

        def hook(item):
            jax.block_until_ready(jax.jit(jax.numpy.linalg.eigh)(np.eye(4, dtype=np.float32)))
            blas = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"]
            print({i["num_threads"] for i in blas} == {1})

        _host.redeem(Double("eigh", hook), 1, [np.ones(1)])
    """
    assert run_python(code) == "True\n"


# Exit and fork.


@pytest.mark.slow
@pytest.mark.parametrize("awaited", [False, True])
def test_at_exit_work_that_nobody_awaits_is_dropped(awaited):
    code = """
        import threading, time, numpy as np
        from optax_zoo import _host
        from test_host import Double

        def hook(item):
            print("slow" if item[0] else "fast", flush=True)
            time.sleep(2.0 if item[0] else 0.0)

        _host.begin(Double("slow", hook), 1, 100 * [np.ones(1)])
    """
    if awaited:
        code += """
        def late():
            threading.main_thread().join()
            print(_host.redeem(Double("fast", hook), 1, 2 * [np.zeros(1)]), flush=True)

        threading.Thread(target=late).start()
    """
    out = run_python(code)
    assert out.count("slow") <= 8  # those at work when the program ended
    assert out.count("array") == 2 * awaited


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_afresh():
    code = """
        import os, threading, numpy as np, threadpoolctl
        from optax_zoo import _host
        from test_host import Double, Gate, blas_threads
        import scipy.linalg

        threadpoolctl.threadpool_limits(2, "blas")
        before, gate = blas_threads(), Gate()
        _host.begin(Double("busy", gate), 1, 9 * [np.ones(1)])
        assert gate.come.wait(60)
        held, release = threading.Event(), threading.Event()

        def hold():
            with _host._host.lock, _host._host.one_blas_thread.lock:
                held.set()
                release.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(60)
        child = os.fork()
        if not child:
            assert blas_threads() == before
            for name in ("busy", "other"):
                _host.begin(Double(name), 1, 2 * [np.ones(1)])
                _host.redeem(Double(name), 1, 2 * [np.ones(1)])
            print("child", flush=True)
        else:
            release.set()
            assert os.waitpid(child, 0)[1] == 0
            gate.open.set()
            _host.redeem(Double("busy"), 1, [])
            print("parent")
    """
    assert run_python(code) == "child\nparent\n"


# The fingerprint.

SHAPES = [(), (0, 3), (7,), (2, 3, 4)]
DTYPES = [jnp.float32, jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn, jnp.float64]


def some_arrays(dtype: Any = jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in SHAPES]


def plain_ticket(arrays: Any) -> list[int]:
    """The fingerprint in Python's integers."""

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    total = [0, 0]
    for number, array in enumerate(arrays):
        array = np.asarray(array)
        kind = f"u{min(array.dtype.itemsize, 4)}"
        for place, bits in enumerate(array.reshape(-1).view(kind).tolist()):
            weight = mix((number * 0x9E3779B9 + place) % 2**32)
            turned = (weight << 16 | weight >> 16) % 2**32
            total = [t + mix(bits) * (w | 1) for t, w in zip(total, (weight, turned), strict=True)]
    return [t % 2**32 for t in total]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ticket_is_its_definition(dtype, x64):
    arrays = some_arrays(dtype)
    found = jax.jit(_host.ticket)(arrays)
    assert (found.dtype, found.shape) == (jnp.uint32, (2,))
    assert found.tolist() == plain_ticket(arrays)


def test_ticket_is_the_same_without_jit():
    arrays = some_arrays()[-1:]
    assert _host.ticket(arrays).tolist() == plain_ticket(arrays)


def test_ticket_of_nothing():
    assert _host.ticket([]).tolist() == [0, 0]
    assert _host.ticket([jnp.zeros((0, 2))]).tolist() == [0, 0]


def test_ticket_under_vmap_and_scan():
    batch = jnp.arange(24, dtype=jnp.float32).reshape(4, 3, 2)
    expected = [plain_ticket([x, x[0]]) for x in batch]

    def ticket(x):
        return _host.ticket([x, x[0]])

    assert jax.jit(jax.vmap(ticket))(batch).tolist() == expected
    assert jax.jit(lambda batch: jax.lax.map(ticket, batch))(batch).tolist() == expected


def test_ticket_sees_every_small_change():
    x = np.asarray(some_arrays()[-1])
    variants = [x, 2 * x, 4 * x, -x, np.abs(x), 0 * x, -0.0 * np.abs(x), x + np.float32(1e-6)]
    variants += [x[::-1], x[:, ::-1], x[:, :, ::-1]]
    signs = [i for n in (1, 2) for i in itertools.combinations(range(x.size), n)]
    for places in signs:
        flipped = x.copy()
        flipped.reshape(-1)[list(places)] *= -1
        variants.append(flipped)
        if len(places) == 2:
            swapped = x.copy()
            swapped.reshape(-1)[list(places)] = x.reshape(-1)[list(places[::-1])]
            variants.append(swapped)
    ticket = jax.jit(_host.ticket)
    tickets = [tuple(ticket([v]).tolist()) for v in variants]
    assert len(set(tickets)) == len(variants)
    for n in range(2):  # either number alone, on 32 bits
        assert len({ticket[n] for ticket in tickets}) == len(variants)


def test_ticket_sees_the_order_of_arrays():
    x, y = jnp.ones(3), jnp.zeros(3)
    ticket = jax.jit(_host.ticket)
    assert ticket([x, y]).tolist() != ticket([y, x]).tolist()


def test_ticket_of_a_sharded_array_gathers_nothing():
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,), devices=jax.devices("cpu")[:4])
    x = jnp.arange(4096, dtype=jnp.float32).reshape(64, 64)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    compiled = jax.jit(_host.ticket).lower([jax.device_put(x, sharding)]).compile()
    assert compiled([jax.device_put(x, sharding)]).tolist() == plain_ticket([x])
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 1000  # it gathers sums, not arrays


# Inside compiled programs.


def begin_and_redeem_in_jit(steps: int) -> Any:
    """Each third step begins, each next one redeems what the state holds."""
    task, shape = Double("jit"), (2, 16, 16)
    key = jax.ShapeDtypeStruct((), jnp.float32)

    def on_begin(ticket, x):
        _host.begin(task, np.asarray(ticket).tobytes(), list(np.asarray(x)))
        return np.float32(0)

    def on_redeem(ticket, x):
        return np.stack(_host.redeem(task, np.asarray(ticket).tobytes(), list(np.asarray(x))))

    def step(carry, t):
        x, snapshot, total = carry
        snapshot = jnp.where(t % 3 == 0, x, snapshot)
        ticket = _host.ticket([snapshot])
        zero = jax.lax.cond(
            t % 3 == 0,
            lambda: jax.pure_callback(on_begin, key, ticket, snapshot),
            lambda: jnp.float32(0),
        )
        like = jax.ShapeDtypeStruct(shape, jnp.float32)
        total = total + jax.lax.cond(
            t % 3 == 1,
            lambda: jax.pure_callback(on_redeem, like, ticket, snapshot),
            lambda: jnp.zeros(shape),
        )
        return (x + 1 + zero, snapshot, total), None

    zeros = jnp.zeros(shape)
    carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))((zeros, zeros, zeros))
    return carry[2]


def test_inside_jit_scan_and_cond():
    total = begin_and_redeem_in_jit(12)
    assert set(np.unique(total)) == {2.0 * (0 + 3 + 6 + 9)}
    with _host.inline():
        assert np.array_equal(total, begin_and_redeem_in_jit(12))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("taskset"), reason="no taskset here")
def test_inside_jit_on_one_core():
    code = """
        import numpy as np, test_host
        print(set(np.unique(test_host.begin_and_redeem_in_jit(30)).tolist()))
    """
    assert run_python(code, "taskset", "-c", "0") == f"{{{2.0 * sum(range(0, 30, 3))}}}\n"


@pytest.mark.slow
def test_a_step_in_flight_at_exit_is_finished():
    code = """
        import threading, time, jax, jax.numpy as jnp, numpy as np
        from optax_zoo import _host
        from test_host import Double

        task = Double("exit", lambda item: time.sleep(0.3))
        call = lambda x: _host.redeem(task, 1, 3 * [np.asarray(x)])[0]
        like = jax.ShapeDtypeStruct((3,), jnp.float32)
        y = jax.jit(lambda x: jax.pure_callback(call, like, x))(jnp.ones(3))
    """
    assert run_python(code) == ""


def test_an_ensemble_that_shares_a_task_gets_room_for_all(host):
    """Under vmap every member redeems at every step: too little room would compute it all anew."""
    counter = Fails(0)
    task, members = Double("ensemble", counter), range(5)
    for _ in range(20):
        for member in members:
            assert np.array_equal(_host.redeem(task, member, ONE)[0], 2 * ONE[0])
    assert counter.count <= 4 * len(members)
    assert entries(host) <= 8
