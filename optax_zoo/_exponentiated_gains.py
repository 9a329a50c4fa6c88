"""Learning rates that adapt themselves: exponentiated gains and EGDD."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _layers, _moments, _states

# Added to both norms of the cosine, as released.
_NORM_EPS = 1e-10


class ExponentiatedGainsState(NamedTuple):
    """State of `scale_by_exponentiated_gains`.

    Attributes:
      count: Updates so far, int32.
      scale: Step-size scale s: one number per leaf in tree order, or a single one.
      gains: Gain ν of every coordinate.
      momentum: Momentum h, which holds the learning rate.
      average: Moving average q of the incoming updates.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_exponentiated_gains(0.1)
      >>> state = tx.init({"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)})
      >>> print(state.scale, state.gains["b"])
      [1. 1.] [1. 1.]
    """

    count: jax.typing.ArrayLike
    scale: jax.Array
    gains: optax.Updates
    momentum: optax.Updates
    average: optax.Updates


def scale_by_exponentiated_gains(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    momentum: Any = 0.0,
    *,
    beta: Any = 0.9,
    gain_lr: Any = 1e-2,
    scale_lr: Any = 1e-3,
    scope: str = "leaf",
    use_directions: bool = True,
    use_signs: bool = True,
    gain_bounds: tuple[Any, Any] = (1e-2, 1e2),
    scale_bounds: tuple[Any, Any] = (0.1, 10.0),
) -> optax.GradientTransformationExtraArgs:
    r"""A gain for every coordinate and a scale for every layer, both learned on the way.

    With the incoming update as :math:`g_t`, a gradient or any optimizer's direction,

    .. math::

      s_t &= \mathrm{clip}\Big(s_{t-1} \exp\Big(\gamma_s \Big\langle \frac{g_t}{\|g_t\|},
        \frac{h_{t-1}}{\|h_{t-1}\|} \Big\rangle\Big)\Big) \\
      \nu_t &= \mathrm{clip}\big(\nu_{t-1} \exp(\gamma_\nu\,
        \mathrm{sign}(g_t)\, \mathrm{sign}(q_{t-1}))\big) \\
      h_t &= \mu h_{t-1} + \eta_t \nu_t g_t \\
      q_t &= \beta q_{t-1} + (1 - \beta) g_t

    and the outgoing update :math:`s_t h_t`, of the same orientation as the incoming one. A
    coordinate whose updates keep their sign accelerates, one that oscillates slows down; both are
    an exponentiated gradient step on the loss as a function of the step size. Released code: the
    norms have 1e-10 added, and the learning rate sits inside the momentum.

    A gain needs :math:`\log(k)/\gamma_\nu` consistent steps to grow by k, 230 for a factor 10.
    Give it directions without momentum and keep the momentum here, as below: smoothed directions
    rarely change their sign, and gains behind them grow where they should not.

    Args:
      learning_rate: :math:`\eta_t`, a number or a schedule; 1 leaves it to a later link.
      momentum: :math:`\mu`, in [0, 1).
      beta: :math:`\beta`, the decay of the average of the incoming updates, in [0, 1).
      gain_lr: :math:`\gamma_\nu`, the rate of the gains' exponents.
      scale_lr: :math:`\gamma_s`, the rate of the scales' exponents.
      scope: "leaf", a scale for each leaf, as released; "global", one for all, as in the paper.
        In either case all are one array, so that inside `jax.shard_map` the updates of all leaves
        vary over the axes that one of them varies over.
      use_directions: Whether :math:`g` and :math:`h` are normalised in the scale's exponent.
      use_signs: Whether the gain's exponent takes signs; otherwise it is
        :math:`\gamma_\nu g_t q_{t-1} / (1 - \beta^{\max(t - 1, 1)})`. Both are Python bools.
      gain_bounds: The interval (lo, hi) of the gains, which contains their start 1.
      scale_bounds: The interval (lo, hi) of the scales, which contains their start 1.

    Returns:
      A gradient transformation, 12 bytes of state per parameter. Updates keep their dtype.

    Raises:
      ValueError: If an argument is out of range.
      TypeError: If an argument has the wrong type or, at `init`, if a parameter is complex or not
        floating-point.

    Examples:
      Adam at the learning rate 1e-3, its momentum (and the 1 − 0.9 of it) moved into the link:

      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = optax.chain(
      ...     optax.scale_by_adam(b1=0.0),
      ...     zoo.scale_by_exponentiated_gains(0.1, momentum=0.9, gain_lr=0.1),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )
      >>> state = tx.init(jnp.zeros(2))
      >>> for sign in (1.0, 1.0, -1.0):  # the second gradient changes its sign
      ...     updates, state = tx.update(jnp.array([1.0, 3 * sign]), state)
      >>> [f"{gain:.3f}" for gain in state[1].gains]  # exp(0.1 + 0.1) and exp(0.1 - 0.1)
      ['1.221', '1.000']

    References:
      Amid et al., `Step-size Adaptation Using Exponentiated Gradient Updates
      <https://arxiv.org/abs/2202.00145>`_, 2022.
    """
    _check_arguments(learning_rate, momentum, beta, gain_lr, scale_lr, scope)
    _checks.check_flag("use_directions", use_directions)
    _checks.check_flag("use_signs", use_signs)
    _check_bounds("gain_bounds", gain_bounds)
    _check_bounds("scale_bounds", scale_bounds)

    def agreement(leaves, momenta):
        """<g, h> of these leaves together, of their directions or of themselves."""
        g_norm = h_norm = 1.0
        if use_directions:
            g_norm = _norm(leaves) + _NORM_EPS
            h_norm = _norm(momenta) + _NORM_EPS
        pairs = zip(leaves, momenta, strict=True)
        return sum(jnp.sum((g / g_norm) * (h / h_norm)) for g, h in pairs)

    def new_scale(scale, leaves, momenta):
        if scope == "global":
            found = jnp.asarray(agreement(leaves, momenta))
        else:
            pairs = zip(leaves, momenta, strict=True)
            found = jnp.array([agreement([g], [h]) for g, h in pairs], scale.dtype)
        return _exponentiate(scale, scale_lr * found, scale_bounds).astype(scale.dtype)

    def new_gain(gain, g, q, corrected):
        product = jnp.sign(g) * jnp.sign(q) if use_signs else g * q / corrected
        return _exponentiate(gain, gain_lr * product, gain_bounds)

    def init(params):
        _checks.check_params(
            params,
            who="scale_by_exponentiated_gains",
            complex_remedy="a complex number has no sign; use "
            "optax.contrib.split_real_and_imaginary",
        )
        dtype = _moments.widest_dtype(jax.tree.leaves(params))
        scale = _layers.one_per_leaf(params, dtype)
        return ExponentiatedGainsState(
            count=jnp.zeros((), jnp.int32),
            scale=jnp.prod(scale) if scope == "global" else scale,
            gains=jax.tree.map(jnp.ones_like, _moments.zeros(params)),
            momentum=_moments.zeros(params),
            average=_moments.zeros(params),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        _states.check_state(
            state, ExponentiatedGainsState, updates, moments=("gains", "momentum", "average")
        )
        _check_scope(state.scale, scope)
        count = optax.safe_increment(state.count)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        corrected = _moments.bias_correction(beta, jnp.maximum(state.count, 1))
        wide = jax.tree.map(_moments.widen, updates)
        leaves, structure = jax.tree.flatten(wide)
        scale = new_scale(state.scale, leaves, structure.flatten_up_to(state.momentum))
        gains = jax.tree.map(
            lambda n, g, q: new_gain(n, g, q, corrected), state.gains, wide, state.average
        )
        new_momentum = jax.tree.map(
            lambda h, n, g: momentum * h + rate * n * g, state.momentum, gains, wide
        )
        average = jax.tree.map(lambda g, q: _moments.ema(g, q, beta), wide, state.average)
        momenta = jax.tree.leaves(new_momentum)
        scales = [scale] * len(momenta) if scope == "global" else list(scale)
        scaled = structure.unflatten([s * h for s, h in zip(scales, momenta, strict=True)])
        return optax.tree.cast_like(scaled, updates), ExponentiatedGainsState(
            count=count,
            scale=scale,
            gains=optax.tree.cast_like(gains, state.gains),
            momentum=optax.tree.cast_like(new_momentum, state.momentum),
            average=optax.tree.cast_like(average, state.average),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def egdd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    beta: Any = 0.9,
    gain_lr: Any = 1e-2,
    scale_lr: Any = 1e-3,
    scope: str = "leaf",
    use_directions: bool = True,
    use_signs: bool = True,
    gain_bounds: tuple[Any, Any] = (1e-2, 1e2),
    scale_bounds: tuple[Any, Any] = (0.1, 10.0),
) -> optax.GradientTransformationExtraArgs:
    r"""EGDD: momentum SGD whose step sizes adapt by exponentiated gradients.

    .. math:: \theta_t = \theta_{t-1} - s_t h_t

    with scale and momentum of :func:`scale_by_exponentiated_gains`, as released by its authors.
    With both exponents' rates 0 it is SGD with (heavy-ball) momentum.

    Args:
      learning_rate: A number or a schedule, inside the momentum.
      momentum: Decay of the momentum, in [0, 1).
      beta: Decay of the average of the gradients, in [0, 1).
      gain_lr: Rate of the gains' exponents.
      scale_lr: Rate of the scales' exponents.
      scope: "leaf" for a scale per leaf, "global" for one.
      use_directions: Whether the scale's exponent takes directions.
      use_signs: Whether the gain's exponent takes signs.
      gain_bounds: The interval of the gains.
      scale_bounds: The interval of the scales.

    Returns:
      The chain of the link and a change of sign.

    Raises:
      ValueError: If an argument is out of range.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.egdd(0.1, gain_lr=0.05)
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array([1.0, -2.0]), state)
      >>> [f"{u:.4f}" for u in updates]  # -0.1 g · (0.9 + exp(0.05)) · exp(0.001)
      ['-0.1953', '0.3906']

    References:
      Amid et al., `Step-size Adaptation Using Exponentiated Gradient Updates
      <https://arxiv.org/abs/2202.00145>`_, 2022.
    """
    return optax.chain(
        scale_by_exponentiated_gains(
            learning_rate,
            momentum,
            beta=beta,
            gain_lr=gain_lr,
            scale_lr=scale_lr,
            scope=scope,
            use_directions=use_directions,
            use_signs=use_signs,
            gain_bounds=gain_bounds,
            scale_bounds=scale_bounds,
        ),
        optax.scale(-1.0),
    )


def _exponentiate(x: jax.Array, exponent: jax.Array, bounds: tuple[Any, Any]) -> jax.Array:
    """clip(x·exp(exponent)) without an overflow on the way."""
    lo, hi = bounds
    span = jnp.log(hi) - jnp.log(lo) + 1  # beyond it every x within the bounds meets one of them
    return jnp.clip(x * jnp.exp(jnp.clip(exponent, -span, span)), lo, hi)


def _norm(leaves: Sequence[jax.Array]) -> jax.Array:
    """The norm of all leaves together; where squares overflow it is inf, and the cosine 0."""
    squares = [jnp.sum(_moments.abs_sq(leaf)) for leaf in leaves]
    return _moments.root(jnp.asarray(sum(squares)))


def _check_scope(scale: Any, scope: str) -> None:
    """Raises unless the state's scale is that of the scope."""
    if jnp.ndim(scale) != (scope == "leaf"):
        raise ValueError(
            f"scope={scope!r} has {'a scale for each leaf' if scope == 'leaf' else 'one scale'}, "
            f"and the state's has the shape {jnp.shape(scale)}: it was made with the other scope; "
            f"{_states.REMEDY}"
        )


def _check_arguments(learning_rate, momentum, beta, gain_lr, scale_lr, scope) -> None:
    _checks.check_schedulable("learning_rate", learning_rate, remedy="pass e.g. 0.1")
    _checks.check_decay_rate("momentum", momentum, 0.9)
    _checks.check_decay_rate("beta", beta, 0.9)
    _checks.check_number("gain_lr", gain_lr, at_least=0.0, remedy="the usual value is 1e-2")
    _checks.check_number("scale_lr", scale_lr, at_least=0.0, remedy="the usual value is 1e-3")
    _checks.check_choice("scope", scope, ("leaf", "global"))


def _check_bounds(name: str, bounds: Any) -> None:
    remedy = f"pass {name}=(lo, hi) with 0 < lo <= 1 <= hi, since it starts at 1"
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"{name} must be a pair, got {bounds!r}; {remedy}")
    for bound in bounds:
        _checks.check_number(name, bound, above=0.0, remedy=remedy)
    lo, hi = bounds
    if not any(isinstance(bound, jax.Array) for bound in bounds) and not lo <= 1 <= hi:
        raise ValueError(f"{name} must contain 1, got {bounds!r}; {remedy}")
