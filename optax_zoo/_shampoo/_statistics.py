"""Kronecker factors: second moments of the unfolded gradient, and products with their roots."""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _blocks, _layers, _matrix_roots, _triangles


class Stack(NamedTuple):
    """The factors of one order n in the blocks of one group; static.

    Attributes:
      group: The group's place in the plan.
      order: n.
      axes: The blocks' axes of that length, f of them.
      length: The number of blocks, b.
      exponent: p of the root A^(-1/p).
    """

    group: int
    order: int
    axes: tuple[int, ...]
    length: int
    exponent: int

    @property
    def factors(self) -> int:
        """How many factors there are in all, b · f."""
        return self.length * len(self.axes)


class Factors(NamedTuple):
    """The state of a stack of factors.

    Attributes:
      statistics: (b, f, n, n + 1), the running statistic L and the snapshot whose roots are next
        to be adopted, a triangle each.
      weight: (b,), the weight that L has gathered; L / weight is the average.
      roots: (⌈b·f / 2⌉, n, n + 1), the adopted roots, two in one.
      age: (b, f), steps since the root's snapshot, -1 before the first.
      residual: (b, f), max|X^p A - I| of the root in use.
      iterations: (b, f), of the root in use.
      condition: (b, f), that of the ridged matrix, estimated.
      failures: (b, f), refreshes that gave no usable root.
      corrected: With drift correction, like the roots: what is used. The roots are then the square
        roots of what was adopted. None: the roots are used.
      drift: (b, f), max|W - I| at the last correction, 0 before the first, infinite where it was
        refused; None without drift correction.
      blocks: On a mesh, (devices, places): which block is where, −1: none. All arrays then are
        those of the places, device after device, b · devices of them. None: without a mesh.
    """

    statistics: jax.Array
    weight: jax.Array
    roots: jax.Array
    age: jax.Array
    residual: jax.Array
    iterations: jax.Array
    condition: jax.Array
    failures: jax.Array
    corrected: Any = None
    drift: Any = None
    blocks: Any = None


# `Factors`, or another named tuple with its statistics, weight and age.
AnyFactors = TypeVar("AnyFactors", bound=Any)


def stacks(plan: _blocks.Plan, exponent: int | None) -> tuple[Stack, ...]:
    """The stacks of a plan; the exponent defaults to twice the number of preconditioned axes."""
    return tuple(
        Stack(
            group=index,
            order=order,
            axes=tuple(axis for axis in group.axes if group.sizes[axis] == order),
            length=group.length,
            exponent=exponent or 2 * len(group.axes),
        )
        for index, group in enumerate(plan.groups)
        for order in sorted({group.sizes[axis] for axis in group.axes})
    )


def init(
    stack: Stack, epsilon: Any, dtype: Any, root_dtype: Any, blocks: Any, *, drifts: bool = False
) -> Factors:
    """Statistics start at ε·I."""
    n, shape = stack.order, (stack.length, len(stack.axes))
    start = _triangles.pack(epsilon * np.eye(n), np.zeros((n, n)))
    start = jnp.tile(jnp.asarray(start, dtype), (*shape, 1, 1))
    if blocks is not None:  # or there would be roots to compute where there is no block
        start = jnp.where((blocks >= 0).reshape(-1, 1, 1, 1), start, 0)

    def no_roots():
        return jnp.zeros((-(-stack.factors // 2), n, n + 1), root_dtype or dtype)

    return Factors(
        statistics=start,
        weight=jnp.zeros(stack.length, dtype),
        roots=no_roots(),
        age=jnp.full(shape, -1, jnp.int32),
        residual=jnp.zeros(shape, jnp.float32),
        iterations=jnp.zeros(shape, jnp.int32),
        condition=jnp.zeros(shape, jnp.float32),
        failures=jnp.zeros(shape, jnp.int32),
        corrected=no_roots() if drifts else None,
        drift=jnp.zeros(shape, jnp.float32) if drifts else None,
        blocks=blocks,
    )


def taken_over(stack: Stack, factors: Factors, root_dtype: Any, *, drifts: bool) -> Factors:
    """Factors that were made without drift correction or with other roots, for what has it.

    What was adopted stays in use. The other way round nothing is to be done: the arrays of drift
    correction stay, see `_drift.uncorrected_if`, as wrappers may insist on a state's structure.
    """
    dtype = jnp.dtype(factors.statistics.dtype if root_dtype is None else root_dtype)
    if drifts and factors.corrected is None:
        roots = _triangles.unpack_pairs(factors.roots, stack.factors)
        values, vectors = jax.vmap(_matrix_roots.eigh)(roots.astype(factors.statistics.dtype))
        scaled = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
        halves = jnp.matmul(scaled, vectors.swapaxes(-1, -2), precision="highest")
        factors = factors._replace(
            roots=_triangles.pack_pairs(halves),
            corrected=factors.roots,
            drift=jnp.zeros_like(factors.residual),
        )
    corrected = None if factors.corrected is None else factors.corrected.astype(dtype)
    return factors._replace(roots=factors.roots.astype(dtype), corrected=corrected)


def older(factors: AnyFactors) -> AnyFactors:
    """One step has passed for the roots in use."""
    last = np.iinfo(np.int32).max
    aged = (factors.age >= 0) & (factors.age < last)
    return factors._replace(age=factors.age + aged.astype(jnp.int32))


def gather(
    stacks: Sequence[Stack],
    factors: Any,
    blocks: Sequence[jax.Array],
    finite: Sequence[jax.Array],
    b2: Any,
    now: jax.Array | bool,
) -> tuple[Any, ...]:
    """The statistics with this step's gradients, where it is time."""

    def grown(factors):
        return tuple(
            _accumulate(s, f, blocks[s.group], finite[s.group], b2)
            for s, f in zip(stacks, factors, strict=True)
        )

    return grown(factors) if now is True else jax.lax.cond(now, grown, lambda f: f, factors)


def _accumulate(
    stack: Stack, factors: AnyFactors, gradients: jax.Array, finite: jax.Array, b2: Any
) -> AnyFactors:
    """L_i ← b2·L_i + (1 − b2)·G₍ᵢ₎G₍ᵢ₎ᵀ, or a plain sum for None, of the finite blocks."""
    keep, add = (1.0, 1.0) if b2 is None else (b2, 1 - b2)
    own = _triangles.of_first(stack.order)

    def one(statistics, g, is_finite):
        squares = jnp.stack([_unfolded_square(g, axis) for axis in stack.axes])  # (f, n, n)
        squares = jnp.pad(squares, ((0, 0), (0, 0), (0, 1)))
        grown = (keep * statistics + add * squares).astype(statistics.dtype)
        return jnp.where(own[None] & is_finite, grown, statistics)

    weight = jnp.ones_like(factors.weight) if b2 is None else keep * factors.weight + add
    return factors._replace(
        statistics=_blocks.by_block(one, factors.statistics, (gradients, finite)),
        weight=jnp.where(finite, weight, factors.weight).astype(factors.weight.dtype),
    )


def _unfolded_square(g: jax.Array, axis: int) -> jax.Array:
    """G₍ᵢ₎G₍ᵢ₎ᵀ of one block, (n, n)."""
    others = [i for i in range(g.ndim) if i != axis]
    return jnp.tensordot(g, g, (others, others), precision=jax.lax.Precision.HIGHEST)


def snapshot(factors: AnyFactors) -> AnyFactors:
    """Keeps the statistic of this moment, bias-corrected, as the one whose roots are begun."""
    running = _triangles.first(factors.statistics)
    return factors._replace(statistics=_triangles.pack(running, average(factors)))


def average(factors: Factors) -> jax.Array:
    """The statistics of this moment, bias-corrected, (b, f, n, n)."""
    return _triangles.first(factors.statistics) / _gathered(factors)[:, None, None, None]


def _gathered(factors: Any) -> jax.Array:
    """The weight to divide a statistic by, (b,); 1 where nothing was gathered."""
    return jnp.where(factors.weight > 0, factors.weight, 1)


def precondition(
    parts: Sequence[tuple[Stack, Factors]], momentum: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """M ×₁ P₁ ×₂ P₂ … for each block of a group, its norm, and which blocks have a root at all.

    P is the root in use, as adopted or corrected since; a factor without one takes the scalar
    (tr L/n)^(−1/p).
    """
    stacks = [stack for stack, _ in parts]
    packed = [f.roots if f.corrected is None else f.corrected for _, f in parts]
    scales = [_scale(stack, factors) for stack, factors in parts]
    ages = [factors.age for _, factors in parts]

    def one(m, roots, scales, ages):
        for stack, root, scale, age in zip(stacks, roots, scales, ages, strict=True):
            for i, axis in enumerate(stack.axes):
                product = multiply(root[i].astype(m.dtype), m, axis)
                m = jnp.where(age[i] >= 0, product, scale[i].astype(m.dtype) * m)
        return m, _layers.safe_norms(m, 0).reshape(())

    def in_place(momentum, packed, scales, ages):
        def step(b, carry):
            momentum, norms = carry
            roots = [_roots_of(s, x, b) for s, x in zip(stacks, packed, strict=True)]
            m, norm = one(momentum[b], roots, [x[b] for x in scales], [x[b] for x in ages])
            return momentum.at[b].set(m), norms.at[b].set(norm)

        start = momentum, jnp.zeros(len(momentum), momentum.dtype)
        start = [_blocks.varying_like(x, (momentum, packed, scales, ages)) for x in start]
        return jax.lax.fori_loop(0, len(momentum), step, tuple(start))

    def batched(momentum, packed, scales, ages):
        roots = [
            _triangles.unpack_pairs(x, s.factors).reshape(s.length, -1, s.order, s.order)
            for s, x in zip(stacks, packed, strict=True)
        ]
        return jax.vmap(one)(momentum, roots, scales, ages)

    directions, norms = jax.lax.platform_dependent(
        momentum, packed, scales, ages, cpu=in_place, default=batched
    )
    return directions, norms, (jnp.concatenate(ages, axis=1) >= 0).any(axis=1)


def _roots_of(stack: Stack, packed: jax.Array, b: jax.Array) -> list[jax.Array]:
    """The roots of block b."""
    count = len(stack.axes)
    if count % 2 == 0:
        pairs = [packed[b * (count // 2) + i] for i in range(count // 2)]
        return [half(x) for x in pairs for half in (_triangles.first, _triangles.second)]
    numbers = [b * count + i for i in range(count)]
    return [
        jnp.where(k % 2 == 0, _triangles.first(packed[k // 2]), _triangles.second(packed[k // 2]))
        for k in numbers
    ]


def _scale(stack: Stack, factors: Factors) -> jax.Array:
    """(tr L/n)^(−1/p) of each factor, (b, f); 0 where L is zero."""
    diagonal = jnp.diagonal(factors.statistics, axis1=-2, axis2=-1)
    mean = diagonal.mean(-1) / _gathered(factors)[:, None]
    return jnp.where(mean > 0, jnp.where(mean > 0, mean, 1) ** (-1 / stack.exponent), 0)


def multiply(matrix: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """matrix ×ᵢ x: the product along one axis."""
    letters = string.ascii_lowercase[: x.ndim]
    result = letters.replace(letters[axis], "z")
    return jnp.einsum(
        f"z{letters[axis]},{letters}->{result}", matrix, x, precision=jax.lax.Precision.HIGHEST
    )
