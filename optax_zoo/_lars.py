"""LARS: layer-wise trust ratios inside momentum SGD."""

from typing import Any

import optax

from optax_zoo import _checks, _layers, _links
from optax_zoo._layerwise import check_clip, scale_by_layerwise_trust_ratio


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Any = 0.001,
    eps: Any = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Any = 0.9,
    nesterov: bool = False,
    *,
    trust_clip: tuple[Any, Any] | None = None,
    layer_axes: _layers.LayerAxes = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LARS: momentum SGD whose layers all move in proportion to their weights.

    .. math::

      v_t &= \mu v_{t-1} + \eta_t r_t (g_t + \lambda \theta_{t-1}) \\
      \theta_t &= \theta_{t-1} - v_t

    with the ratio :math:`r_t` of :func:`scale_by_layerwise_trust_ratio`; learning rate and ratio
    are inside the velocity, as in the paper. Takes the arguments of `optax.lars` and differs from
    it where `weight_decay` is not 0: this is the paper's ratio (and the TPU code's),
    :math:`\|g\| + \lambda\|\theta\|` below the line, Optax has :math:`\|g + \lambda\theta\|`.

    A layer that starts at exactly 0 takes full steps :math:`\eta g`, and :math:`\eta` may be 10
    and more here: mask biases and normalisations out, as the papers do.

    Args:
      learning_rate: A number or a schedule; see :func:`large_batch_schedule`.
      weight_decay: :math:`\lambda`, inside ratio and velocity; a number or a schedule.
      weight_decay_mask: Where to decay: a prefix pytree of bools, or a callable on the
        parameters (in `static_args` of `optax.inject_hyperparams`).
      trust_coefficient: :math:`c` of the ratio.
      eps: Added to the ratio's denominator.
      trust_ratio_mask: Where the ratio applies; elsewhere it is 1.
      momentum: :math:`\mu` in [0, 1).
      nesterov: Nesterov's form of the momentum; a Python bool.
      trust_clip: Bounds (lo, hi) of the weights' norm in the ratio; None: no bounds.
      layer_axes: Leading axes that count layers, see :func:`scale_by_layerwise_trust_ratio`.

    Returns:
      The chain trust ratio, learning rate, momentum; velocity in float32 or wider. `update` needs
      the parameters.

    Raises:
      ValueError: If an argument is out of range or, at `init`, does not fit the parameters.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_zoo as zoo
      >>> matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
      >>> tx = zoo.lars(10.0, 1e-4, matrices, trust_ratio_mask=matrices)
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["w"][0])
      [-0.01 -0.01]

    References:
      You et al., `Large Batch Training of Convolutional Networks
      <https://arxiv.org/abs/1708.03888>`_, 2017, Algorithm 1.
    """
    _checks.check_decay_rate("momentum", momentum, 0.9)
    _checks.check_flag("nesterov", nesterov)
    check_clip(trust_clip, "trust_clip")
    return optax.chain(
        scale_by_layerwise_trust_ratio(
            trust_coefficient,
            eps,
            weight_decay=weight_decay,
            weight_decay_mask=weight_decay_mask,
            clip=trust_clip,
            mask=_checks.fitted_mask("trust_ratio_mask", trust_ratio_mask),
            layer_axes=layer_axes,
        ),
        _links.learning_rate_link(learning_rate, usual="10.0"),
        _links.in_float32(optax.trace(momentum, nesterov), optax.TraceState, "trace"),
    )
