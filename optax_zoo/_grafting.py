"""Grafting: the direction of one transformation with the size of another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _layers, _moments


class GraftState(NamedTuple):
    """State of `graft`.

    Attributes:
      magnitude: State of the transformation that gives the size.
      direction: State of the transformation that gives the direction.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> state = zoo.graft(optax.identity(), zoo.scale_by_sign_momentum()).init(jnp.zeros(2))
      >>> print(state.direction.mu)
      [0. 0.]
    """

    magnitude: Any
    direction: Any


def graft(
    magnitude: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    *,
    layer_axes: _layers.LayerAxes = None,
    where: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes each layer's direction from one transformation, its norm from another.

    Both see the same gradients; with updates :math:`u` of `magnitude` and :math:`d` of
    `direction`, Euclidean norms per layer in float32 or wider,

    .. math:: \frac{\|u\|}{\|d\|}\, d

    and :math:`u` itself where :math:`\|d\|` is zero or not finite. The learning rate that was
    tuned for `magnitude` is then the one to start from.

    Args:
      magnitude: Gives the size of each layer's update.
      direction: Gives its direction.
      layer_axes: How many leading axes of a leaf count independent layers, each with a norm of
        its own: an int, a prefix pytree of ints or a callable `(path, leaf) -> int` (in
        `static_args` of `optax.inject_hyperparams`).
      where: The leaves that are grafted, a prefix pytree of bools or a callable on the updates;
        the others take `magnitude`'s update. None: all.

    Returns:
      A gradient transformation; extra arguments and parameters reach both. Updates keep their
      dtype.

    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If, at `init`, `where` or `layer_axes` does not fit.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = zoo.graft(optax.identity(), optax.scale_by_sign())
      >>> gradients = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(gradients, tx.init(gradients))
      >>> print(jnp.sign(updates), jnp.linalg.norm(updates).round(3))
      [1. 1.] 5.0

    References:
      Agarwal et al., `Disentangling Adaptive Gradient Methods from Learning Rates
      <https://arxiv.org/abs/2002.11803>`_, 2020.
    """
    _checks.check_transformation("magnitude", magnitude)
    _checks.check_transformation("direction", direction)
    _layers.check_layer_axes(layer_axes)
    fit_where = _checks.fitted_mask("where", where)
    magnitude = optax.with_extra_args_support(magnitude)
    direction = optax.with_extra_args_support(direction)

    def init(params):
        _checks.check_params(params, who="graft")
        fit_where(params)
        _layers.leading_axes(layer_axes, params)
        return GraftState(magnitude.init(params), direction.init(params))

    def update(updates, state, params=None, **extra_args):
        sizes, magnitude_state = magnitude.update(updates, state.magnitude, params, **extra_args)
        ways, direction_state = direction.update(updates, state.direction, params, **extra_args)
        leaves, structure = jax.tree.flatten(updates)
        grafted = [
            (_graft_leaf(u, d, axes) if is_grafted else u).astype(jnp.result_type(g))
            for g, u, d, is_grafted, axes in zip(
                leaves,
                structure.flatten_up_to(sizes),
                structure.flatten_up_to(ways),
                jax.tree.leaves(fit_where(updates)),
                _layers.leading_axes(layer_axes, updates),
                strict=True,
            )
        ]
        return structure.unflatten(grafted), GraftState(magnitude_state, direction_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _graft_leaf(magnitude: jax.Array, direction: jax.Array, layer_axes: int) -> jax.Array:
    u, d = _moments.widen(magnitude), _moments.widen(direction)
    inverse = inverse_norm(_layers.safe_norms(d, layer_axes))
    return with_norm_of(u, d, _layers.safe_norms(u, layer_axes), inverse)


def inverse_norm(norm: jax.Array) -> jax.Array:
    """1/|d|, or 0 where a direction of that norm cannot be used."""
    usable = (norm > 0) & jnp.isfinite(norm)
    inverse = 1 / jnp.where(usable, norm, 1)
    return jnp.where(usable & jnp.isfinite(inverse), inverse, 0)


def with_norm_of(
    magnitude: jax.Array, direction: jax.Array, u_norm: jax.Array, d_inverse: jax.Array
) -> jax.Array:
    """`direction` at the norm of `magnitude`; `magnitude` itself where `inverse_norm` is 0."""
    # Scaled to norm 1 first: a quotient of norms need not be representable.
    return jnp.where(d_inverse > 0, u_norm * (d_inverse * direction), magnitude)
