"""Exponentiated gradients: multiplicative updates of positive, simplex and signed parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optax_zoo import _checks, _moments, _states

# A step multiplies by at most exp(±20): the next gradient sees the result, not an overflow.
_MAX_EXPONENT = 20.0


class ExponentiatedGradientState(NamedTuple):
    """State of `exponentiated_gradient`.

    Attributes:
      count: Updates so far, int32, where the rate or the decay is a schedule; None otherwise.
      beta: In the signed domain twice the geometric mean of u and v, which together with the
        parameters u − v holds both; None otherwise.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> state = zoo.exponentiated_gradient(0.1, domain="signed").init(jnp.zeros(2))
      >>> print(state.beta)  # u = v = 1/2
      [1. 1.]
    """

    count: Any
    beta: Any


def exponentiated_gradient(
    learning_rate: optax.ScalarOrSchedule,
    *,
    domain: str = "positive",
    axis: int | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Exponentiated gradient descent: each parameter times the exponential of its gradient.

    .. math::

      \text{positive:} &\quad \theta_t = \theta_{t-1}\, e^{-\eta_t (g_t + \lambda)} \\
      \text{simplex:} &\quad \theta_t = \theta_{t-1}\, e^{-\eta_t g_t}
        \Big/ \textstyle\sum \theta_{t-1}\, e^{-\eta_t g_t} \\
      \text{signed (EG±):} &\quad \theta_t = u_t - v_t, \qquad
        u_t = u_{t-1} e^{-\eta_t (g_t + \lambda)}, \quad v_t = v_{t-1} e^{-\eta_t (-g_t + \lambda)}

    It is mirror descent under the relative entropy: a weight moves in proportion to itself, which
    suits targets with few relevant inputs. Gradient descent on :math:`\log\theta` would carry one
    more factor :math:`\theta`.

    A positive parameter stays positive and a 0 stays 0, also after `optax.apply_updates` has
    rounded; a sum over a simplex stays 1 to rounding. An additive update can shrink a parameter at
    most to its own rounding unit in one step, 1e-7 of it in float32.

    The signed parameters start at :math:`u_0 = \max(\theta_0, 0) + \frac12`,
    :math:`v_0 = \max(-\theta_0, 0) + \frac12`. As :math:`uv` changes by the decay alone, the state
    is :math:`\beta = 2\sqrt{uv}`, with which
    :math:`\theta_t = \beta_t \sinh(\sinh^{-1}(\theta_{t-1}/\beta_{t-1}) - \eta_t g_t)`: gradient
    descent at the rate :math:`\eta\beta` where :math:`|\theta| \ll \beta`, exponentiated beyond.

    Args:
      learning_rate: :math:`\eta_t`, a number or a schedule. Unlike elsewhere it has the dimension
        of one over the gradient: a step changes a parameter by this share.
      domain: "positive", "simplex" or "signed".
      axis: The axis along which a simplex sums to 1, a Python int; None: the whole leaf.
      weight_decay: :math:`\lambda`, multiplied by the learning rate; a number or a schedule. On a
        simplex the sum cancels it.

    Returns:
      A gradient transformation whose `update` needs the parameters and returns
      :math:`\theta_t - \theta_{t-1}` in the gradient's dtype. No state, in the signed domain 4
      bytes per parameter. Exponents are held within ±20, except on a simplex, where only their
      differences count.

    Raises:
      ValueError: If an argument is out of range; at `init`, if a parameter has a negative entry or
        none but zeros, or does not sum to 1 on a simplex (parameters traced by `jit` or `vmap` are
        not looked at); if `update` gets no parameters.
      TypeError: If an argument has the wrong type, or a parameter is complex or not
        floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = zoo.exponentiated_gradient(0.5, domain="simplex")
      >>> params = jnp.array([0.25, 0.25, 0.5])
      >>> updates, state = tx.update(jnp.array([2.0, 0.0, 0.0]), tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> [f"{p:.3f}" for p in params]  # (1/e, 1, 2) over its sum
      ['0.109', '0.297', '0.594']

    References:
      Kivinen and Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
      <https://doi.org/10.1006/inco.1996.2612>`_, 1997; Ghai et al., `Exponentiated Gradient Meets
      Gradient Descent <https://arxiv.org/abs/1902.01903>`_, 2019 (the form in :math:`\beta`).
    """
    _checks.check_schedulable("learning_rate", learning_rate, remedy="pass e.g. 1e-2")
    _checks.check_schedulable("weight_decay", weight_decay, remedy="pass e.g. 1e-2")
    _checks.check_choice("domain", domain, ("positive", "simplex", "signed"))
    _check_axis(axis, domain)
    scheduled = callable(learning_rate) or callable(weight_decay)
    rates = f"learning_rate={learning_rate!r} with weight_decay={weight_decay!r}"
    options = {"count": (rates, scheduled), "beta": (f"domain={domain!r}", domain == "signed")}

    def step(g, theta, beta, rate, decay):
        """The update of one leaf, float32 or wider."""
        exponent = rate * g
        if domain == "simplex":
            return _simplex_step(theta, exponent, axis)
        exponent = jnp.clip(exponent, -_MAX_EXPONENT, _MAX_EXPONENT)
        if domain == "positive":
            return theta * jnp.expm1(-(exponent + rate * decay))
        return _signed_step(theta, exponent, rate * decay, beta)

    def init(params):
        _checks.check_params(
            params,
            who="exponentiated_gradient",
            complex_remedy="its domains are real; use optax.contrib.split_real_and_imaginary",
        )
        _check_domain(params, domain, axis)
        return ExponentiatedGradientState(
            count=jnp.zeros((), jnp.int32) if scheduled else None,
            beta=jax.tree.map(_first_beta, params) if domain == "signed" else None,
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.require_params(params, who="exponentiated_gradient")
        _states.check_state(
            state, ExponentiatedGradientState, updates, moments=("beta",), options=options
        )
        rate: Any = learning_rate(state.count) if callable(learning_rate) else learning_rate
        decay: Any = weight_decay(state.count) if callable(weight_decay) else weight_decay

        def additive(g, p, beta=None):
            dtypes = jnp.result_type(p), jnp.result_type(g)
            theta = jnp.asarray(p, _moments.widest_dtype((p, g)))
            change = step(_moments.widen(g), theta, beta, rate, decay)
            return _within_range(theta, change, *dtypes, signed=domain == "signed")

        def decayed(beta):
            # Far below any parameter it matters no more, but θ/β could overflow.
            least = float(jnp.finfo(beta.dtype).tiny) ** 0.5
            return jnp.maximum(beta * jnp.exp(-rate * decay), least).astype(beta.dtype)

        betas = () if state.beta is None else (state.beta,)
        return jax.tree.map(additive, updates, params, *betas), ExponentiatedGradientState(
            count=None if state.count is None else optax.safe_increment(state.count),
            beta=jax.tree.map(decayed, state.beta),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _simplex_step(theta: jax.Array, exponent: jax.Array, axis: int | None) -> jax.Array:
    if not theta.size:
        return theta
    # In logarithms; what is 0 gets a weight below all others, finite so that derivatives are.
    largest = float(jnp.finfo(theta.dtype).max)
    exponent = jnp.clip(exponent, -largest / 8, largest / 8)
    alive = theta > 0
    # What all exponents share cancels, and would cost digits.
    shared = jnp.min(exponent, axis, keepdims=True, where=alive, initial=largest / 8)
    exponent -= jax.lax.stop_gradient(shared)
    logits = jnp.where(alive, jnp.log(jnp.where(alive, theta, 1)) - exponent, -largest / 2)
    return jnp.where(alive, jax.nn.softmax(logits, axis), 0) - theta


def _signed_step(theta: jax.Array, exponent: jax.Array, decay: Any, beta: jax.Array) -> jax.Array:
    z = jnp.arcsinh(theta / beta)
    u, v = beta / 2 * jnp.exp(z), beta / 2 * jnp.exp(-z)
    return u * jnp.expm1(-exponent - decay) - v * jnp.expm1(exponent - decay)


def _first_beta(p: jax.Array) -> jax.Array:
    """2·sqrt(u·v) of the first u and v."""
    return jnp.sqrt(1 + 2 * jnp.abs(_moments.widen(p)))


def _within_range(
    theta: jax.Array, change: jax.Array, param_dtype: Any, dtype: Any, *, signed: bool
) -> jax.Array:
    """`change` in `dtype`, so rounded that theta + change neither overflows nor leaves theta > 0.

    Half the largest number leaves room for the rounding of the sum. Nothing shrinks below the least
    normal number, which XLA on a CPU would flush to 0 for good; float16's it computes in float32.
    """
    largest = min(float(jnp.finfo(d).max) for d in (param_dtype, dtype)) / 2
    if signed:
        return jnp.clip(change, -largest - theta, largest - theta).astype(dtype)
    info = jnp.finfo(param_dtype)
    least = float(info.smallest_subnormal if param_dtype == jnp.float16 else info.tiny)
    least = jnp.minimum(theta, least)
    change = jnp.clip(change, least - theta, jnp.maximum(largest - theta, 0)).astype(dtype)
    # Rounding to nearest may have reached -theta; the neighbour towards 0 has not.
    fixed = jax.lax.stop_gradient(change)
    shorter = jnp.nextafter(fixed, jnp.zeros_like(fixed))
    return jnp.where((theta > 0) & (theta + change <= 0), shorter, change)


def _check_axis(axis: Any, domain: str) -> None:
    if axis is None:
        return
    remedy = 'it is the axis along which domain="simplex" sums to 1'
    _checks.check_integer("axis", axis, at_least=-(2**31), remedy=remedy)
    if domain != "simplex":
        raise ValueError(f"axis is {axis} with domain={domain!r}, but {remedy}; leave it out")


def _check_domain(params: Any, domain: str, axis: int | None) -> None:
    """Raises if a parameter, so far as its values are known, lies outside the domain."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, ndim = f"params{jax.tree_util.keystr(path)}", jnp.ndim(leaf)
        if axis is not None and not -ndim <= axis < ndim:
            raise ValueError(
                f"axis is {axis}, but {name} has the shape {jnp.shape(leaf)}; pass an axis that "
                "every parameter has, or give the others another transformation by optax.partition"
            )
        known = not isinstance(leaf, (Tracer, jax.ShapeDtypeStruct))
        known = known and getattr(leaf, "is_fully_addressable", True)
        if domain == "signed" or not known or not np.size(leaf):
            continue
        # In NumPy, because inside jit also constants become tracers.
        values = np.asarray(leaf).astype(np.float64)
        least = values.min()
        if not least >= 0 or not values.any():
            raise ValueError(
                f'{name} must be > 0, got {least}; start inside the domain "{domain}" (a 0 stays '
                '0: beside others it is taken for a weight that is out), or use domain="signed"'
            )
        if domain == "simplex":
            sums = values.sum(axis)
            worst = np.ravel(sums)[np.argmax(np.abs(sums - 1))]
            # Entries that were rounded to their dtype, or given with a few decimals.
            if not abs(worst - 1) <= max(1e-3, 2 * float(jnp.finfo(jnp.result_type(leaf)).eps)):
                raise ValueError(
                    f"{name} must sum to 1 along axis {axis}, got the sum {worst:.6g}; divide by "
                    "it, e.g. with jax.nn.softmax, or pass the axis that sums to 1"
                )
