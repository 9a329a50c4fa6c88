"""A certified refresh on the host against the bare eigendecompositions in it."""

import itertools
import time
from concurrent import futures

import numpy as np
import threadpoolctl

from benchmarks.refresh._common import Row, Size
from optax_zoo import _host, _triangles
from optax_zoo._shampoo._roots import METHODS, HostRoots

_FACTORS = 44
_FRESH = itertools.count()


def _statistics(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(_FACTORS, n, 2 * n)) * np.logspace(0, -2, n)[:, None]
    return (halves @ halves.swapaxes(1, 2) / n).astype(np.float32)


def _refresh_seconds(task: HostRoots, packed: np.ndarray) -> float:
    start = time.perf_counter()
    (delivery,) = _host.redeem(task, ("benchmark", next(_FRESH)), [packed])
    seconds = time.perf_counter() - start
    if not delivery.record[:, 0].all():
        raise RuntimeError("a root was not certified: this times the wrong thing")
    return seconds


def _bare_seconds(matrices: np.ndarray) -> float:
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        futures.ThreadPoolExecutor(_host.workers()) as pool,
    ):
        start = time.perf_counter()
        futures.wait([pool.submit(np.linalg.eigh, matrix) for matrix in matrices])
        return time.perf_counter() - start


def rows(size: Size, repeats: int) -> list[Row]:
    """The refresh of 44 factors, certificates included, by both methods."""
    n = size.order
    statistics = _statistics(n)
    packed, matrices = _triangles.pack(statistics, statistics), statistics.astype(np.float64)
    tasks = {m: HostRoots(((n, _FACTORS, 2, "float32"),), m, 1e-4) for m in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in (*METHODS, "bare")}
    for task in tasks.values():
        _refresh_seconds(task, packed)  # compiles
    for _ in range(repeats):
        seconds["bare"].append(_bare_seconds(matrices))
        for method, task in tasks.items():
            seconds[method].append(_refresh_seconds(task, packed))
    bare = min(seconds["bare"])
    medians = {name: np.median(times) for name, times in seconds.items()}
    where = f"{_host.workers()} worker(s); bare eigh {bare:.3g} s"
    return [
        Row(
            "certified",
            f"refresh of {_FACTORS} factors of {n}, {method} / their bare eigh",
            min(seconds[method]) / bare,
            bar=1.7 if method == "eigh" else None,
            note=f"{medians[method] / medians['bare']:.2f} by medians; {where}",
        )
        for method in reversed(METHODS)
    ]
