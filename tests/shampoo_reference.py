"""Independent NumPy float64 Shampoo: 1802.09568, 2002.09018 and the conventions of optax_zoo.

Plain loops over leaves, layers, blocks and axes. Each layer slice is an optimizer of its own, so
the unit is one layer and its gradients, stacked along the first axis.

Deviations from the papers, each on purpose and as the transformation documents it:
  statistics   bias-corrected; the ridge is relative to the largest eigenvalue of each factor.
  momentum     before the roots, as in `optax.scale_by_adam`.
  blocks       balanced; a merge never leaves one axis.
  roots        begun on a doubling ramp, adopted with a delay; eigh, never an iteration.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Setting:
    """All of `scale_by_shampoo`, `Blocks`, `Refresh` and `Roots` that changes the mathematics."""

    b1: float = 0.9
    b2: float = 0.95
    nesterov: bool = True
    eps: float = 1e-8
    exponent: int | None = None
    init_epsilon: float = 0.0
    graft: str | None = None  # "adam", "sgd", "sign"
    layer_axes: Any = 0  # int, or leaf name -> int
    size: int = 512
    merge_below: int | None = None
    skip_above: int = 8192
    one_sided_above: int | None = None
    every: int = 10
    delay: int = 10
    start: int = 10
    statistics_every: int = 1
    drift_every: int | None = None
    ridge: float = 1e-4


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
    dims, factored = axes_of(shape, s)
    preconditioned = any(factored)
    places = cut(dims, s.size) if preconditioned else [(slice(None),) * len(dims)]
    g = grads.reshape(steps, *dims).copy()
    clean = [np.ones(steps, bool) for _ in places]
    for place, ok in zip(places, clean, strict=True):
        for t in range(steps):
            ok[t] = bool(np.all(np.isfinite(g[t][place])))
            if not ok[t]:
                g[t][place] = 0.0
    m = momentum(g, s)
    alone = grafted_update(g, m, s)
    if not preconditioned:
        return alone.reshape(grads.shape)
    blocks = [Block(g[0][place].shape, factored, s) for place in places]
    out = np.empty_like(g)
    pending, due = None, 0
    for t in range(1, steps + 1):
        if (t - 1) % s.statistics_every == 0:
            for block, place, ok in zip(blocks, places, clean, strict=True):
                if ok[t - 1]:
                    block.gather(g[t - 1][place])
        if pending is not None and t == due:
            adopt(blocks, pending)
            pending = None
        if is_begin(t, s.every, s.start):
            pending, due = [block.new_roots() for block in blocks], adopted_at(t, s)
            if due == t:
                adopt(blocks, pending)
                pending = None
        if corrects(t, s):
            for block in blocks:
                block.correct()
        if not any(block.has_root() for block in blocks):
            out[t - 1] = alone[t - 1]
            continue
        u = np.empty(dims)
        for block, place in zip(blocks, places, strict=True):
            u[place] = block.precondition(m[t - 1][place])
        if s.graft is not None:
            norm = np.linalg.norm(u)
            u = u * (np.linalg.norm(alone[t - 1]) / norm) if norm > 0 else u
        out[t - 1] = u
    return out.reshape(grads.shape)


# --- time -------------------------------------------------------------------------------------


def is_begin(t: int, every: int, start: int) -> bool:
    """S, 2S, 4S ... below N, then N and every multiple of it."""
    if t >= every:
        return t % every == 0
    doublings = itertools.takewhile(lambda n: n <= t, (start * 2**i for i in itertools.count()))
    return t in doublings


def next_begin(t: int, every: int, start: int) -> int:
    return next(n for n in itertools.count(t + 1) if is_begin(n, every, start))


def adopted_at(t: int, s: Setting) -> int:
    return min(t + s.delay, next_begin(t, s.every, s.start))


def snapshot_in_use(t: int, s: Setting) -> int:
    """The begin step whose roots precondition the gradient of step t; 0 before the first."""
    ready = [b for b in range(1, t + 1) if is_begin(b, s.every, s.start) and adopted_at(b, s) <= t]
    return max(ready, default=0)


def corrects(t: int, s: Setting) -> bool:
    """Drift is corrected every so often, and where roots are adopted."""
    if s.drift_every is None:
        return False
    begins = [b for b in range(1, t + 1) if is_begin(b, s.every, s.start)]
    return t % s.drift_every == 0 or t in [adopted_at(b, s) for b in begins]


# --- blocks -----------------------------------------------------------------------------------


def axes_of(shape: Sequence[int], s: Setting) -> tuple[list[int], list[bool]]:
    """The axes after dropping ones and merging, and which of them have a factor."""
    dims = [n for n in shape if n != 1]
    if len(dims) < 2 or max(dims) > s.skip_above:
        return dims, [False] * len(dims)
    oversized = math.inf if s.one_sided_above is None else s.one_sided_above
    below = s.size if s.merge_below is None else s.merge_below
    merged: list[int] = []
    factored: list[bool] = []
    for i, n in enumerate(dims):
        has_factor = n <= oversized
        joins = bool(merged) and factored[-1] and has_factor and merged[-1] * n <= below
        if joins and len(merged) + len(dims) - i - 1 >= 2:
            merged[-1] *= n
        else:
            merged.append(n)
            factored.append(has_factor)
    return merged, factored


def cut(dims: Sequence[int], size: int) -> list[tuple[slice, ...]]:
    """Balanced pieces of every axis, none longer than `size`."""
    pieces = []
    for n in dims:
        parts = np.array_split(np.arange(n), -(-n // size))
        pieces.append([slice(int(p[0]), int(p[-1]) + 1) for p in parts])
    return list(itertools.product(*pieces))


class Block:
    """The statistics and the adopted roots of one block."""

    def __init__(self, shape: Sequence[int], factored: Sequence[bool], s: Setting):
        self.s = s
        self.axes = [i for i, has_factor in enumerate(factored) if has_factor]
        self.p = 2 * len(self.axes) if s.exponent is None else s.exponent
        self.sums = {i: s.init_epsilon * np.eye(shape[i]) for i in self.axes}
        self.weight = 0.0
        self.roots: dict[int, np.ndarray | None] = dict.fromkeys(self.axes)  # as adopted
        self.used = self.roots

    def gather(self, g: np.ndarray) -> None:
        b2 = self.s.b2
        for i in self.axes:
            unfolded = np.moveaxis(g, i, 0).reshape(g.shape[i], -1)
            gram = unfolded @ unfolded.T
            self.sums[i] = self.sums[i] + gram if b2 == 1 else b2 * self.sums[i] + (1 - b2) * gram
        self.weight = 1.0 if b2 == 1 else b2 * self.weight + (1 - b2)

    def statistic(self, i: int) -> np.ndarray:
        return self.sums[i] / self.weight if self.weight > 0 else self.sums[i]

    def new_roots(self) -> dict[int, np.ndarray | None]:
        return {i: ridged_root(self.statistic(i), self.p, self.s.ridge) for i in self.axes}

    def correct(self) -> None:
        """H W^(-1/p) H with W = X^(p/2) S X^(p/2) and H = X^(1/2), by eigendecompositions."""
        self.used = dict(self.roots)
        for i, x in self.roots.items():
            if x is not None:
                s = self.statistic(i)
                s = s + self.s.ridge * np.linalg.eigvalsh(s)[-1] * np.eye(len(s))
                half, power = symmetric_power(x, 1 / 2), symmetric_power(x, self.p / 2)
                w = power @ s @ power
                self.used[i] = half @ symmetric_power((w + w.T) / 2, -1 / self.p) @ half

    def has_root(self) -> bool:
        return any(root is not None for root in self.roots.values())

    def precondition(self, m: np.ndarray) -> np.ndarray:
        for i in self.axes:
            root = self.used[i]
            if root is None:
                mean = np.trace(self.statistic(i)) / m.shape[i]
                m = m * (mean ** (-1 / self.p) if mean > 0 else 1.0)
            else:
                m = np.moveaxis(np.tensordot(root, m, axes=(1, i)), 0, i)
        return m


def adopt(blocks: Sequence[Block], roots: Sequence[dict[int, np.ndarray | None]]) -> None:
    """A root that could not be computed leaves the one before it in use."""
    for block, new in zip(blocks, roots, strict=True):
        block.roots = {i: block.roots[i] if new[i] is None else new[i] for i in block.axes}
        block.used = block.roots


def symmetric_power(a: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(a)
    return (vectors * values**power) @ vectors.T


def ridged_root(a: np.ndarray, p: int, ridge: float) -> np.ndarray | None:
    """(A + ridge·λmax·I)^(-1/p), None for a zero matrix or one that is not finite."""
    if not np.all(np.isfinite(a)):
        return None
    values, vectors = np.linalg.eigh(a)
    if values[-1] <= 0:
        return None
    values = np.maximum(values, 0) + ridge * values[-1]
    return (vectors * values ** (-1 / p)) @ vectors.T


# --- first-order parts ------------------------------------------------------------------------


def momentum(g: np.ndarray, s: Setting) -> np.ndarray:
    """The numerator of `optax.scale_by_adam`."""
    m, found = np.zeros_like(g[0]), []
    for t, x in enumerate(g, start=1):
        m = s.b1 * m + (1 - s.b1) * x
        if s.nesterov:
            now = x / (1 - s.b1**t)
            found.append(s.b1 * m / (1 - s.b1 ** (t + 1)) + (1 - s.b1) * now)
        else:
            found.append(m / (1 - s.b1**t))
    return np.stack(found)


def grafted_update(g: np.ndarray, m: np.ndarray, s: Setting) -> np.ndarray:
    """The update whose norm the direction takes; it stands alone where there is no root."""
    if s.graft is None:
        return m
    if s.graft == "sgd":
        return g
    if s.graft == "sign":
        return np.sign(g)
    assert s.graft == "adam"
    v, found = np.zeros_like(g[0]), []
    for t, (x, first) in enumerate(zip(g, m, strict=True), start=1):
        v = s.b2 * v + (1 - s.b2) * x**2
        found.append(first / (np.sqrt(v / (1 - s.b2**t)) + s.eps))
    return np.stack(found)


# --- a problem --------------------------------------------------------------------------------


def gradients(shapes: dict[str, tuple[int, ...]], steps: int = 50) -> dict[str, np.ndarray]:
    """Noise of uneven spectrum around a slowly turning mean, stacked over the steps."""
    rng = np.random.default_rng(len(shapes))
    found = {}
    for name, shape in shapes.items():
        noise = rng.normal(size=(steps, *shape))
        for axis, n in enumerate(shape, start=1):
            spectrum = np.logspace(0, -1.5, n).reshape((n,) + (1,) * (len(shape) - axis))
            noise = noise * spectrum
        turn = np.cos(np.arange(steps) / 9).reshape((steps,) + (1,) * len(shape))
        found[name] = noise + 0.3 * turn * rng.normal(size=shape)
    return found
