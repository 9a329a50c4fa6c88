"""Eigenbases of the snapshots, and moments that are carried from one basis to the next."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _blocks, _host_roots, _matrix_roots, _triangles
from optax_zoo._shampoo import _items, _statistics
from optax_zoo._shampoo._refresh import Delivery
from optax_zoo._shampoo._statistics import Stack

# The largest error of a basis in use. Healthy ones have 1e-14 in float64, 1e-5 in float32.
_CERTIFIED = 1e-3


class Bases(NamedTuple):
    """The state of a stack of factors whose eigenbases are in use.

    Attributes:
      statistics: (b, f, n, n + 1), the running statistic L and the snapshot whose basis is next
        to be adopted, a triangle each.
      weight: (b,), the weight that L has gathered; L / weight is the average.
      bases: (b, f, n, n), the adopted eigenvectors as columns; the identity before the first.
      age: (b, f), steps since the basis's snapshot, -1 before the first.
      residual: (b, f), the error of the basis in use.
      condition: (b, f), of the snapshot behind it.
      failures: (b, f), refreshes that gave no usable basis.
      blocks: As in Shampoo's `Factors`.
    """

    statistics: jax.Array
    weight: jax.Array
    bases: jax.Array
    age: jax.Array
    residual: jax.Array
    condition: jax.Array
    failures: jax.Array
    blocks: Any = None

    @property
    def iterations(self) -> jax.Array:
        """For the report that Shampoo's iterations share: none."""
        return jnp.zeros_like(self.failures)


class Moments(NamedTuple):
    """Adam's moments of a group of blocks, (b, *sizes), in the bases in use.

    Attributes:
      mu: First moment; None for `b1=0`.
      nu: Second moment.
      blocks: As in Shampoo's `Factors`.
    """

    mu: jax.Array | None
    nu: jax.Array
    blocks: Any = None


class States(NamedTuple):
    """What a refresh changes.

    Attributes:
      bases: One entry for each stack of factors.
      moments: One entry for each group of blocks.
    """

    bases: tuple[Bases, ...]
    moments: tuple[Moments, ...]


def init(stack: Stack, dtype: Any, basis_dtype: Any, blocks: Any) -> Bases:
    """No statistics yet; the bases are those that the parameters came in."""
    n, shape = stack.order, (stack.length, len(stack.axes))
    return Bases(
        statistics=jnp.zeros((*shape, n, n + 1), dtype),
        weight=jnp.zeros(stack.length, dtype),
        bases=jnp.tile(jnp.eye(n, dtype=basis_dtype or dtype), (*shape, 1, 1)),
        age=jnp.full(shape, -1, jnp.int32),
        residual=jnp.zeros(shape, jnp.float32),
        condition=jnp.zeros(shape, jnp.float32),
        failures=jnp.zeros(shape, jnp.int32),
        blocks=blocks,
    )


def taken_over(own: Bases, basis_dtype: Any) -> Bases:
    """Bases that were kept in another dtype."""
    return own._replace(bases=own.bases.astype(basis_dtype or own.statistics.dtype))


def first_moments(shape: tuple[int, ...], dtype: Any, blocks: Any, *, has_mu: bool) -> Moments:
    """Zeros."""
    return Moments(jnp.zeros(shape, dtype) if has_mu else None, jnp.zeros(shape, dtype), blocks)


def along_axes(parts: Sequence[tuple[Stack, jax.Array]], blocks: jax.Array) -> jax.Array:
    """X ×₁ A₁ ×₂ A₂ … for each block X of a group; matrices come by stacks, (b, f, n, n)."""
    stacks = [stack for stack, _ in parts]

    def one(x, *matrices):
        for stack, own in zip(stacks, matrices, strict=True):
            for i, axis in enumerate(stack.axes):
                x = _statistics.multiply(own[i].astype(x.dtype), x, axis)
        return x

    return _blocks.by_block(one, blocks, [matrices for _, matrices in parts])


def without_noise_derivatives(directions: jax.Array, nu: jax.Array) -> jax.Array:
    """The directions of a group, for derivatives constant where only rounding made them.

    In the bases of its own gradient most of a block is 0 but for rounding, and the slope of Adam's
    quotient is up to 1/ε there, of either sign. As that counts a root of the second moment below
    eps^(3/4) times the block's largest, 6e-6 of it in float32.
    """
    largest = nu.max(tuple(range(1, nu.ndim)), keepdims=True)
    rounding = nu <= float(jnp.finfo(nu.dtype).eps) ** 1.5 * largest
    return jnp.where(rounding, jax.lax.stop_gradient(directions), directions)


def into(parts: Sequence[tuple[Stack, Bases]], blocks: jax.Array) -> jax.Array:
    """X ×₁ Q₁ᵀ ×₂ Q₂ᵀ …: coordinates in the bases."""
    return along_axes([(stack, own.bases.swapaxes(-1, -2)) for stack, own in parts], blocks)


def back(parts: Sequence[tuple[Stack, Bases]], blocks: jax.Array) -> jax.Array:
    """X ×₁ Q₁ ×₂ Q₂ …: the coordinates that the parameters came in."""
    return along_axes([(stack, own.bases) for stack, own in parts], blocks)


def carried(parts: Sequence[tuple[Stack, jax.Array]], moments: Moments) -> Moments:
    """Moments in the new bases, given T = Q_newᵀ Q_old for each factor.

    The first moment is turned exactly. Of the second only variances are known, so coordinates
    count as uncorrelated: squared entries of T average them, and their total stays.
    """
    squares = [(stack, turn * turn) for stack, turn in parts]
    return moments._replace(
        mu=None if moments.mu is None else along_axes(parts, moments.mu),
        nu=along_axes(squares, moments.nu),
    )


@dataclasses.dataclass(frozen=True)
class HostBases:
    """The eigenbases of all stacks as work for `_host`: float64, whatever the session's precision.

    Attributes:
      stacks: For each stack of factors (n, b·f, the bases' dtype by name).
    """

    stacks: tuple[tuple[int, int, str], ...]

    @property
    def kinds(self) -> _items.Kinds:
        """For each stack of factors their order and number."""
        return [(n, count) for n, count, _ in self.stacks]

    def split(self, arrays: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """Copies of a few snapshots each."""
        return _items.deal(self.kinds, arrays)

    def run(self, item: tuple[int, np.ndarray]) -> Delivery:
        """The bases of one item."""
        index, packed = item
        dtype = jnp.dtype(self.stacks[index][2])
        smallest = float(np.finfo(packed.dtype).eps)
        with np.errstate(all="ignore"):  # what overflows is not certified
            parts = [_alive_decomposed(some, smallest) for some in _items.calls(packed)]
            bases, record = (np.concatenate(x) for x in zip(*parts, strict=True))
            return Delivery(bases.astype(dtype), record)

    def join(self, results: list[Delivery]) -> tuple[Delivery, ...]:
        """One delivery for each stack."""
        return _items.collect(self.kinds, results)


def _alive_decomposed(matrices: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """`_decomposed` without work for places that have no block, or a block without gradients."""
    alive = np.asarray(matrices.any((1, 2)))
    bases = np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape).copy()
    record = np.zeros((len(matrices), 3), np.float32)
    if alive.any():
        bases[alive], record[alive] = _decomposed(np, matrices[alive], smallest)
    return bases, record


def _decomposed(xp: Any, matrices: Any, smallest: float) -> tuple[Any, Any]:
    """(k, n, n) -> eigenvectors as columns and records (k, 3): certified, residual, condition.

    Eigenvalues below `smallest` · λmax count as that: they are rounding errors.
    """
    largest = xp.abs(matrices).max((1, 2))
    usable = xp.isfinite(largest) & (largest > 0)
    identity = xp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    unit = xp.where(usable, largest, 1)[:, None, None]
    scaled = xp.where(usable[:, None, None], matrices / unit, identity)
    eigh = _host_roots.eigh if xp is np else jax.vmap(_matrix_roots.eigh)
    values, bases = eigh(scaled)
    top = values[:, -1]
    residual = _error(xp, scaled, bases, top)
    good = usable & (residual <= _CERTIFIED)
    condition = xp.where(good, 1 / xp.maximum(values[:, 0] / xp.where(good, top, 1), smallest), 0)
    record = xp.stack([good, residual, condition], 1).astype(xp.float32)
    return xp.where(good[:, None, None], bases, identity), record


def _error(xp: Any, matrices: Any, bases: Any, top: Any) -> Any:
    """The larger of max|offdiagonal of QᵀAQ| / λmax and max|QᵀQ − I|, (k,)."""

    def product(a, b):
        return xp.matmul(a, b) if xp is np else xp.matmul(a, b, precision="highest")

    identity = xp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    transposed = bases.swapaxes(1, 2)
    turned = product(transposed, product(matrices, bases)) * (1 - identity)
    rotated = xp.abs(turned).max((1, 2)) / top
    return xp.maximum(rotated, xp.abs(product(transposed, bases) - identity).max((1, 2)))


@dataclasses.dataclass(frozen=True)
class BasesRenewal:
    """The renewal of SOAP's bases, and of the moments in them.

    A delivery holds the bases, (b·f, n, n), rounded to their dtype after they were certified, and
    the record (b·f, 3): whether they are, residual, condition.

    Attributes:
      stacks: The stacks of factors.
      dtypes: What each stack's bases are kept in, by name.
    """

    stacks: Sequence[Stack]
    dtypes: tuple[str, ...]

    @property
    def task(self) -> HostBases:
        """All bases as work for the host."""
        kinds = zip(self.stacks, self.dtypes, strict=True)
        return HostBases(tuple((s.order, s.factors, dtype) for s, dtype in kinds))

    def deliveries(self) -> Sequence[Delivery]:
        """Shapes and dtypes of what the task gives."""
        return [
            Delivery(
                jax.ShapeDtypeStruct((s.factors, s.order, s.order), jnp.dtype(dtype)),
                jax.ShapeDtypeStruct((s.factors, 3), jnp.float32),
            )
            for s, dtype in zip(self.stacks, self.dtypes, strict=True)
        ]

    def statistics(self, states: States) -> list[jax.Array]:
        """The packed statistics and snapshots of each stack."""
        return [bases.statistics for bases in states.bases]

    def snapshot(self, states: States) -> States:
        """The states with this moment's statistics as the snapshots."""
        return states._replace(bases=tuple(map(_statistics.snapshot, states.bases)))

    def on_device(self, states: States) -> list[Delivery]:
        """The task's function inside the compiled step, in the statistics' dtype."""
        return [_on_device(s, own) for s, own in zip(self.stacks, states.bases, strict=True)]

    def adopt(self, states: States, deliveries: Sequence[Delivery], age: Any) -> States:
        """Certified bases replace the old ones, and the moments move into them."""
        found = [
            _adopted(*stack_and_more, age)
            for stack_and_more in zip(self.stacks, states.bases, deliveries, strict=True)
        ]
        moments = []
        for index, own in enumerate(states.moments):
            pairs = zip(self.stacks, found, strict=True)
            turns = [(stack, turn) for stack, (_, turn) in pairs if stack.group == index]
            moments.append(carried(turns, own))
        return States(tuple(bases for bases, _ in found), tuple(moments))


def _on_device(stack: Stack, own: Bases) -> Delivery:
    matrices = _triangles.second(own.statistics).reshape(-1, stack.order, stack.order)
    bases, record = _decomposed(jnp, matrices, float(jnp.finfo(matrices.dtype).eps))
    return Delivery(bases.astype(own.bases.dtype), record)


def _adopted(stack: Stack, own: Bases, delivery: Delivery, age: Any) -> tuple[Bases, jax.Array]:
    """The bases after adoption, and T = Q_newᵀ Q_old, (b, f, n, n)."""
    shape = stack.length, len(stack.axes)
    found, residual, condition = delivery.record.reshape(*shape, 3).transpose(2, 0, 1)
    good = found > 0
    delivered = delivery.matrices.reshape(own.bases.shape)
    bases = jnp.where(good[..., None, None], delivered, own.bases)
    dtype = own.statistics.dtype
    turn = jnp.einsum(
        "bfji,bfjk->bfik",
        bases.astype(dtype),
        own.bases.astype(dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    kept = jnp.eye(stack.order, dtype=dtype)[None, None]
    return own._replace(
        bases=bases,
        age=jnp.where(good, jnp.asarray(age, jnp.int32), own.age),
        residual=jnp.where(good, residual, own.residual),
        condition=jnp.where(good, condition, own.condition),
        failures=own.failures + (~good).astype(jnp.int32),
    ), jnp.where(good[..., None, None], turn, kept)
