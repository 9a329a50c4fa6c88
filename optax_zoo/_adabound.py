"""AdaBound, AMSBound and AdaBoundW: from Adam to SGD between closing bounds."""

from typing import Any

import optax

from optax_zoo import _links
from optax_zoo._dynamic_bounds import Bounds, scale_by_dynamic_bounds


def adabound(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    final_lr: Any = 0.1,
    *,
    base_lr: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 1e-3,
    eps: Any = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    bounds: Bounds | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBound: starts as Adam, ends as SGD with momentum.

    .. math::

      \theta_t = \theta_{t-1} - u_t, \qquad g_t \leftarrow g_t + \lambda \theta_{t-1}

    with :math:`u_t` from :func:`scale_by_dynamic_bounds`, whose arguments it shares.

    Args:
      learning_rate: Rate of the Adam-like start; a schedule needs `base_lr`.
      final_lr: Rate of the SGD-like end.
      base_lr: The rate that `final_lr` belongs to; None: `learning_rate`, under
        `optax.inject_hyperparams` the largest so far.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      gamma: How fast the bounds close.
      eps: Added to the root of the second moment.
      weight_decay: L2 decay :math:`\lambda`, added to the gradient; at the number 0 `update`
        needs no parameters.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (in
        `static_args` of `optax.inject_hyperparams`).
      bounds: A callable of the 1-based step that gives (lower, upper).

    Returns:
      The chain decay, bounded direction, sign.

    Raises:
      ValueError: If an argument is out of range, or a schedule comes without `base_lr`.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> drops = optax.schedules.piecewise_constant_schedule(1e-3, {150: 0.1})
      >>> tx = zoo.adabound(drops, base_lr=1e-3, weight_decay=5e-4)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(params), params)
      >>> print(updates)
      [-0.001 -0.001 -0.001]

    References:
      Luo et al., `Adaptive Gradient Methods with Dynamic Bound of Learning Rate
      <https://arxiv.org/abs/1902.09843>`_, ICLR 2019, Algorithm 2.
    """
    return optax.chain(
        _links.decay_link(weight_decay, mask, who="adabound"),
        scale_by_dynamic_bounds(
            learning_rate,
            final_lr,
            base_lr=base_lr,
            b1=b1,
            b2=b2,
            gamma=gamma,
            eps=eps,
            bounds=bounds,
        ),
        optax.scale(-1.0),
    )


def amsbound(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    final_lr: Any = 0.1,
    *,
    base_lr: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 1e-3,
    eps: Any = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    bounds: Bounds | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSBound: AdaBound on the running maximum of the second moment.

    The maximum is taken of the raw moment, before any bias correction, as in the released code.
    Everything else is :func:`adabound`'s.

    Args:
      learning_rate: As in :func:`adabound`, like all other arguments.
      final_lr: Rate of the SGD-like end.
      base_lr: The rate that `final_lr` belongs to.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      gamma: How fast the bounds close.
      eps: Added to the root of the second moment.
      weight_decay: L2 decay, added to the gradient.
      mask: Where to decay.
      bounds: A callable of the 1-based step that gives (lower, upper).

    Returns:
      The chain decay, bounded direction, sign.

    Raises:
      ValueError: If an argument is out of range, or a schedule comes without `base_lr`.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.amsbound(1e-3, final_lr=0.1)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
      >>> print(updates)
      [-0.001 -0.001 -0.001]

    References:
      Luo et al., `Adaptive Gradient Methods with Dynamic Bound of Learning Rate
      <https://arxiv.org/abs/1902.09843>`_, ICLR 2019, Algorithm 3.
    """
    return optax.chain(
        _links.decay_link(weight_decay, mask, who="amsbound"),
        scale_by_dynamic_bounds(
            learning_rate,
            final_lr,
            base_lr=base_lr,
            b1=b1,
            b2=b2,
            gamma=gamma,
            eps=eps,
            amsbound=True,
            bounds=bounds,
        ),
        optax.scale(-1.0),
    )


def adaboundw(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    final_lr: Any = 0.1,
    *,
    base_lr: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 1e-3,
    eps: Any = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    bounds: Bounds | None = None,
    amsbound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBoundW: AdaBound with decoupled decay that no learning rate multiplies.

    .. math::

      \theta_t = \theta_{t-1} - u_t - \lambda \theta_{t-1}

    with :math:`u_t` from :func:`scale_by_dynamic_bounds`. As released, :math:`\lambda` is used as
    it is, whatever the learning rate and its schedule: AdamW's decay times AdamW's learning rate
    is the order of magnitude, not AdamW's decay.

    Args:
      learning_rate: As in :func:`adabound`, like all arguments but `weight_decay` and `amsbound`.
      final_lr: Rate of the SGD-like end.
      base_lr: The rate that `final_lr` belongs to.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      gamma: How fast the bounds close.
      eps: Added to the root of the second moment.
      weight_decay: Share of the parameters taken off at each step.
      mask: Where to decay.
      bounds: A callable of the 1-based step that gives (lower, upper).
      amsbound: Keep the running maximum of the second moment; a Python bool.

    Returns:
      The chain bounded direction, decay, sign.

    Raises:
      ValueError: If an argument is out of range, or a schedule comes without `base_lr`.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.adaboundw(1e-3, weight_decay=1e-5)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
      >>> print(updates)
      [-0.00101 -0.00101]

    References:
      Luo et al., `Adaptive Gradient Methods with Dynamic Bound of Learning Rate
      <https://arxiv.org/abs/1902.09843>`_, ICLR 2019; the class AdaBoundW of the authors' code.
    """
    return optax.chain(
        scale_by_dynamic_bounds(
            learning_rate,
            final_lr,
            base_lr=base_lr,
            b1=b1,
            b2=b2,
            gamma=gamma,
            eps=eps,
            amsbound=amsbound,
            bounds=bounds,
        ),
        _links.decay_link(weight_decay, mask, who="adaboundw"),
        optax.scale(-1.0),
    )
