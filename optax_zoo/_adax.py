"""Adam with exponential long-term memory: AdaX and AdaXW."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _links, _moments, _states

# The reciprocal's square is finite in float32.
_LEAST_EPS = 2.0**-62


class AdaxState(NamedTuple):
    """State of `scale_by_adax`.

    Attributes:
      count: Updates so far, int32.
      mu: First moment.
      nu: Bias-corrected second moment.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_adax()
      >>> _, state = tx.update(jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2)))
      >>> print(state.nu.round(3))  # after one step the squares themselves
      [1. 4.]
    """

    count: jax.typing.ArrayLike
    mu: optax.Updates
    nu: optax.Updates


def scale_by_adax(
    b1: Any = 0.9, b2: Any = 1e-4, eps: Any = 1e-12, *, mu_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum over the root of a second moment that forgets nothing.

    The paper's second moment grows, :math:`v_t = (1 + \beta_2) v_{t-1} + \beta_2 g_t^2`, and is
    divided by :math:`c_t = (1 + \beta_2)^t - 1`; :math:`v` overflows float32 near step 887,000.
    Its quotient is a moving average with a shrinking weight, which never does:

    .. math::

      m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
      \hat v_t &= (1 - w_t)\, \hat v_{t-1} + w_t g_t^2, \qquad w_t = \beta_2 / c_t \\
      u_t &= \frac{m_t}{\sqrt{\hat v_t} + \varepsilon / \sqrt{c_t}}

    There is no bias correction of :math:`m`. The released code adds :math:`\varepsilon` to
    :math:`\sqrt{v}`, hence :math:`\sqrt{c_t}`; the quotient is at least 2e-19 (from step 307,000 on
    at the defaults), so that steps and derivatives stay finite where a weight saw no gradient.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Growth of the second moment, in (0, 1); not Adam's b2.
      eps: :math:`\varepsilon`, positive in float32.
      mu_dtype: dtype of the first moment; None: float32 or wider.

    Returns:
      A gradient transformation, 8 bytes of state per parameter. Updates keep their dtype.

    Raises:
      ValueError: If a number is out of range.
      TypeError: If `mu_dtype` is not a floating-point type, or a parameter is not floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_adax()
      >>> updates, state = tx.update(jnp.array([2.0, -0.5, 0.0]), tx.init(jnp.zeros(3)))
      >>> [f"{u:.1e}" for u in updates]  # (1 - b1) · sign(g)
      ['1.0e-01', '-1.0e-01', '0.0e+00']

    References:
      Li et al., `AdaX: Adaptive Gradient Descent with Exponential Long Term Memory
      <https://arxiv.org/abs/2004.09740>`_, 2020, Algorithm 1.
    """
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_number(
        "b2", b2, above=0.0, below=1.0, remedy="the usual value is 1e-4 (it is not Adam's b2)"
    )
    _checks.check_number("eps", eps, at_least=_checks.LEAST_EPS, remedy="pass e.g. 1e-12")
    _checks.check_dtype("mu_dtype", mu_dtype)
    log_growth = jnp.log1p(b2) if isinstance(b2, jax.Array) else math.log1p(b2)

    def init(params):
        _checks.check_params(params, who="scale_by_adax")
        return AdaxState(
            count=jnp.zeros((), jnp.int32),
            mu=_moments.zeros(params, mu_dtype),
            nu=_moments.real_zeros(params),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        _states.check_state(state, AdaxState, updates, moments=("mu", "nu"))
        count = optax.safe_increment(state.count)
        c = _moments.power_minus_one(log_growth, count)  # inf in the end: w = 0
        weight, eps_t = b2 / c, jnp.maximum(eps / jnp.sqrt(c), _LEAST_EPS)

        def average(g, v):
            # v + w·(g² − v) keeps a small w exact, as 1 − (1 − w) would not; inf stays inf.
            moved = v + weight.astype(v.dtype) * (_moments.abs_sq(g) - v)
            return jnp.where(jnp.isinf(v), v, moved)

        def direction(g, m, v):
            return (m / (_moments.root(v) + eps_t.astype(v.dtype))).astype(jnp.result_type(g))

        mu = jax.tree.map(lambda g, m: _moments.ema(g, m, b1), updates, state.mu)
        nu = jax.tree.map(average, updates, state.nu)
        directions = jax.tree.map(direction, updates, mu, nu)
        return directions, AdaxState(
            count=count,
            mu=optax.tree.cast_like(mu, state.mu),
            nu=optax.tree.cast_like(nu, state.nu),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def adax(
    learning_rate: optax.ScalarOrSchedule = 1.5e-3,
    b1: Any = 0.9,
    b2: Any = 1e-4,
    eps: Any = 1e-12,
    *,
    mu_dtype: Any = None,
    weight_decay: optax.ScalarOrSchedule = 5e-4,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaX with L2 decay: :math:`g_t + \lambda\theta_{t-1}` enters :func:`scale_by_adax`.

    Args:
      learning_rate: A number or a schedule.
      b1: Decay of the first moment.
      b2: Growth of the second moment.
      eps: Added to the root of the second moment.
      mu_dtype: dtype of the first moment; None: float32 or wider.
      weight_decay: L2 decay, added to the gradient; at the number 0 `update`
        needs no parameters.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (in
        `static_args` of `optax.inject_hyperparams`).

    Returns:
      The chain decay, AdaX, learning rate.

    Raises:
      ValueError: If an argument is out of range.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.adax()
      >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
      >>> print(updates)
      [-0.00015 -0.00015]

    References:
      Li et al., `AdaX: Adaptive Gradient Descent with Exponential Long Term Memory
      <https://arxiv.org/abs/2004.09740>`_, 2020, Algorithm 1.
    """
    return optax.chain(
        _links.decay_link(weight_decay, mask, who="adax"),
        scale_by_adax(b1, b2, eps, mu_dtype=mu_dtype),
        _links.learning_rate_link(learning_rate, usual="1.5e-3"),
    )


def adaxw(
    learning_rate: optax.ScalarOrSchedule = 5e-3,
    b1: Any = 0.9,
    b2: Any = 1e-4,
    eps: Any = 1e-12,
    *,
    mu_dtype: Any = None,
    weight_decay: optax.ScalarOrSchedule = 5e-2,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaX-W: :func:`scale_by_adax` with decoupled decay, multiplied by the learning rate.

    Args:
      learning_rate: A number or a schedule.
      b1: Decay of the first moment.
      b2: Growth of the second moment.
      eps: Added to the root of the second moment.
      mu_dtype: dtype of the first moment; None: float32 or wider.
      weight_decay: Decoupled decay; at the number 0 `update` needs no parameters.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (in
        `static_args` of `optax.inject_hyperparams`).

    Returns:
      The chain AdaX, decay, learning rate.

    Raises:
      ValueError: If an argument is out of range.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.adaxw(weight_decay=0.1)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
      >>> print(updates)
      [-0.001 -0.001]

    References:
      Li et al., `AdaX: Adaptive Gradient Descent with Exponential Long Term Memory
      <https://arxiv.org/abs/2004.09740>`_, 2020, Algorithm 2.
    """
    return optax.chain(
        scale_by_adax(b1, b2, eps, mu_dtype=mu_dtype),
        _links.decay_link(weight_decay, mask, who="adaxw"),
        _links.learning_rate_link(learning_rate, usual="5e-3"),
    )
