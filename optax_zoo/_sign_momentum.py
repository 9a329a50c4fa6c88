"""Sign momentum, the heart of Lion, and Lion itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _links, _moments, _states


class SignMomentumState(NamedTuple):
    """State of `scale_by_sign_momentum`.

    Attributes:
      mu: Moving average of the gradients, shaped like the parameters.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_sign_momentum(b2=0.75)
      >>> _, state = tx.update(jnp.array([4.0, -8.0]), tx.init(jnp.zeros(2)))
      >>> print(state.mu)
      [ 1. -2.]
    """

    mu: optax.Updates


def scale_by_sign_momentum(
    b1: Any = 0.9, b2: Any = 0.99, *, mu_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""The sign of an interpolation between momentum and gradient.

    .. math::

      u_t &= \mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad \mathrm{sign}(0) = 0 \\
      m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Every coordinate of :math:`u_t` is −1, 0 or 1, in the gradient's dtype; there is no epsilon
    and no bias correction.

    Args:
      b1: Weight of the momentum in the direction, in [0, 1).
      b2: Decay of the momentum, in [0, 1).
      mu_dtype: dtype of the momentum; None keeps it in float32 or wider, also for bfloat16
        parameters (Optax keeps it in the parameters' dtype there).

    Returns:
      A gradient transformation. Its state is one momentum, 4 bytes per parameter.

    Raises:
      ValueError: If `b1` or `b2` is out of range.
      TypeError: If `mu_dtype` is not a floating-point type or, at `init`, if a parameter is
        complex or not floating-point.

    Examples:
      Lion is this direction, decoupled decay and a learning rate:

      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = optax.chain(
      ...     zoo.scale_by_sign_momentum(b1=0.9, b2=0.99),
      ...     optax.add_decayed_weights(0.1),
      ...     optax.scale_by_learning_rate(1e-4),
      ... )
      >>> params = jnp.array([1.0, -2.0, 0.0])
      >>> updates, state = tx.update(jnp.array([0.3, 0.2, 0.0]), tx.init(params), params)
      >>> print(updates)
      [-1.1e-04 -8.0e-05 -0.0e+00]

    References:
      Chen et al., `Symbolic Discovery of Optimization Algorithms
      <https://arxiv.org/abs/2302.06675>`_, 2023, Algorithm 2.
    """
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_decay_rate("b2", b2, 0.99)
    _checks.check_dtype("mu_dtype", mu_dtype)
    # With b1·m + (1−b1)·g read off the old momentum, XLA's CPU compiler copies the whole momentum
    # before overwriting it. Read off the new one the same number needs no copy: 0.3 × the time.
    # With b1 ≤ b2 it is an interpolation too; beyond, it would magnify rounding.
    numbers = not isinstance(b1, jax.Array) and not isinstance(b2, jax.Array)
    from_new_momentum = numbers and b2 > 0 and b1 <= b2

    def direction(g, old, new):
        if not from_new_momentum:
            mixed = _moments.ema(g, old, b1)
        elif b1 == b2:
            mixed = new
        else:
            mixed = b1 / b2 * new + (1 - b1 / b2) * _moments.widen(g)
        return jnp.sign(mixed).astype(jnp.result_type(g))

    def init(params):
        _checks.check_params(
            params,
            who="scale_by_sign_momentum",
            complex_remedy="a complex number has no sign; use another optimizer, or "
            "optax.contrib.split_real_and_imaginary",
        )
        return SignMomentumState(mu=_moments.zeros(params, mu_dtype))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        _states.check_state(state, SignMomentumState, updates, moments=("mu",))
        mu = jax.tree.map(lambda g, m: _moments.ema(g, m, b2), updates, state.mu)
        directions = jax.tree.map(direction, updates, state.mu, mu)
        return directions, SignMomentumState(mu=optax.tree.cast_like(mu, state.mu))

    return optax.GradientTransformationExtraArgs(init, update)


def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: Any = None,
    weight_decay: optax.ScalarOrSchedule = 1e-3,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lion: sign momentum, decoupled weight decay, learning rate.

    .. math::

      \theta_t = \theta_{t-1} - \eta_t (u_t + \lambda \theta_{t-1})

    with :math:`u_t` from :func:`scale_by_sign_momentum`. Takes the arguments of `optax.lion`.

    The paper advises a learning rate 3 to 10 times smaller than AdamW's and a decay as much
    larger, so that their product stays; for language models b1 = 0.95, b2 = 0.98; and batches of
    64 or more.

    Args:
      learning_rate: A number or a schedule.
      b1: Weight of the momentum in the direction.
      b2: Decay of the momentum.
      mu_dtype: dtype of the momentum; None: float32 or wider.
      weight_decay: Decoupled decay :math:`\lambda`, multiplied by the learning rate; at the
        number 0 `update` needs no parameters. The paper's code has 0, Optax 1e-3.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (under
        `optax.inject_hyperparams` list a callable in `static_args`).

    Returns:
      The chain of the three links.

    Raises:
      ValueError: If an argument is out of range or, at `init`, if `mask` does not fit.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = zoo.lion(optax.schedules.cosine_decay_schedule(3e-4, 1000), weight_decay=0.1)
      >>> params = {"w": jnp.ones((2, 2))}
      >>> updates, state = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["w"])
      [[0.99967 0.99967]
       [0.99967 0.99967]]

    References:
      Chen et al., `Symbolic Discovery of Optimization Algorithms
      <https://arxiv.org/abs/2302.06675>`_, 2023.
    """
    return optax.chain(
        scale_by_sign_momentum(b1, b2, mu_dtype=mu_dtype),
        _links.decay_link(weight_decay, mask, who="lion"),
        _links.learning_rate_link(learning_rate, usual="1e-4"),
    )
