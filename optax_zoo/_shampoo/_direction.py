"""What surrounds the roots in one step: finite gradients, momentum, the graft's norm."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _blocks, _moments, _routes
from optax_zoo._shampoo._statistics import Stack

Arrays = Sequence[jax.Array]


class LayerReport(NamedTuple):
    """How the roots of each leaf are doing, one entry for each in tree order.

    Attributes:
      residual: Largest max|X^p A − I| of its roots in use, float32.
      age: Steps since the oldest snapshot whose root is in use, int32; -1: none yet.
      iterations: Most iterations that one of its roots took, int32.
      condition: Largest condition of its ridged statistics, estimated, float32.
      failures: Refreshes that gave no usable root, over all its factors, int32.
      skipped: Gradients of its blocks that were not finite and counted as zero, int32.
      drift: Largest max|W − I| at the last drift correction, float32; None where there is none.
    """

    residual: jax.Array
    age: jax.Array
    iterations: jax.Array
    condition: jax.Array
    failures: jax.Array
    skipped: jax.Array
    drift: Any = None


def first_report(leaves: int, *, drifts: bool = False) -> LayerReport:
    """The report before the first step, every array its own."""
    whole, real = jnp.int32, jnp.float32
    kinds = (real, whole, whole, real, whole, whole, *[real] * drifts)
    return LayerReport(*(jnp.zeros(leaves, kind) for kind in kinds))._replace(
        age=jnp.full(leaves, -1, whole)
    )


def report(
    plan: _blocks.Plan,
    stacks: Sequence[Stack],
    states: Sequence[Any],
    *,
    drifts: bool = False,
    routes: _routes.Routes | None = None,
) -> LayerReport:
    """The worst of each leaf's factors, no gradients skipped; with routes, of a device's own."""
    found = first_report(len(plan.cores), drifts=drifts)
    worst_of = ("residual", "age", "iterations", "condition", *["drift"] * drifts)
    leaves = [jnp.array(group.leaf_of_block, jnp.int32) for group in plan.groups]
    if routes is not None:
        # Beyond the last leaf, so of none, where there is no block.
        leaves = [
            jnp.append(leaf, len(plan.cores))[block]
            for leaf, block in zip(leaves, routes.own(routes.tables), strict=True)
        ]
    for stack, factors in zip(stacks, states, strict=True):
        leaf = leaves[stack.group]
        for name in worst_of:
            worst = getattr(found, name).at[leaf].max(getattr(factors, name).max(axis=1))
            found = found._replace(**{name: worst})
        failures = found.failures.at[leaf].add(factors.failures.sum(axis=1, dtype=jnp.int32))
        found = found._replace(failures=failures)
    return found


def joint_report(own: LayerReport, axes: tuple[str, ...]) -> LayerReport:
    """The report over all devices of these mesh axes."""
    worst = jax.tree.map(lambda x: jax.lax.pmax(x, axes), own)
    return worst._replace(failures=jax.lax.psum(own.failures, axes))


def finite_parts(
    plan: _blocks.Plan,
    layer_axes: Sequence[int],
    gradients: Arrays,
    routes: _routes.Routes | None,
) -> tuple[
    list[jax.Array],
    list[jax.Array],
    list[jax.Array],
    dict[int, jax.Array],
    jax.Array,
    jax.Array,
]:
    """Which blocks have finite squares: 1e30 squares to inf in float32.

    Returns:
      The stacks of blocks, as their owners have them; for each stack which of its blocks are
      finite, there and in the plan's order; for each leaf that is not preconditioned a mask that
      broadcasts against it; whether all is finite; and for each leaf how many blocks were not. A
      leaf that is not preconditioned counts each layer slice as a block.
    """
    if routes is None or not plan.groups:
        stacks = [_blocks.gather(plan, group, gradients) for group in plan.groups]
    else:
        stacks = _routes.gather(routes, list(gradients))
    finite = [jnp.isfinite((x * x).sum(tuple(range(1, x.ndim)))) for x in stacks]
    in_order = list(finite) if routes is None else routes.in_order(finite)
    leaf_of_flag = [np.array(group.leaf_of_block) for group in plan.groups]
    flags, masks = list(in_order), {}
    for index, (g, axes) in enumerate(zip(gradients, layer_axes, strict=True)):
        if plan.cores[index] is None:
            mask = jnp.isfinite(g * g).all(tuple(range(axes, g.ndim)), keepdims=True)
            masks[index] = mask
            flags.append(_blocks.everywhere(mask).reshape(-1))
            leaf_of_flag.append(np.full(mask.size, index))
    flags = jnp.concatenate(flags)
    skipped = jnp.zeros(len(gradients), jnp.int32)
    skipped = skipped.at[np.concatenate(leaf_of_flag)].add((~flags).astype(jnp.int32))
    return stacks, finite, in_order, masks, flags.all(), skipped


def finite_blocks(
    plan: _blocks.Plan,
    layer_axes: Sequence[int],
    gradients: Arrays,
    routes: _routes.Routes | None,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array], jax.Array]:
    """Replaces blocks by zeros that `finite_parts` finds not finite.

    Returns:
      The gradients, the stacks of blocks as they came, for each stack which of its blocks are
      finite, and for each leaf how many were not.
    """
    stacks, finite, in_order, masks, whole, skipped = finite_parts(
        plan, layer_axes, gradients, routes
    )

    def everything():
        if routes is not None:
            return {i: jnp.full_like(gradients[i], True, bool) for i in plan.layers}
        return {
            i: _blocks.like(gradients[i], jnp.broadcast_to(whole, gradients[i].shape))
            for i in plan.layers
        }

    def what_is_finite():
        if routes is not None:
            spread = routes.masks(in_order)
        else:
            spread = {
                i: _blocks.varying_like(mask, whole)
                for i, mask in _blocks.spread(plan, in_order).items()
            }
        return {i: _blocks.like(gradients[i], mask) for i, mask in spread.items()}

    if plan.groups:
        # Rare, so behind a branch: within the arithmetic of every leaf it doubled the time to
        # compile. And a branch that returns the gradients themselves copies them.
        masks |= jax.lax.cond(whole, everything, what_is_finite)
    cleaned = [jnp.where(masks[i], g, 0) for i, g in enumerate(gradients)]
    return cleaned, stacks, finite, skipped


def momentum(
    gradients: Arrays, mu: Arrays, step: jax.Array, b1: Any, *, nesterov: bool
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The numerator of `optax.scale_by_adam`, and the new first moment."""
    new_mu = [_moments.ema(g, m, b1).astype(m.dtype) for g, m in zip(gradients, mu, strict=True)]
    correction = _moments.bias_correction(b1, step)
    if not nesterov:
        return [(m / correction).astype(m.dtype) for m in new_mu], new_mu
    ahead = b1 / _moments.bias_correction(b1, jnp.asarray(step, float) + 1)  # past int32's end
    return [
        (ahead * m + (1 - b1) / correction * g).astype(m.dtype)
        for m, g in zip(new_mu, gradients, strict=True)
    ], new_mu


def adam(
    momenta: Arrays, gradients: Arrays, nu: Arrays, step: jax.Array, b2: Any, eps: Any
) -> tuple[list[jax.Array], list[jax.Array]]:
    """`optax.scale_by_adam`'s update for these numerators, and the new second moment."""
    new_nu = [
        _moments.ema(g * g, v, b2).astype(v.dtype) for g, v in zip(gradients, nu, strict=True)
    ]
    correction = _moments.bias_correction(b2, step)
    return [
        (m / (_moments.root(v / correction) + eps)).astype(m.dtype)
        for m, v in zip(momenta, new_nu, strict=True)
    ], new_nu
