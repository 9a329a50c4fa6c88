"""Layer-wise trust ratios, the heart of LARS and LAMB."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _layers, _moments, _states


class LayerwiseTrustRatioState(NamedTuple):
    """State of `scale_by_layerwise_trust_ratio`.

    Attributes:
      count: Updates so far, int32, where `weight_decay` is a schedule; None otherwise.
      trust_ratio: Last ratio of each leaf in tree order, float32, the mean over its layer slices.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_layerwise_trust_ratio()
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> _, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init(params), params)
      >>> print(state.trust_ratio)
      [2.5]
    """

    count: Any
    trust_ratio: jax.Array


def scale_by_layerwise_trust_ratio(
    trust_coefficient: Any = 1.0,
    eps: Any = 0.0,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = True,
    clip: tuple[Any, Any] | None = None,
    mask: Any = True,
    layer_axes: _layers.LayerAxes = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each layer's update to the norm of its weights.

    For a layer with weights :math:`w` and incoming update :math:`u`, Euclidean norms in float32
    or wider,

    .. math::

      r = \frac{c\,\phi(\|w\|)}{\|u\| + \lambda \|w\| + \varepsilon}, \qquad
      u \leftarrow r (u + \lambda w)

    and :math:`r = 1` where a norm is zero (the decay is added all the same). The norms are taken
    apart, as in the LARS paper and Google's TPU code; `optax.lars` divides by
    :math:`\|u + \lambda w\|`. With the decay added before this link it is LAMB's ratio.

    Args:
      trust_coefficient: :math:`c`; the LARS paper uses 0.001, LAMB 1.
      eps: :math:`\varepsilon`, at least 0.
      weight_decay: :math:`\lambda` of the ratio and of the update; a number or a schedule.
      weight_decay_mask: Where :math:`\lambda` applies: a prefix pytree of bools, or a callable on
        the parameters.
      clip: Bounds (lo, hi) of :math:`\phi(\|w\|)`; None: no bounds.
      mask: Where the ratio applies; elsewhere it is 1. The papers leave out biases and the scales
        of normalisations.
      layer_axes: How many leading axes of a leaf count independent layers, each with a ratio of
        its own (layers stacked by `nn.scan`, heads, experts): an int, a prefix pytree of ints or
        a callable `(path, leaf) -> int`. Callables belong into `static_args` of
        `optax.inject_hyperparams`.

    Returns:
      A gradient transformation whose `update` needs the parameters. Updates keep their dtype.
      Norms of sharded parameters are global; inside `jax.shard_map` they are of what a device has,
      which suits whole layers, counted by `layer_axes`, and not parts of them.

    Raises:
      ValueError: If a number is out of range, `clip` is empty, or, at `init`, a mask or
        `layer_axes` does not fit; if `update` gets no parameters.
      TypeError: If an argument has the wrong type, or a parameter is not floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_layerwise_trust_ratio(trust_coefficient=0.1)
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> updates, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init(params), params)
      >>> print(updates["w"], state.trust_ratio)
      [0.  0.5] [0.25]

    References:
      You et al., `Large Batch Training of Convolutional Networks
      <https://arxiv.org/abs/1708.03888>`_, 2017, Algorithm 1; You et al., `Large Batch
      Optimization for Deep Learning <https://arxiv.org/abs/1904.00962>`_, 2020, Algorithm 2.
    """
    _checks.check_number("trust_coefficient", trust_coefficient, above=0.0, remedy="pass e.g. 1e-3")
    _checks.check_number("eps", eps, at_least=0.0, remedy="pass 0 or a small number")
    _checks.check_schedulable("weight_decay", weight_decay, remedy="pass e.g. 1e-4")
    check_clip(clip)
    _layers.check_layer_axes(layer_axes)
    fit_decay_mask = _checks.fitted_mask("weight_decay_mask", weight_decay_mask)
    fit_mask = _checks.fitted_mask("mask", mask)
    count_options = {"count": (f"weight_decay={weight_decay!r}", callable(weight_decay))}

    def trust_ratio(u, w, decay, axes):
        u_norm, w_norm = _layers.norms(u, axes), _layers.norms(w, axes)
        usable = (u_norm > 0) & (w_norm > 0)
        denominator = u_norm + eps if decay is None else u_norm + decay * w_norm + eps
        size = w_norm if clip is None else jnp.clip(w_norm, *clip)
        ratio = trust_coefficient * size / jnp.where(usable, denominator, 1)
        return jnp.where(usable, ratio, 1).astype(u_norm.dtype)

    def scale_layer(update, w, has_ratio, decay, axes):
        u, w = _moments.widen(update), _moments.widen(w)
        ratio = trust_ratio(u, w, decay, axes) if has_ratio and u.size else jnp.ones(())
        scaled = ratio * (u if decay is None else u + decay * w)
        return scaled.astype(jnp.result_type(update)), jnp.mean(ratio, dtype=jnp.float32)

    def init(params):
        _checks.check_params(params, who="scale_by_layerwise_trust_ratio")
        fit_decay_mask(params)
        fit_mask(params)
        _layers.leading_axes(layer_axes, params)
        return LayerwiseTrustRatioState(
            count=jnp.zeros((), jnp.int32) if callable(weight_decay) else None,
            trust_ratio=_layers.one_per_leaf(params),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.require_params(params, who="the layer-wise trust ratio")
        _states.check_state(state, LayerwiseTrustRatioState, updates, options=count_options)
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay
        no_decay = _checks.is_zero(decay)
        leaves, structure = jax.tree.flatten(updates)
        scaled = [
            scale_layer(u, w, has_ratio, None if no_decay or not decays else decay, axes)
            for u, w, has_ratio, decays, axes in zip(
                leaves,
                structure.flatten_up_to(params),
                jax.tree.leaves(fit_mask(params)),
                jax.tree.leaves(fit_decay_mask(params)),
                _layers.leading_axes(layer_axes, params),
                strict=True,
            )
        ]
        return structure.unflatten([u for u, _ in scaled]), LayerwiseTrustRatioState(
            count=None if state.count is None else optax.safe_increment(state.count),
            trust_ratio=jnp.array([ratio for _, ratio in scaled], jnp.float32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def check_clip(clip: Any, name: str = "clip") -> None:
    """Raises unless `clip` is None or a pair 0 <= lo < hi."""
    if clip is None:
        return
    remedy = f"pass {name}=(lo, hi) with 0 <= lo < hi, or None"
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise ValueError(f"{name} must be a pair, got {clip!r}; {remedy}")
    for bound in clip:
        _checks.check_number(name, bound, at_least=0.0, finite=False, remedy=remedy)
    lo, hi = clip
    if not any(isinstance(bound, jax.Array) for bound in clip) and lo >= hi:
        raise ValueError(f"{name} is empty or inverted, got {clip!r}; {remedy}")
