"""Gradient accumulation hidden in the moments: large batches without a gradient buffer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_zoo import _checks, _moments, _states


class AccumulateInMomentumState(NamedTuple):
    """State of `accumulate_in_momentum`.

    Attributes:
      mini_step: Calls so far in the current group, int32; 0 after a call that moved.
      mu: Momentum, which within a group gathers the gradients (not with `nesterov`).
      mean: With `nesterov` the part gathered of the group's mean, otherwise None.
      then: State of `then`.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.accumulate_in_momentum(4)
      >>> _, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
      >>> int(state.mini_step), state.mean is None
      (1, True)
    """

    mini_step: jax.typing.ArrayLike
    mu: optax.Updates
    mean: Any
    then: Any


class AccumulateInAdamState(NamedTuple):
    """State of `accumulate_in_adam`.

    Attributes:
      mini_step: Calls so far in the current group, int32; 0 after a call that moved.
      count: Groups so far, int32.
      mu: First moment, which within a group gathers the gradients.
      nu: Second moment, which within a group gathers their squares.
      then: State of `then`.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.accumulate_in_adam(2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(5):
      ...     _, state = tx.update(jnp.ones(2), state)
      >>> int(state.count), int(state.mini_step)
      (2, 1)
    """

    mini_step: jax.typing.ArrayLike
    count: jax.typing.ArrayLike
    mu: optax.Updates
    nu: optax.Updates
    then: Any


def accumulate_in_momentum(
    every_k: Any,
    decay: Any = 0.9,
    *,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    then: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages k gradients and takes one step of momentum, without a buffer for the average.

    Momentum is a running sum already: let it decay once per group of k calls and add the k-th part
    of each gradient. In call t, counted from 1,

    .. math::

      m_t = \beta_t m_{t-1} + \frac{1 - \beta}{k} g_t, \qquad
      \beta_t = \begin{cases} \beta & k \mid t - 1 \\ 1 & \text{otherwise} \end{cases}

    and the update is :math:`m_t` in every k-th call, zero in the others. After each group
    :math:`m` is exactly what momentum in its averaging form,
    :math:`m \leftarrow \beta m + (1 - \beta) \bar g`, makes of the group's mean :math:`\bar g`
    (heavy-ball momentum is :math:`1/(1 - \beta)` times larger, so take its learning rate times
    that). `optax.MultiSteps` around momentum SGD takes the same steps with twice the state.

    What follows in a chain runs in every call: a schedule there counts calls, and
    `optax.add_decayed_weights` decays in each. Put those links into `then`. A link before this one
    sees single gradients, one in `then` their average: it matters for clipping.

    A gradient that is not finite spoils the momentum for good, as without accumulation.
    `optax.apply_if_finite` around the whole skips it; the group takes the next gradient instead.

    Args:
      every_k: How many gradients make a step, at least 1. May be traced or, under
        `optax.inject_hyperparams`, follow a schedule; it must change between groups only.
      decay: :math:`\beta` in [0, 1).
      nesterov: Whether to look ahead, :math:`\beta m + (1 - \beta) \bar g`. That needs the mean
        beside the momentum: 4 bytes more per parameter, as many as `optax.MultiSteps` takes.
      accumulator_dtype: dtype of what gathers; None keeps it in float32 or wider, also for
        bfloat16 parameters. In less, the k small parts are rounded one by one.
      then: A transformation that is run, and whose state advances, in every k-th call only (under
        `jax.lax.cond`): the rest of an optimizer. Parameters and extra arguments reach it. A
        branch hands its updates over in memory; a link that may as well run in every call, like a
        constant rate, is cheaper in the chain.

    Returns:
      A gradient transformation, 4 bytes of state per parameter. Updates keep their dtype.

    Raises:
      ValueError: If a number is out of range.
      TypeError: If an argument has the wrong type or, at `init`, a parameter is not
        floating-point or complex.

    Examples:
      Momentum SGD on four gradients at a time, with decay and a schedule of the updates:

      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> schedule = optax.schedules.cosine_decay_schedule(1.0, 1000)
      >>> tx = zoo.accumulate_in_momentum(
      ...     4,
      ...     then=optax.chain(
      ...         optax.add_decayed_weights(1e-4), optax.scale_by_learning_rate(schedule)
      ...     ),
      ... )
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for i in range(4):
      ...     updates, state = tx.update(jnp.array([i, 1.0]), state, params)
      ...     print(updates.round(3))
      [0. 0.]
      [0. 0.]
      [0. 0.]
      [-0.15 -0.1 ]

    References:
      Su, `Gradient accumulation hidden in momentum <https://kexue.fm/archives/8634>`_, 2021.
    """
    _check_every_k(every_k)
    _checks.check_decay_rate("decay", decay, 0.9)
    _checks.check_flag("nesterov", nesterov)
    _checks.check_dtype("accumulator_dtype", accumulator_dtype)
    then = _checked_then(then)

    def init(params):
        _checks.check_params(params, who="accumulate_in_momentum")
        return AccumulateInMomentumState(
            mini_step=jnp.zeros((), jnp.int32),
            mu=_moments.zeros(params, accumulator_dtype),
            mean=_moments.zeros(params, accumulator_dtype) if nesterov else None,
            then=() if then is None else then.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        _states.check_state(
            state,
            AccumulateInMomentumState,
            updates,
            moments=("mu", "mean"),
            options={"mean": (f"nesterov={nesterov}", nesterov)},
        )
        _check_then_state(then, state.then, updates)
        first, last, mini_step = _advance(state.mini_step, every_k)
        if nesterov:
            mean = jax.tree.map(
                lambda g, a: _gather(_moments.widen(g), a, 0, first, every_k), updates, state.mean
            )
            mu = jax.tree.map(
                lambda g, m: jnp.where(last, _moments.ema(g, m, decay), m), mean, state.mu
            )
            step = jax.tree.map(lambda g, m: _moments.ema(g, m, decay), mean, mu)
            mean = optax.tree.cast_like(mean, state.mean)
        else:
            mean = None
            step = mu = jax.tree.map(
                lambda g, m: _gather(_moments.widen(g), m, decay, first, every_k),
                updates,
                state.mu,
            )
        updates, then_state = _emit(
            last, lambda: step, then, updates, state.then, params, extra_args
        )
        mu = optax.tree.cast_like(mu, state.mu)
        return updates, AccumulateInMomentumState(mini_step, mu, mean, then_state)

    return optax.GradientTransformationExtraArgs(init, update)


def accumulate_in_adam(
    every_k: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    accumulator_dtype: Any = None,
    then: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam on k gradients at a time, gathered in its moments.

    Both moments gather as the momentum of :func:`accumulate_in_momentum` does. In call t,

    .. math::

      m_t &= \beta_{1,t} m_{t-1} + \frac{1 - \beta_1}{k} g_t, \qquad
      v_t = \beta_{2,t} v_{t-1} + \frac{1 - \beta_2}{k} g_t^2 \\
      u_t &= \frac{m_t / (1 - \beta_1^{t/k})}{\sqrt{v_t / (1 - \beta_2^{t/k})} + \varepsilon}
        \quad \text{if } k \mid t, \text{ otherwise } 0

    with :math:`\beta_{i,t} = \beta_i` in the first call of a group and 1 in the others.

    This is not `optax.MultiSteps` around Adam, but for k = 1: the second moment is that of the
    single gradients, the mean of their squares and not the square of their mean. Where noise
    dominates it is up to k times larger, and the learning rate should grow by up to
    :math:`\sqrt k`.

    Args:
      every_k: How many gradients make a step, see :func:`accumulate_in_momentum`.
      b1: Decay of the first moment per group, in [0, 1).
      b2: Decay of the second moment per group, in [0, 1).
      eps: :math:`\varepsilon`, positive in float32.
      accumulator_dtype: dtype of both moments; None: float32 or wider. In bfloat16 a second
        moment with b2 above 0.99 hardly ever falls again.
      then: A transformation run in every k-th call only, see :func:`accumulate_in_momentum`.

    Returns:
      A gradient transformation, 8 bytes of state per parameter. Updates keep their dtype.

    Raises:
      ValueError: If a number is out of range.
      TypeError: If an argument has the wrong type or, at `init`, a parameter is not
        floating-point or complex.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> tx = zoo.accumulate_in_adam(2, then=optax.scale_by_learning_rate(1e-3))
      >>> state = tx.init(jnp.zeros(2))
      >>> for g in (jnp.array([1.0, 1.0]), jnp.array([1.0, -1.0])):
      ...     updates, state = tx.update(g, state)
      ...     print(updates + 0.0)
      [0. 0.]
      [-0.001  0.   ]

    References:
      Su, `Gradient accumulation hidden in momentum <https://kexue.fm/archives/8634>`_, 2021;
      Zhang et al., `Adam Accumulation to Reduce Memory Footprints of both Activations and
      Gradients for Large-scale DNN Training <https://arxiv.org/abs/2305.19982>`_, 2023.
    """
    _check_every_k(every_k)
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_decay_rate("b2", b2, 0.999)
    _checks.check_number("eps", eps, at_least=_checks.LEAST_EPS, remedy="pass e.g. 1e-8")
    _checks.check_dtype("accumulator_dtype", accumulator_dtype)
    then = _checked_then(then)

    def init(params):
        _checks.check_params(params, who="accumulate_in_adam")
        return AccumulateInAdamState(
            mini_step=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            mu=_moments.zeros(params, accumulator_dtype),
            nu=_moments.zeros(_moments.real_zeros(params), accumulator_dtype),
            then=() if then is None else then.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        _states.check_state(state, AccumulateInAdamState, updates, moments=("mu", "nu"))
        _check_then_state(then, state.then, updates)
        first, last, mini_step = _advance(state.mini_step, every_k)
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(
            lambda g, m: _gather(_moments.widen(g), m, b1, first, every_k), updates, state.mu
        )
        nu = jax.tree.map(
            lambda g, v: _gather(_moments.abs_sq(g), v, b2, first, every_k), updates, state.nu
        )

        def direction(m, v):
            c1, c2 = _moments.bias_correction(b1, count), _moments.bias_correction(b2, count)
            return (m / c1.astype(v.dtype)) / (_moments.root(v / c2.astype(v.dtype)) + eps)

        updates, then_state = _emit(
            last,
            lambda: jax.tree.map(direction, mu, nu),
            then,
            updates,
            state.then,
            params,
            extra_args,
        )
        return updates, AccumulateInAdamState(
            mini_step=mini_step,
            count=jnp.where(last, count, state.count),
            mu=optax.tree.cast_like(mu, state.mu),
            nu=optax.tree.cast_like(nu, state.nu),
            then=then_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check_every_k(every_k: Any) -> None:
    remedy = "pass the number of gradients per step, e.g. 4"
    if isinstance(every_k, np.ndarray) and every_k.ndim == 0:
        every_k = every_k.item()
    if not isinstance(every_k, jax.Array):
        _checks.check_integer("every_k", every_k, at_least=1, remedy=remedy)
    elif every_k.ndim or not jnp.issubdtype(every_k.dtype, jnp.integer):
        raise TypeError(f"every_k must be one integer, got the array {every_k!r}; {remedy}")


def _checked_then(then: Any) -> optax.GradientTransformationExtraArgs | None:
    if then is None:
        return None
    _checks.check_transformation("then", then)
    return optax.with_extra_args_support(then)


def _check_then_state(then: Any, state: Any, params: Any) -> None:
    """Raises unless the state of `then` is one that its `init` would make."""
    if then is not None:
        _states.check_foreign("the transformation in then", state, then.init, params)
    elif jax.tree.leaves(state):
        _states.check_foreign("then=None", state, lambda _: (), params)


def _advance(mini_step: Any, every_k: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether a call begins its group, whether it ends it, and the next call's `mini_step`."""
    following = optax.safe_increment(mini_step)
    last = following >= every_k
    return mini_step == 0, last, jnp.where(last, 0, following)


def _gather(x: jax.Array, average: jax.Array, decay: Any, first: jax.Array, k: Any) -> jax.Array:
    """One k-th of decay·average + (1 − decay)·x: the decay falls due in the group's first call."""
    return jnp.where(first, decay, 1) * _moments.widen(average) + (1 - decay) / k * x


def _emit(
    last: jax.Array,
    step: Callable[[], Any],
    then: optax.GradientTransformationExtraArgs | None,
    updates: Any,
    state: Any,
    params: Any,
    extra_args: dict[str, Any],
) -> tuple[Any, Any]:
    """Updates and the state of `then`: in other calls than a group's last, zeros and as it was."""
    if then is None:
        # A selection, unlike a branch, is fused with the step and with what follows.
        return jax.tree.map(
            lambda g, u: jnp.where(last, u, 0).astype(jnp.result_type(g)), updates, step()
        ), state

    def move():
        moved, advanced = then.update(
            optax.tree.cast_like(step(), updates), state, params, **extra_args
        )
        return optax.tree.cast_like(moved, updates), jax.tree.map(_in_dtype_of, advanced, state)

    return jax.lax.cond(last, move, lambda: (optax.tree.zeros_like(updates), state))


def _in_dtype_of(new: Any, old: Any) -> Any:
    """Both branches of a `cond` need one dtype. Random keys have theirs and cannot be cast."""
    return new if jnp.result_type(new) == jnp.result_type(old) else new.astype(old.dtype)
