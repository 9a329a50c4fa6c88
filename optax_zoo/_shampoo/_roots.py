"""Inverse roots of the snapshots: one pure function, evaluated on the host or on the device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _checks, _triangles
from optax_zoo._host_roots import inverse_pth_roots
from optax_zoo._matrix_roots import inverse_pth_root
from optax_zoo._shampoo import _items, _statistics
from optax_zoo._shampoo._refresh import Delivery
from optax_zoo._shampoo._statistics import Factors, Stack

# The largest residual max|X^p A - I| of a root in use. Healthy ones have 1e-7 or less in float64;
# in float32, at condition 1e4, rounding alone gives 1e-3, at 1e6 a tenth.
_CERTIFIED = {"float64": 1e-2, "float32": 0.1}
METHODS = ("schur_newton", "eigh")


@dataclasses.dataclass(frozen=True)
class Roots:
    """How the inverse roots are computed.

    Attributes:
      method: "schur_newton" or "eigh".
      ridge: Added to a statistic, relative to its largest eigenvalue. 1e-6 changed nothing beyond
        the seeds' spread on the arena's two networks, and ended at 0.01 and 0.18 times the loss on
        its ill-conditioned matrix problem and softmax regression (`python -m
        benchmarks.arena.defaults`), for 20 products a root in place of 14.
      on: "host": in float64 beside the training, through `jax.pure_callback`; "device": inside
        the step, in the statistics' dtype.
      dtype: What adopted roots are kept in; None: the statistics' dtype.
      tolerance: On the device, relative error at which "schur_newton" stops, up to 0.1, for a ridge
        of at least 2e-5; None: as far as the dtype allows. At 0.1 it takes 9 matrix products at
        p = 2 and ridge 1e-4, in place of about 48 in float32.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.shampoo(1e-3, roots=zoo.Roots(on="device", tolerance=0.1))  # no host, no delay
      >>> half = zoo.shampoo(1e-3, roots=zoo.Roots(dtype=jnp.bfloat16))
      >>> zoo.state_bytes(half, jnp.eye(64)) < zoo.state_bytes(zoo.shampoo(1e-3), jnp.eye(64))
      True
    """

    method: str = "schur_newton"
    ridge: float = 1e-4
    on: str = "host"
    dtype: Any = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        _checks.check_choice("method", self.method, METHODS)
        if isinstance(self.ridge, jax.Array):
            raise TypeError(
                f"ridge must be a Python number, got the array {self.ridge!r}: it fixes the "
                "polynomials of the iteration; pass a float (under optax.inject_hyperparams list "
                "what holds it in static_args)"
            )
        _checks.check_number("ridge", self.ridge, at_least=0.0, remedy="pass e.g. 1e-4")
        object.__setattr__(self, "ridge", float(self.ridge))
        _checks.check_choice("on", self.on, ("host", "device"))
        _checks.check_dtype("dtype", self.dtype)
        if self.dtype is not None and jnp.finfo(self.dtype).bits < 16:
            raise ValueError(f"dtype must have 16 bits, got {self.dtype!r}; pass e.g. jnp.bfloat16")
        if self.tolerance is not None:
            self._check_tolerance(self.tolerance)

    def _check_tolerance(self, tolerance: Any) -> None:
        if isinstance(tolerance, jax.Array):
            raise TypeError(
                f"tolerance must be a Python number, got the array {tolerance!r}: it fixes the "
                "polynomials of the iteration; pass a float"
            )
        remedy = "pass e.g. 0.1, or None"
        _checks.check_number("tolerance", tolerance, above=0.0, remedy=remedy)
        if tolerance > 0.1 or self.on == "host" or self.method == "eigh" or self.ridge < 2e-5:
            raise ValueError(
                f'tolerance must be at most 0.1, for "schur_newton" on the device and a ridge of '
                f"at least 2e-5, got {tolerance!r} with method={self.method!r}, on={self.on!r}, "
                f"ridge={self.ridge!r}; {remedy}"
            )
        object.__setattr__(self, "tolerance", float(tolerance))


def rungs(method: str, ridge: float) -> list[tuple[str, float]]:
    """What is tried in turn until a root is certified: (method, ridge)."""
    (other,) = set(METHODS) - {method}
    # To 1e-5 at least: float32 statistics have eigenvalues down to -1e-7 where there are none.
    wider = [max(ridge, 1e-9) * 10**i for i in (1, 2, 3, 4)]
    return [(method, ridge), (other, ridge), *((method, r) for r in wider)]


@dataclasses.dataclass(frozen=True)
class HostRoots:
    """The roots of all stacks as work for `_host`: float64, whatever the session's precision.

    Attributes:
      stacks: For each stack of factors (n, b·f, p, the roots' dtype by name).
      method: As in `Roots`.
      ridge: As in `Roots`.
      squared: Whether the squares of the roots must be finite too, as they will be taken.
    """

    stacks: tuple[tuple[int, int, int, str], ...]
    method: str
    ridge: float
    squared: bool = False

    @property
    def kinds(self) -> _items.Kinds:
        """For each stack of factors their order and number."""
        return [(n, count) for n, count, _, _ in self.stacks]

    def split(self, arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """Copies of a few snapshots each."""
        return _items.deal(self.kinds, arrays)

    def run(self, item: tuple[int, np.ndarray]) -> Delivery:
        """The roots of one item."""
        index, packed = item
        _, _, p, dtype = self.stacks[index]
        parts = [self._certified(some, p, jnp.dtype(dtype)) for some in _items.calls(packed)]
        roots, record = (np.concatenate(x) for x in zip(*parts, strict=True))
        return Delivery(_triangles.pack_pairs(roots), record)

    def _certified(self, matrices: np.ndarray, p: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """(k, n, n) -> roots and records; a matrix that fails climbs the rungs alone."""
        ladder = rungs(self.method, self.ridge)
        # Of places without a block, and of blocks without gradients, there is nothing to do.
        alive = np.logical_and(np.isfinite(matrices).all((1, 2)), matrices.any((1, 2)))
        roots = np.zeros(matrices.shape, dtype)
        residuals, iterations, bad = np.full(len(alive), np.inf), np.zeros(len(alive), int), ~alive
        if alive.any():
            found, residuals[alive], iterations[alive] = inverse_pth_roots(
                matrices[alive], p, *ladder[0]
            )
            roots[alive] = _rounded(found, dtype)
            bad[alive] = ~self._is_certified(roots[alive], residuals[alive], dtype)
        for i in np.flatnonzero(bad & alive):
            for method, ridge in ladder[1:]:
                root, residual, iteration = inverse_pth_roots(matrices[i : i + 1], p, method, ridge)
                if self._is_certified(root, residual, dtype)[0]:
                    roots[i] = _rounded(root[0], dtype)
                    residuals[i], iterations[i] = residual[0], iteration[0]
                    bad[i] = False
                    break
        roots[bad] = 0
        record = np.stack([~bad, residuals, iterations, np.zeros(len(bad))], 1).astype(np.float32)
        record[~bad, 3] = _condition(np, matrices[~bad], roots[~bad].astype(np.float64), p)
        return roots, record

    def _is_certified(self, roots: np.ndarray, residuals: np.ndarray, dtype: Any) -> np.ndarray:
        usable = _is_finite(np, roots, dtype, squared=self.squared)
        return (residuals <= _CERTIFIED["float64"]) & usable

    def join(self, results: list[Delivery]) -> tuple[Delivery, ...]:
        """One delivery for each stack."""
        return _items.collect(self.kinds, results)


def _rounded(roots: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(all="ignore"):  # what overflows is not certified
        return roots.astype(dtype)


def _is_finite(xp: Any, roots: Any, dtype: Any, *, squared: bool) -> Any:
    """Whether roots, (k, n, n), or their squares are finite when rounded, (k,)."""
    with np.errstate(all="ignore"):
        # The square's largest entry is on its diagonal.
        sizes = (roots * roots).sum(-1) if squared else xp.abs(roots).max(-1)
        return xp.isfinite(sizes.astype(dtype)).all(-1)


def _condition(xp: Any, matrices: Any, roots: Any, p: int) -> Any:
    """λmax/λmin of the ridged matrices, (k,): (|X|·|A|^(1/p))^p, spectral norms by power steps."""

    def norm(x):
        # A fixed start without symmetry, which no natural eigenvector is orthogonal to.
        n = x.shape[-1]
        v = xp.broadcast_to(
            xp.cos(xp.arange(1, n + 1, dtype=x.dtype))[None, :, None], (len(x), n, 1)
        )
        size = xp.ones((len(x), 1, 1), x.dtype)
        for _ in range(6):
            v = xp.matmul(x, v) if xp is np else xp.matmul(x, v, precision="highest")
            size = xp.abs(v).max(axis=1, keepdims=True)
            v = v / xp.where(size > 0, size, 1)
        return size[:, 0, 0]

    return (norm(roots) * norm(matrices) ** (1 / p)) ** p


@dataclasses.dataclass(frozen=True)
class RootsRenewal:
    """The renewal of Shampoo's factors, a tuple of them as states.

    A delivery holds the roots, (⌈b·f / 2⌉, n, n + 1), rounded to their dtype after they were
    certified, and the record (b·f, 4): whether they are, residual, iterations, condition.

    Attributes:
      stacks: The stacks of factors.
      roots: How their roots are computed.
      dtypes: What each stack's roots are kept in, by name.
      halved: Whether the square roots of the roots are delivered, for drift correction.
    """

    stacks: Sequence[Stack]
    roots: Roots
    dtypes: tuple[str, ...]
    halved: bool = False

    @property
    def task(self) -> HostRoots:
        """All roots as work for the host."""
        kinds = zip(self.stacks, self.dtypes, strict=True)
        return HostRoots(
            tuple((s.order, s.factors, self._exponent(s), dtype) for s, dtype in kinds),
            self.roots.method,
            self.roots.ridge,
            squared=self.halved,
        )

    def _exponent(self, stack: Stack) -> int:
        """Of what is delivered."""
        return (1 + self.halved) * stack.exponent

    def deliveries(self) -> Sequence[Delivery]:
        """Shapes and dtypes of what the task gives."""
        return [
            Delivery(
                jax.ShapeDtypeStruct((-(-s.factors // 2), s.order, s.order + 1), jnp.dtype(dtype)),
                jax.ShapeDtypeStruct((s.factors, 4), jnp.float32),
            )
            for s, dtype in zip(self.stacks, self.dtypes, strict=True)
        ]

    def statistics(self, states: Sequence[Factors]) -> list[jax.Array]:
        """The packed statistics and snapshots of each stack."""
        return [factors.statistics for factors in states]

    def snapshot(self, states: Sequence[Factors]) -> tuple[Factors, ...]:
        """The states with this moment's statistics as the snapshots."""
        return tuple(map(_statistics.snapshot, states))

    def on_device(self, states: Sequence[Factors]) -> list[Delivery]:
        """The task's function inside the compiled step."""
        return [
            _on_device(s, f, self.roots, self._exponent(s), squared=self.halved)
            for s, f in zip(self.stacks, states, strict=True)
        ]

    def adopt(
        self, states: Sequence[Factors], deliveries: Sequence[Delivery], age: Any
    ) -> tuple[Factors, ...]:
        """Certified roots replace the old ones; elsewhere the last good root stays."""
        found = zip(self.stacks, states, deliveries, strict=True)
        return tuple(_adopted(*stack_and_more, age) for stack_and_more in found)


def _on_device(stack: Stack, factors: Factors, roots: Roots, p: int, *, squared: bool) -> Delivery:
    """The same function inside the compiled step, in the statistics' dtype.

    Each rung is compiled into the step, so there is one more: the other method and more ridge.
    """
    n = stack.order
    matrices = _triangles.second(factors.statistics).reshape(-1, n, n)
    dtype = factors.roots.dtype
    tolerance = roots.tolerance and roots.tolerance / (1 + squared)
    # Below 1, the residual of a root that is nothing at all.
    limit = min(_CERTIFIED[str(matrices.dtype)] + (1 + (tolerance or 0)) ** p - 1, 0.9)
    alive = jnp.isfinite(matrices).all((1, 2)) & matrices.any((1, 2))

    def tried(method, ridge):
        root, info = inverse_pth_root(matrices, p, method=method, ridge=ridge, tolerance=tolerance)
        good = (info.residual <= limit) & _is_finite(jnp, root, dtype, squared=squared)
        return jnp.where(good[:, None, None], root, 0), info.residual, info.iterations, good

    _, (other, _), (_, ridge), *_ = rungs(roots.method, roots.ridge)
    found = tried(roots.method, roots.ridge)

    def climb(found):
        keep = found[3]
        return tuple(
            jnp.where(keep.reshape(-1, *[1] * (old.ndim - 1)), old, new)
            for old, new in zip(found, tried(other, max(ridge, 1e-5)), strict=True)
        )

    found = jax.lax.cond((alive & ~found[3]).any(), climb, lambda found: found, found)
    root, residual, iterations, good = found
    condition = jnp.where(good, _condition(jnp, matrices, root, p), 0)
    record = jnp.stack([good, residual, iterations, condition], 1, dtype=jnp.float32)
    return Delivery(_triangles.pack_pairs(root.astype(dtype)), record)


def _adopted(stack: Stack, factors: Factors, delivery: Delivery, age: Any) -> Factors:
    """Certified roots replace the old ones; elsewhere the last good root stays."""
    n, shape = stack.order, (stack.length, len(stack.axes))
    good = delivery.record[:, 0] > 0
    pairs = jnp.pad(good, (0, len(good) % 2)).reshape(-1, 2)
    mine = jnp.where(_triangles.of_first(n)[None], pairs[:, 0, None, None], pairs[:, 1, None, None])
    good = good.reshape(shape)
    _, residual, iterations, condition = delivery.record.reshape(*shape, 4).transpose(2, 0, 1)
    return factors._replace(
        roots=jnp.where(mine, delivery.matrices, factors.roots),
        age=jnp.where(good, jnp.asarray(age, jnp.int32), factors.age),
        residual=jnp.where(good, residual, factors.residual),
        iterations=jnp.where(good, iterations.astype(jnp.int32), factors.iterations),
        condition=jnp.where(good, condition, factors.condition),
        failures=factors.failures + (~good).astype(jnp.int32),
    )
