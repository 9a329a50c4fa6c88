"""Layers of a parameter tree: readable paths, stacked layers, one norm per layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from optax_zoo import _checks, _moments

# An int, a prefix pytree of ints, a callable (path, leaf) -> int, or None for 0.
LayerAxes = Any


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A key path as strings, the same in `init` and `update` of an `nnx.Optimizer`.

    NNX shows variables in `init`, whose leaf is their attribute `value`, and bare arrays in
    `update`.
    """
    entries = [jax.tree_util.keystr((entry,), simple=True) for entry in path]
    is_variable = bool(path) and path[-1] == jax.tree_util.GetAttrKey("value")
    return tuple(entries[:-1] if is_variable else entries)


def joined(name: tuple[str, ...]) -> str:
    """A path as one readable string; that of a bare array is empty."""
    return "/".join(name) or "()"


def check_layer_axes(layer_axes: LayerAxes) -> None:
    """Raises if `layer_axes` is an array: it fixes shapes and cannot be traced."""
    if layer_axes is None or callable(layer_axes):
        return
    for leaf in jax.tree.leaves(layer_axes):
        _check_count(leaf)


def _check_count(count: Any) -> None:
    _checks.check_integer(
        "layer_axes", count, at_least=0, remedy="give the number of leading axes that count layers"
    )


def leading_axes(layer_axes: LayerAxes, tree: Any) -> list[int]:
    """How many leading axes of each leaf count independent layers, in leaf order.

    Args:
      layer_axes: An int for all leaves, a prefix pytree of ints, a callable
        `(path, leaf) -> int`, or None for 0.
      tree: The parameters.

    Returns:
      One int per leaf.

    Raises:
      ValueError: If the prefix does not fit or a leaf has fewer axes.
    """
    with_paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    if layer_axes is None or not with_paths:
        return [0] * len(with_paths)
    counts: list[Any]
    if callable(layer_axes):
        counts = [layer_axes(path_names(path), leaf) for path, leaf in with_paths]
        for count in counts:
            _check_count(count)
    else:
        counts = jax.tree.leaves(
            _checks.broadcast_prefix("layer_axes", layer_axes, tree, what="ints")
        )
    for (path, leaf), count in zip(with_paths, counts, strict=True):
        if count > jnp.ndim(leaf):
            raise ValueError(
                f"layer_axes is {count} for the parameter {joined(path_names(path))} of "
                f"shape {jnp.shape(leaf)}; give it at most {jnp.ndim(leaf)}, by a prefix pytree "
                "or a callable (path, leaf) -> int"
            )
    return counts


def one_per_leaf(tree: Any, dtype: Any = jnp.float32) -> jax.Array:
    """A 1 for each leaf, the start of what `update` makes of all leaves together.

    Inside `jax.shard_map` it varies over the axes that a leaf varies over, as that will, so that
    the state goes round a loop.
    """
    return jnp.array([_one(x, dtype) for x in jax.tree.leaves(tree)], dtype)


def _one(x: Any, dtype: Any) -> jax.Array:
    sharding = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.is_fully_replicated:
        # From 0.11 on JAX gives it the leaf's sharding, which may be of too many axes.
        return jnp.ones((), dtype, device=NamedSharding(sharding.mesh, PartitionSpec()))
    return jnp.ones_like(x, dtype, shape=())


def safe_norms(x: jax.Array, layer_axes: int) -> jax.Array:
    """`norms` where squares may overflow or vanish: relative to each slice's largest entry."""
    if not x.size:
        return norms(x, layer_axes)
    axes = tuple(range(layer_axes, x.ndim))
    unit = _unit(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    return unit * norms(x / unit, layer_axes)


def joined_norms(norms: jax.Array, owner: np.ndarray) -> jax.Array:
    """The norm of what each owner's parts make up, from their norms, safe against overflow."""
    count = int(owner.max()) + 1
    unit = _unit(jax.ops.segment_max(norms, owner, count))
    squares = jax.ops.segment_sum((norms / unit[owner]) ** 2, owner, count)
    return unit * _moments.root(squares)


def _unit(largest: jax.Array) -> jax.Array:
    """What to measure in so that squares neither overflow nor vanish, a constant; 1 if nothing."""
    largest = jax.lax.stop_gradient(largest)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def norms(x: jax.Array, layer_axes: int) -> jax.Array:
    """|x| of each layer slice, shaped to broadcast against `x`, with gradient 0 at 0."""
    return _moments.root(squared_norms(x, layer_axes))


def squared_norms(x: jax.Array, layer_axes: int) -> jax.Array:
    """|x|² of each layer slice, shaped to broadcast against `x`."""
    axes = tuple(range(layer_axes, x.ndim))
    return jnp.sum(_moments.abs_sq(x), axis=axes, keepdims=True)
