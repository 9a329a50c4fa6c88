r"""Drift correction: roots in use brought toward the current statistics on the device.

The adopted root X belongs to a snapshot; the statistic S has moved on. The host delivers
H = X^(1/2), and with S ridged as the snapshot was,

    W = X^(p/2) S X^(p/2),   P = H W^(−1/p) H,

which is S^(−1/p) where S commutes with the snapshot, and X where nothing has moved: W = I.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_zoo import _blocks, _minimax, _triangles
from optax_zoo._matrix_roots import power, product, symmetric
from optax_zoo._shampoo import _statistics
from optax_zoo._shampoo._statistics import Factors, Stack

Matrix = jax.Array

# The polynomials that stand for W^(−1/p) are right to this tolerance where eigenvalues are above
# this fraction of the bound on the largest; smaller ones count as if they were near it.
_SMALLEST = 1e-3
_TOLERANCE = 0.01
_POWER_STEPS = 16


def corrected_if(
    now: Any, stacks: Sequence[Stack], factors: Sequence[Factors], ridge: float
) -> tuple[Factors, ...]:
    """The factors with their roots in use corrected for this moment's statistics, if it is time."""

    def correct(factors):
        return tuple(_corrected(s, f, ridge) for s, f in zip(stacks, factors, strict=True))

    return jax.lax.cond(now, correct, lambda factors: factors, tuple(map(_varying, factors)))


def uncorrected_if(
    due: Any, stacks: Sequence[Stack], factors: Sequence[Factors]
) -> tuple[Factors, ...]:
    """The factors of a state that had drift correction, for what has it no more.

    The adopted roots are used from the first step on, which sees drift that was corrected, and
    from each adoption on.
    """
    was_corrected = functools.reduce(jnp.logical_or, [(f.drift != 0).any() for f in factors])

    def adopted(factors):
        return tuple(_uncorrected(s, f) for s, f in zip(stacks, factors, strict=True))

    factors = tuple(map(_varying, factors))
    return jax.lax.cond(due | was_corrected, adopted, lambda factors: factors, factors)


def _uncorrected(stack: Stack, factors: Factors) -> Factors:
    halves = _triangles.unpack_pairs(factors.roots, stack.factors)
    halves = halves.astype(factors.statistics.dtype)
    adopted = jnp.matmul(halves, halves, precision="highest").astype(factors.roots.dtype)
    return factors._replace(
        corrected=_triangles.pack_pairs(adopted), drift=jnp.zeros_like(factors.drift)
    )


def _varying(factors: Factors) -> Factors:
    """What a correction writes, typed like what it is made from; see `_blocks.varying_like`."""
    sources = (factors.statistics, factors.weight, factors.roots, factors.age)
    return factors._replace(
        corrected=_blocks.varying_like(factors.corrected, sources),
        drift=_blocks.varying_like(factors.drift, sources),
    )


def _corrected(stack: Stack, factors: Factors, ridge: float) -> Factors:
    n = stack.order
    statistics, halves = jax.lax.stop_gradient((_statistics.average(factors), factors.roots))
    one = functools.partial(_corrected_root, p=stack.exponent, ridge=ridge)
    roots, drift = jax.lax.platform_dependent(
        statistics.reshape(-1, n, n),
        _triangles.unpack_pairs(halves, stack.factors),
        factors.age.reshape(-1),
        cpu=lambda *arrays: jax.lax.map(lambda x: one(*x), arrays),  # batched products are slow
        default=jax.vmap(one),
    )
    return factors._replace(
        corrected=_triangles.pack_pairs(roots),
        drift=drift.reshape(factors.age.shape).astype(jnp.float32),
    )


def _corrected_root(
    statistic: Matrix, half: Matrix, age: jax.Array, *, p: int, ridge: float
) -> tuple[Matrix, jax.Array]:
    """P and max|W − I|; H² where nothing can have moved or P is not certified."""
    identity = jnp.eye(len(statistic), dtype=statistic.dtype)
    h = half.astype(statistic.dtype)
    x = power(h, p)  # X^(p/2)
    s = statistic + ridge * _largest_eigenvalue(statistic) * identity
    w = symmetric(product(x, product(s, x)))
    inverse_root, certified = _inverse_root(w, p)
    # In the dtype in which it is used: there too it must be finite.
    better = symmetric(product(h, product(inverse_root, h))).astype(half.dtype)
    certified &= jnp.isfinite(better).all()
    root = jnp.where(certified & (age > 0), better, product(h, h).astype(half.dtype))
    drift = jnp.where(certified, jnp.abs(w - identity).max(), jnp.inf)
    return root, jnp.where(age >= 0, drift, 0)


def _inverse_root(w: Matrix, p: int) -> tuple[Matrix, jax.Array]:
    """W^(−1/p) to the polynomials' precision, and whether W's spectrum was fit for them."""
    steps = _minimax.schedule(p, _SMALLEST, _TOLERANCE)
    square = product(w, w)
    bound = jnp.sqrt(jnp.linalg.norm(square))  # (Σλ⁴)^(1/4), λmax or above
    m, square = w / bound, square / bound**2
    root = t = _evaluated(steps[0], m, square)
    for step in steps[1:]:
        m = symmetric(product(power(t, p), m))
        t = _evaluated(step, m, product(m, m))
        root = product(root, t)
    # The polynomials soar below 0, where only rounding can have brought an eigenvalue.
    at_zero = math.prod(step.at(0.0) for step in steps)
    return root * bound ** (-1 / p), _largest_eigenvalue(symmetric(root)) <= 2 * at_zero


def _evaluated(step: _minimax.Step, m: Matrix, square: Matrix) -> Matrix:
    """T(M), where M² is known already."""
    identity = jnp.eye(len(m), dtype=m.dtype)
    s = step.slope * m + step.shift * identity
    s_squared = step.slope**2 * square + 2 * step.slope * step.shift * m + step.shift**2 * identity
    return _minimax.polynomial(
        step.coefficients, s, identity, lambda a, b: s_squared if a is b else product(a, b)
    )


def _largest_eigenvalue(a: Matrix) -> jax.Array:
    """λmax from below, by power steps from a fixed start without symmetry.

    To a hundredth or so: of the ridge, that moves a root by less than the polynomial's error.
    """

    def unit(v):
        size = jnp.abs(v).max()
        return v / jnp.where(size > 0, size, 1)

    start = product(a, jnp.cos(jnp.arange(1, len(a) + 1, dtype=a.dtype)))
    v = unit(jax.lax.fori_loop(0, _POWER_STEPS, lambda _, v: product(a, unit(v)), start))
    return jnp.vdot(v, product(a, v), precision="highest") / jnp.vdot(v, v, precision="highest")
