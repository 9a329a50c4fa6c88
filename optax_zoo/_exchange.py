"""Who sends which pieces to whom: tables of indices, in NumPy, before there is a program."""

from typing import NamedTuple

import numpy as np


class Tables(NamedTuple):
    """Who sends what, for all pieces of one kind; an index past the end stands for none.

    Attributes:
      block: (devices, pieces), the block to which each of a device's pieces belongs.
      sent: (devices, devices · most), which of its own pieces a device sends to each.
      kept: (devices, slots), where what it received goes.
      returned: (devices, devices · most), the way back: which of its slots it sends to each; of
        whole leaves (devices, most), which it sends to all.
      back: (devices, pieces), where its own pieces are in what it received.
    """

    block: np.ndarray
    sent: np.ndarray
    kept: np.ndarray
    returned: np.ndarray
    back: np.ndarray


def of_tiles(block: np.ndarray, owner: np.ndarray, goal: np.ndarray, slots: int) -> Tables:
    """Every device has other pieces.

    Args:
      block: (devices, pieces), the block to which each device's pieces belong.
      owner: The same, to which device they go.
      goal: The same, into which of its slots.
      slots: How many a device has.
    """
    count, pieces = owner.shape
    source = np.repeat(np.arange(count), pieces)
    owner, goal = owner.reshape(-1), goal.reshape(-1)
    rank = _rank(source * count + owner)
    most = int(rank.max()) + 1
    sent = np.full((count, count, most), pieces, np.int32)
    sent[source, owner, rank] = np.tile(np.arange(pieces), count)
    kept = np.full((count, slots), count * most, np.int32)
    kept[owner, goal] = source * most + rank
    returned = np.full((count, count, most), slots, np.int32)
    returned[owner, source, rank] = goal
    back = (owner * most + rank).reshape(count, pieces)
    return Tables(block, sent.reshape(count, -1), kept, returned.reshape(count, -1), back)


def of_whole(block: np.ndarray, owner: np.ndarray, goal: np.ndarray, slots: int) -> Tables:
    """Every device has all pieces: it keeps its own, and all get all of them back."""
    count, pieces = owner.shape
    owner, goal = owner[0], goal[0]
    kept = np.full((count, slots), pieces, np.int32)
    kept[owner, goal] = np.arange(pieces)
    rank = _rank(owner)
    most = int(rank.max()) + 1
    returned = np.full((count, most), slots, np.int32)
    returned[owner, rank] = goal
    return Tables(block, kept, kept, returned, np.tile(owner * most + rank, (count, 1)))


def _rank(way: np.ndarray) -> np.ndarray:
    """The number of each entry among those equal to it."""
    order = np.argsort(way, kind="stable")
    sorted_way = way[order]
    rank = np.empty_like(way)
    rank[order] = np.arange(len(way)) - np.searchsorted(sorted_way, sorted_way)
    return rank
