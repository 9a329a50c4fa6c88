"""Adam's direction with learning rates between closing bounds, the heart of AdaBound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optax_zoo import _checks, _moments, _states

Bounds = Callable[[Any], tuple[Any, Any]]

_NO_BASE = (
    "the bounds are final_lr times the rate over base_lr, and a schedule may start at 0; pass the "
    "peak, e.g. base_lr=1e-3"
)


class DynamicBoundsState(NamedTuple):
    """State of `scale_by_dynamic_bounds`.

    Attributes:
      count: Updates so far, int32.
      mu: First moment.
      nu: Second moment.
      nu_max: Largest second moment so far, for AMSBound; None otherwise.
      base_lr: The largest rate so far, which `final_lr` belongs to where `learning_rate` is an
        array and the arguments `base_lr` and `bounds` are None; None otherwise.
      clipping: The last update's (scale, eps, lower, upper), float32: coordinate i had the rate
        clip(scale / (sqrt(nu_i) + eps), lower, upper). Shares at the bounds and effective rates
        follow from it on demand; counted in every update they would cost 3 to 5 × the update.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_dynamic_bounds(1e-3, bounds=lambda step: (0.01, 0.1))
      >>> _, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
      >>> scale, eps, lower, upper = state.clipping
      >>> print(lower, upper)
      0.01 0.1
    """

    count: jax.typing.ArrayLike
    mu: optax.Updates
    nu: optax.Updates
    nu_max: Any
    base_lr: Any
    clipping: jax.Array


def scale_by_dynamic_bounds(
    learning_rate: optax.ScalarOrSchedule,
    final_lr: Any = 0.1,
    *,
    base_lr: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    gamma: Any = 1e-3,
    eps: Any = 1e-8,
    amsbound: bool = False,
    bounds: Bounds | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam's direction with each coordinate's learning rate clipped between closing bounds.

    .. math::

      a_t &= \frac{\eta_t \sqrt{1 - \beta_2^t}}{(1 - \beta_1^t)(\sqrt{v_t} + \varepsilon)},
        \qquad f_t = f \eta_t / \eta_0 \\
      u_t &= \mathrm{clip}\Big(a_t,\ f_t \big(1 - \tfrac{1}{\gamma t + 1}\big),\
        f_t \big(1 + \tfrac{1}{\gamma t}\big)\Big)\, m_t, \qquad t = 1, 2, \dots

    with Adam's raw moments :math:`m, v`; AMSBound has the running maximum of :math:`v` in its
    place. It starts as Adam and ends as SGD with momentum at the rate :math:`f_t`. The learning
    rate is inside: subtract :math:`u_t` from the parameters.

    Released code, as everybody runs it; the paper itself has no bias correction, no epsilon, and
    divides by :math:`\sqrt t`.

    Args:
      learning_rate: :math:`\eta_t`, a number or a schedule (called with the 0-based step, as
        everywhere in Optax). `optax.inject_hyperparams` makes an array of either.
      final_lr: :math:`f`, the rate that both bounds close in on.
      base_lr: :math:`\eta_0`, the rate that `final_lr` belongs to. None: `learning_rate`, of
        arrays, as `optax.inject_hyperparams` gives them, the largest so far; where rates only fall
        it is the first, as released. Must be given with a schedule, and with an injected one that
        starts at 0.
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      gamma: :math:`\gamma > 0`, how fast the bounds close.
      eps: :math:`\varepsilon > 0`.
      amsbound: Keep the running maximum of the second moment; a Python bool.
      bounds: A callable of the 1-based step that gives (lower, upper) in place of
        :math:`f (1 \mp \dots)`: (0, inf) is Adam, lower = upper is SGD with momentum. They are
        scaled by :math:`\eta_t / \eta_0` where `base_lr` is given and absolute otherwise. Belongs
        into `static_args` of `optax.inject_hyperparams`.

    Returns:
      A gradient transformation. Moments are float32 or wider, 8 bytes per parameter (AMSBound
      12); updates keep their dtype.

    Raises:
      ValueError: If a number is out of range, bounds are inverted at step 1, `learning_rate`
        is a schedule without `base_lr` or, at `init`, an array that is not positive.
      TypeError: If an argument has the wrong type, or a parameter is not floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = zoo.scale_by_dynamic_bounds(1e-3, final_lr=0.1)
      >>> params = jnp.array([1.0, 1.0])
      >>> updates, state = tx.update(jnp.array([1.0, 1e-6]), tx.init(params))
      >>> print([f"{u:.2e}" for u in updates])  # 1e-3 · sign(g), had the second not met its bound
      ['1.00e-03', '1.00e-05']

    References:
      Luo et al., `Adaptive Gradient Methods with Dynamic Bound of Learning Rate
      <https://arxiv.org/abs/1902.09843>`_, ICLR 2019, Algorithms 2 and 3.
    """
    _check_arguments(learning_rate, final_lr, base_lr, b1, b2, gamma, eps, bounds)
    _checks.check_flag("amsbound", amsbound)
    # The factory may be called anew with another array in each step: the state knows the others.
    keeps_base = base_lr is None and bounds is None and isinstance(learning_rate, jax.Array)

    def interval(count, rate, base):
        """The bounds of step `count`, a schedule's drop included."""
        if bounds is None:
            t = jnp.asarray(count, float)
            # 1 − 1/(γt + 1) and 1 + 1/(γt), without the first one's cancellation.
            lower = final_lr * (gamma * t / (gamma * t + 1))
            upper = final_lr * ((gamma * t + 1) / (gamma * t))
        else:
            lower, upper = bounds(count)
        if base is None:
            return lower, upper
        relative = jnp.where(base > 0, rate / jnp.where(base > 0, base, 1), 0)
        # A schedule may pass 0, and 0 · inf must not become NaN.
        return lower * relative, jnp.where(relative > 0, upper * relative, 0)

    def init(params):
        _checks.check_params(params, who="scale_by_dynamic_bounds")
        if keeps_base:
            _check_first_rate(learning_rate)
        # Each array is its own buffer, or the state could not be donated.
        return DynamicBoundsState(
            count=jnp.zeros((), jnp.int32),
            mu=_moments.zeros(params),
            nu=_moments.real_zeros(params),
            nu_max=_moments.real_zeros(params) if amsbound else None,
            base_lr=jnp.array(learning_rate) if keeps_base else None,
            clipping=jnp.zeros(4, jnp.float32),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        _check_state(state, updates, amsbound=amsbound)
        count = optax.safe_increment(state.count)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        base = base_lr
        if keeps_base and state.base_lr is not None:
            base = jnp.maximum(state.base_lr, rate).astype(state.base_lr.dtype)
        lower, upper = interval(count, rate, base)
        scale = (
            rate
            * jnp.sqrt(_moments.bias_correction(b2, count))
            / _moments.bias_correction(b1, count)
        )
        mu = jax.tree.map(lambda g, m: _moments.ema(g, m, b1), updates, state.mu)
        nu = jax.tree.map(lambda g, v: _moments.ema(_moments.abs_sq(g), v, b2), updates, state.nu)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsbound else None
        ruling = nu_max if amsbound else nu

        def direction(g, m, v):
            lo, hi, numerator = (jnp.asarray(x, v.dtype) for x in (lower, upper, scale))
            return (jnp.clip(numerator / (_moments.root(v) + eps), lo, hi) * m).astype(
                jnp.result_type(g)
            )

        new_state = DynamicBoundsState(
            count=count,
            mu=optax.tree.cast_like(mu, state.mu),
            nu=optax.tree.cast_like(nu, state.nu),
            nu_max=optax.tree.cast_like(nu_max, state.nu_max) if amsbound else None,
            base_lr=base if keeps_base else None,
            clipping=jnp.array([scale, eps, lower, upper], jnp.float32),
        )
        return jax.tree.map(direction, updates, mu, ruling), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_arguments(learning_rate, final_lr, base_lr, b1, b2, gamma, eps, bounds) -> None:
    if callable(learning_rate):
        if base_lr is None and bounds is None:
            raise ValueError(f"base_lr is None while learning_rate is a schedule: {_NO_BASE}")
    else:
        # Without base_lr the rate itself is the reference that the bounds scale with.
        _checks.check_number(
            "learning_rate",
            learning_rate,
            above=0.0 if base_lr is None else None,
            at_least=None if base_lr is None else 0.0,
            remedy="pass e.g. 1e-3, or a schedule",
        )
    if base_lr is not None:
        _checks.check_number("base_lr", base_lr, above=0.0, remedy="pass the schedule's peak")
    _checks.check_number("final_lr", final_lr, above=0.0, remedy="pass e.g. 0.1")
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_decay_rate("b2", b2, 0.999)
    _checks.check_number("gamma", gamma, above=0.0, remedy="pass e.g. 1e-3")
    _checks.check_number("eps", eps, above=0.0, remedy="pass e.g. 1e-8")
    if bounds is not None:
        _check_bounds(bounds)


def _check_first_rate(rate: Any) -> None:
    """Raises if the rate that `init` met is known and can be no `base_lr`."""
    if not isinstance(rate, Tracer) and not rate > 0:
        raise ValueError(f"base_lr is None while learning_rate starts at {rate}: {_NO_BASE}")


def _check_state(state: Any, updates: Any, *, amsbound: bool) -> None:
    # Without AMSBound the maximum is left behind; with it there is none to start from.
    _states.check_state(
        state,
        DynamicBoundsState,
        updates,
        moments=("mu", "nu", "nu_max"),
        options={"nu_max": ("amsbound=True", True)} if amsbound else {},
    )


def _check_bounds(bounds: Any) -> None:
    remedy = (
        "pass a callable of the 1-based step that gives two numbers, 0 <= lower <= upper (under "
        "optax.inject_hyperparams list it in static_args=('bounds',))"
    )
    if not callable(bounds):
        raise TypeError(f"bounds must be callable, got {bounds!r}; {remedy}")
    first = bounds(jnp.ones((), jnp.int32))
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise TypeError(f"bounds must give a pair, got {first!r} at step 1; {remedy}")
    for bound in first:
        _checks.check_number("bounds", bound, finite=False, remedy=remedy)
    if any(isinstance(bound, Tracer) for bound in first):
        return
    lower, upper = map(float, first)
    if not 0 <= lower <= upper:
        raise ValueError(f"bounds are inverted or negative, got {first!r} at step 1; {remedy}")
