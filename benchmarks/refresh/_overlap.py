"""Begin and adopt steps against plain ones, and whole intervals with refresh and without."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import optax_zoo as zoo
from benchmarks.refresh._common import FOREVER, Program, Row, Size, refreshed, training_step
from optax_zoo import _host
from optax_zoo._shampoo._roots import HostRoots


class Span(NamedTuple):
    """Something that took time: a step or work on the host."""

    kind: str  # of steps: plain, begin, adopt; of the host: run, begin, redeem
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@contextlib.contextmanager
def recorded() -> Iterator[list[Span]]:
    """Lists what the host does: items that workers run, and both calls of the compiled step."""
    spans: list[Span] = []
    lock = threading.Lock()

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                with lock:
                    spans.append(Span(kind, start, time.perf_counter()))

        return call

    with (
        mock.patch.object(HostRoots, "run", timed("run", HostRoots.run)),
        mock.patch.object(_host, "begin", timed("begin", _host.begin)),
        mock.patch.object(_host, "redeem", timed("redeem", _host.redeem)),
    ):
        yield spans


def _given_gradient(params: Any, gradients: Any) -> Any:
    # The parameters have a part in it, so that no two snapshots, and no two tickets, are equal.
    return jax.tree.map(lambda w, g: g + 0.1 * w, params, gradients)


def _loss(params: Any, x: jax.Array) -> jax.Array:
    h = x
    for i in range(6):
        h = h + jnp.tanh(h @ params[f"square{i}"] + params[f"bias{i}"])
    for i in range(4):
        h = h + jnp.tanh(h @ params[f"wide{i}"]) @ params[f"wide{i}"].T
    return jnp.mean(jnp.square(h - jnp.roll(x, 1, axis=0)))


def _program(size: Size, refresh: zoo.Refresh, roots: zoo.Roots, count: int) -> Program:
    tx = zoo.shampoo(1e-4, blocks=size.blocks, refresh=refresh, roots=roots)
    params = size.arrays(seed=0, scale=0.05)
    batch: Any = size.arrays(seed=1)
    gradient: Any = _given_gradient
    if size.tokens:
        rng = np.random.default_rng(1)
        batch = jnp.asarray(rng.normal(size=(size.tokens, size.order)), jnp.float32)
        gradient = jax.grad(_loss)
    return Program(training_step(tx, gradient), (params, refreshed(tx.init(params), count)), batch)


@contextlib.contextmanager
def _busy(program: Program) -> Iterator[None]:
    """Runs a program over and over beside what is done inside."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            program.call()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Contest:
    """A run with refresh and one without, both in the middle of training.

    The delay is what `plan_refresh` proposes while the second one runs, against its fastest step.
    """

    def __init__(self, size: Size, samples: int = 5):
        self.step = f"steps of {size.tokens} tokens" if size.tokens else "optimizer steps alone"
        off = zoo.Refresh(every=FOREVER)
        self.off = _program(size, off, zoo.Roots(), count=FOREVER // 2 + 1)
        for _ in range(samples):
            self.off.call()
        step = min(self.off.seconds[1:])
        with _busy(self.off):
            self.plan = zoo.plan_refresh(size.structs(), step, blocks=size.blocks)
        delay = self.plan.refresh.delay or 1
        # Longer than the delay, for begin and adopt steps to be different ones.
        self.refresh = zoo.Refresh(every=max(self.plan.refresh.every, delay + 3), delay=delay)
        self.off.seconds.clear()
        count = self.refresh.every * 100 - 1  # the next step begins
        self.on = _program(size, self.refresh, self.plan.roots, count)
        self.interval()  # warms up

    def interval(self) -> list[Span]:
        """An interval's steps with refresh, the first of which begins."""
        kinds = {0: "begin", self.refresh.delay: "adopt"}
        return [Span(kinds.get(i, "plain"), *self.on.call()) for i in range(self.refresh.every)]

    @property
    def title(self) -> str:
        """What the picture of `timeline` shows."""
        return f"Two intervals of Shampoo ({self.step})"

    def timeline(self) -> tuple[list[Span], list[Span]]:
        """Steps of two intervals, and what the host did meanwhile."""
        with recorded() as spans:
            return self.interval() + self.interval(), spans


def rows(size: Size, contest: Contest) -> list[Row]:
    """Begin and adopt steps over plain ones; intervals over intervals without refresh."""
    off, refresh = contest.off, contest.refresh
    steps: list[Span] = []
    ratios: list[float] = []
    with recorded() as spans:
        for _ in track(range(size.refreshes), description="intervals", transient=True):
            interval = contest.interval()
            rest = [off.call() for _ in range(min(refresh.every, 10))]
            mean_off = np.mean([end - start for start, end in rest])
            ratios.append(float(np.mean([s.seconds for s in interval]) / mean_off))
            steps += interval
    plain = off.median
    kinds = {k: [s.seconds for s in steps if s.kind == k] for k in ("begin", "adopt", "plain")}
    host = {k: [s.seconds for s in spans if s.kind == k] for k in ("begin", "redeem")}
    items = sum(s.kind == "run" for s in spans)

    overlapped = float(np.median(kinds["plain"]))
    notes = {
        "begin": f"in the callback {np.median(host['begin']) * 1e3:.2g} ms",
        "adopt": f"in the callback {np.median(host['redeem']) * 1e3:.2g} ms, "
        f"{max(host['redeem']) * 1e3:.2g} at most",
    }

    def contrast(kind):
        median = float(np.median(kinds[kind]))
        same = f"{median / overlapped:.2f} × those of the same run; {len(kinds[kind])} seen"
        largest = max(kinds[kind]) / plain
        return [
            Row("begin", f"{kind} step / plain step, median", median / plain, bar=1.2, note=same),
            Row("begin", f"{kind} step / plain step, largest", largest, bar=2.0, note=notes[kind]),
        ]

    largest = f"largest {max(off.seconds) / plain:.2f} ×"
    setting = f"every {refresh.every}, delay {refresh.delay}, {contest.plan.roots.method}"
    work = f"roots {contest.plan.root_seconds:.3g} s on {_host.workers()} worker(s)"
    return [
        *contrast("begin"),
        *contrast("adopt"),
        Row(
            "begin",
            "other steps with refresh / plain step, median",
            overlapped / plain,
            note=f"plain: refresh off, {plain * 1e3:.3g} ms, {largest}",
        ),
        Row(
            "begin",
            "mean of an interval / the same without refresh",
            float(np.median(ratios)),
            bar=None if jax.default_backend() == "cpu" else 1.05,
            note=f"{contest.step}; {setting}; {work}, {items} items run",
        ),
    ]
