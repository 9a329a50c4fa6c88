"""Snapshots dealt out to the host's workers, and what they found put together again."""

from collections.abc import Sequence

import numpy as np

from optax_zoo import _triangles
from optax_zoo._shampoo._refresh import Delivery

SMALL = 128  # matrices up to this order share one call
Kinds = Sequence[tuple[int, int]]  # for each stack of factors their order and number


def size(n: int) -> int:
    """How many matrices of order n are one item: even, so that pairs stay together."""
    return 2 * max(1, (SMALL // n) ** 2)


def deal(kinds: Kinds, arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The number of its stack and copies of a few packed snapshots, for each item."""
    items = []
    for index, ((n, count), statistics) in enumerate(zip(kinds, arrays, strict=True)):
        packed = np.asarray(statistics).reshape(count, n, n + 1)
        items += [(index, np.array(packed[i : i + size(n)])) for i in range(0, count, size(n))]
    return items


def calls(packed: np.ndarray) -> list[np.ndarray]:
    """An item's snapshots in float64, as many together as one call shall take."""
    snapshots = _triangles.second(packed).astype(np.float64)
    at_once = len(snapshots) if snapshots.shape[-1] <= SMALL else 1
    return [snapshots[i : i + at_once] for i in range(0, len(snapshots), at_once)]


def collect(kinds: Kinds, results: Sequence[Delivery]) -> tuple[Delivery, ...]:
    """One delivery for each stack."""
    found, start = [], 0
    for n, count in kinds:
        items = -(-count // size(n))
        part = results[start : start + items]
        start += items
        found.append(Delivery(*(np.concatenate(x) for x in zip(*part, strict=True))))
    return tuple(found)
