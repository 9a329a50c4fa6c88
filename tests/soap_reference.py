"""Independent NumPy float64 SOAP: 2409.11321 and the conventions of optax_zoo.

Plain loops over leaves, layers, blocks and axes; time, blocks and statistics are those of
`shampoo_reference`. The unit is one layer and its gradients, stacked along the first axis.

Deviations from the paper, each on purpose and as the transformation documents it:
  bases           by eigh, begun on a doubling ramp, adopted with a delay; the identity before.
  first step      Adam's, in the identity basis; the released code makes no step at all.
  second moment   averaged by squared entries when the basis changes; the paper leaves it as it is.
  one-sided       by the length of an axis, not by a flag.
"""

import dataclasses
from typing import Any

import numpy as np

import shampoo_reference as shampoo


@dataclasses.dataclass(frozen=True)
class Setting(shampoo.Setting):
    """Those of Shampoo, with SOAP's defaults; exponent, ridge, graft and the like are not used."""

    b1: float = 0.95
    b2: float = 0.95
    nesterov: bool = False


def directions(grads: dict[str, np.ndarray], s: Setting) -> dict[str, np.ndarray]:
    """The direction of every step, for leaves stacked over the steps."""
    found = {}
    for name, g in grads.items():
        g = np.asarray(g, float)
        axes = s.layer_axes[name] if isinstance(s.layer_axes, dict) else s.layer_axes
        out = np.empty_like(g)
        for index in np.ndindex(g.shape[1 : 1 + axes]):
            layer = (slice(None), *index)
            out[layer] = layer_directions(g[layer], s)
        found[name] = out
    return found


def layer_directions(grads: np.ndarray, s: Setting) -> np.ndarray:
    """(steps, *shape) -> (steps, *shape)."""
    steps, shape = len(grads), grads.shape[1:]
    dims, factored = shampoo.axes_of(shape, s)
    places = shampoo.cut(dims, s.size) if any(factored) else [(slice(None),) * len(dims)]
    g = grads.reshape(steps, *dims)
    out = np.empty_like(g)
    for place in places:
        where = (slice(None), *place)
        out[where] = block_directions(g[where], factored, s)
    return out.reshape(grads.shape)


def block_directions(grads: np.ndarray, factored: list[bool], s: Setting) -> np.ndarray:
    block = Block(grads.shape[1:], factored, s)
    out, pending, due = np.empty_like(grads), None, 0
    for t, g in enumerate(grads, start=1):
        is_finite = bool(np.all(np.isfinite(g)))
        g = g if is_finite else np.zeros_like(g)
        if is_finite and (t - 1) % s.statistics_every == 0:
            block.gather(g)
        if pending is not None and t == due:
            block.adopt(pending)
            pending = None
        if any(factored) and shampoo.is_begin(t, s.every, s.start):
            pending, due = block.new_bases(), shampoo.adopted_at(t, s)
            if due == t:
                block.adopt(pending)
                pending = None
        out[t - 1] = block.direction(g, t)
    return out


class Block:
    """Statistics, bases and the moments in them, of one block."""

    def __init__(self, shape: Any, factored: list[bool], s: Setting):
        self.s = s
        self.statistics = shampoo.Block(shape, factored, s)
        self.bases = {i: np.eye(shape[i]) for i in self.statistics.axes}
        self.m, self.v = np.zeros(shape), np.zeros(shape)

    def gather(self, g: np.ndarray) -> None:
        self.statistics.gather(g)

    def new_bases(self) -> dict[int, np.ndarray | None]:
        return {i: eigenvectors(self.statistics.statistic(i)) for i in self.bases}

    def adopt(self, bases: dict[int, np.ndarray | None]) -> None:
        for i, new in bases.items():
            if new is None:
                continue
            turn = new.T @ self.bases[i]
            self.m = along(turn, self.m, i)
            self.v = along(turn**2, self.v, i)
            self.bases[i] = new

    def direction(self, g: np.ndarray, t: int) -> np.ndarray:
        s = self.s
        for i, q in self.bases.items():
            g = along(q.T, g, i)
        self.m = s.b1 * self.m + (1 - s.b1) * g
        self.v = s.b2 * self.v + (1 - s.b2) * g**2
        m = self.m / (1 - s.b1**t)
        if s.nesterov:
            m = s.b1 * self.m / (1 - s.b1 ** (t + 1)) + (1 - s.b1) * g / (1 - s.b1**t)
        u = m / (np.sqrt(self.v / (1 - s.b2**t)) + s.eps)
        for i, q in self.bases.items():
            u = along(q, u, i)
        return u


def along(matrix: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    """matrix ×ᵢ x."""
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def eigenvectors(a: np.ndarray) -> np.ndarray | None:
    """Eigenvectors as columns, None for a zero matrix or one that is not finite."""
    return np.linalg.eigh(a)[1] if np.all(np.isfinite(a)) and a.any() else None
