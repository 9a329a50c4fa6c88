"""Layer-wise trust ratios: LARS and LAMB."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _decay, _layers, _moments

# Leaves below a megabyte of float32 are left alone by `_one_leaf_at_a_time`.
_LARGE_LEAF = 2**18


class LayerwiseTrustRatioState(NamedTuple):
    """State of `scale_by_layerwise_trust_ratio`.

    Attributes:
      count: Updates so far, int32, where `weight_decay` is a schedule; None otherwise.
      trust_ratio: Last ratio of each leaf in tree order, float32, the mean over its layer slices.
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
    _check_clip(clip)
    _layers.check_layer_axes(layer_axes)
    fit_decay_mask = _checks.fitted_mask("weight_decay_mask", weight_decay_mask)
    fit_mask = _checks.fitted_mask("mask", mask)

    def scale_layer(u, w, has_ratio, decay, axes):
        wide_u, wide_w = _moments.widen(u), _moments.widen(w)
        decayed = wide_u if decay is None else wide_u + decay * wide_w
        if not has_ratio:
            return decayed.astype(jnp.result_type(u)), jnp.ones((), jnp.float32)
        u_norm, w_norm = _layers.norms(wide_u, axes), _layers.norms(wide_w, axes)
        usable = (u_norm > 0) & (w_norm > 0)
        denominator = u_norm + eps if decay is None else u_norm + decay * w_norm + eps
        size = w_norm if clip is None else jnp.clip(w_norm, *clip)
        ratio = jnp.where(
            usable, trust_coefficient * size / jnp.where(usable, denominator, 1), 1
        ).astype(u_norm.dtype)
        return (ratio * decayed).astype(jnp.result_type(u)), jnp.mean(ratio, dtype=jnp.float32)

    def init(params):
        _checks.check_params(params, who="scale_by_layerwise_trust_ratio")
        fit_decay_mask(params)
        fit_mask(params)
        ratios = len(_layers.leading_axes(layer_axes, params))
        return LayerwiseTrustRatioState(
            count=jnp.zeros((), jnp.int32) if callable(weight_decay) else None,
            trust_ratio=jnp.ones(ratios, jnp.float32),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.require_params(params, who="the layer-wise trust ratio")
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay
        no_decay = isinstance(decay, (int, float)) and decay == 0
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


def _check_clip(clip: Any, name: str = "clip") -> None:
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


def _one_leaf_at_a_time() -> optax.GradientTransformation:
    """The identity, ordered: a large leaf's update is formed after the previous one's norm.

    LAMB needs each Adam direction twice, for its norm and for the step. XLA's CPU scheduler works
    breadth first and would keep the directions of all leaves in one temporary as large as the
    model; the operating system hands those pages out anew at every call, which costs more than
    the arithmetic (16 matrices of 1024²: 56 ms, 21 ms in order). The order is data flow that the
    compiler cannot fold away, a division by an exact one.
    """

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        nothing = jnp.zeros((), jnp.float32)
        ordered = []
        for u in leaves:
            if jnp.size(u) >= _LARGE_LEAF:
                # NaN / NaN and x / 1 are exact; `where` keeps the divisor from being a scalar,
                # by which XLA would multiply instead.
                u = u / jnp.where(u == u, 1 + nothing.astype(u.real.dtype), u)
                squared = jax.lax.stop_gradient(jnp.sum(_moments.abs_sq(u)))
                nothing = jnp.where(squared < 0, squared, 0)  # never negative: always 0
            ordered.append(u)
        return structure.unflatten(ordered), state

    return optax.GradientTransformation(optax.init_empty_state, update)


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
      weight_decay_mask: Where to decay: a prefix pytree of bools or a callable on the parameters.
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
    _checks.check_schedulable("learning_rate", learning_rate, remedy="pass e.g. 10.0")
    _checks.check_decay_rate("momentum", momentum, 0.9)
    _checks.check_flag("nesterov", nesterov)
    _check_clip(trust_clip, "trust_clip")
    return _moments.in_float32(
        optax.chain(
            scale_by_layerwise_trust_ratio(
                trust_coefficient,
                eps,
                weight_decay=weight_decay,
                weight_decay_mask=weight_decay_mask,
                clip=trust_clip,
                mask=trust_ratio_mask,
                layer_axes=layer_axes,
            ),
            optax.scale_by_learning_rate(learning_rate),
            optax.trace(momentum, nesterov),
        )
    )


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    mu_dtype: Any = None,
    trust_clip: tuple[Any, Any] | None = None,
    trust_ratio_mask: Any = True,
    layer_axes: _layers.LayerAxes = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB: Adam's direction, decayed, scaled layer by layer to the weights' norm.

    .. math::

      u_t &= \frac{\hat m_t}{\sqrt{\hat v_t + \varepsilon_r} + \varepsilon}
        + \lambda \theta_{t-1} \\
      \theta_t &= \theta_{t-1} - \eta_t \frac{\phi(\|\theta_{t-1}\|)}{\|u_t\|} u_t

    with bias-corrected moments, the ratio of :func:`scale_by_layerwise_trust_ratio`, and 1 for
    the ratio where a norm is zero. Takes the arguments of `optax.lamb` and equals it at their
    defaults; moments stay in float32 for bfloat16 parameters.

    Args:
      learning_rate: A number or a schedule; see :func:`large_batch_schedule`.
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added outside the root. `eps` or `eps_root` must be positive.
      eps_root: Added inside the root.
      weight_decay: :math:`\lambda`, inside the ratio; 0 leaves the link out. BERT uses 0.01.
      mask: Where to decay: a prefix pytree of bools or a callable on the parameters.
      mu_dtype: dtype of the first moment; None: float32 or wider.
      trust_clip: Bounds (lo, hi) of :math:`\phi`; the paper's third version has (0, 10).
      trust_ratio_mask: Where the ratio applies; elsewhere it is 1.
      layer_axes: Leading axes that count layers, see :func:`scale_by_layerwise_trust_ratio`;
        Google's MLPerf BERT has one ratio per stacked layer.

    Returns:
      The chain Adam, decay, trust ratio, learning rate. `update` needs the parameters.

    Raises:
      ValueError: If an argument is out of range or, at `init`, does not fit the parameters.
      TypeError: If an argument has the wrong type.

    Examples:
      Twelve layers stacked by a scan, one ratio each:

      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.lamb(1e-3, weight_decay=0.01, layer_axes={"layers": 1, "head": 0})
      >>> params = {"layers": jnp.ones((12, 8, 8)), "head": jnp.ones((8, 4))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["layers"][0, 0, 0])
      -0.001

    References:
      You et al., `Large Batch Optimization for Deep Learning: Training BERT in 76 minutes
      <https://arxiv.org/abs/1904.00962>`_, 2020, Algorithm 2.
    """
    _checks.check_schedulable("learning_rate", learning_rate, remedy="pass e.g. 1e-3")
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_decay_rate("b2", b2, 0.999)
    _checks.check_number("eps", eps, at_least=0.0, remedy="pass e.g. 1e-6")
    _checks.check_number("eps_root", eps_root, at_least=0.0, remedy="pass 0.0")
    if not any(isinstance(e, jax.Array) for e in (eps, eps_root)) and eps + eps_root == 0:
        raise ValueError(
            f"eps is {eps!r} and eps_root {eps_root!r}: a weight that never saw a gradient would "
            "divide 0 by 0; make one of them positive, e.g. eps=1e-6"
        )
    _checks.check_dtype("mu_dtype", mu_dtype)
    _check_clip(trust_clip, "trust_clip")
    return _moments.in_float32(
        optax.chain(
            optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype),
            *_decay.decay_links(weight_decay, mask, who="lamb"),
            _one_leaf_at_a_time(),
            scale_by_layerwise_trust_ratio(
                clip=trust_clip, mask=trust_ratio_mask, layer_axes=layer_axes
            ),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
