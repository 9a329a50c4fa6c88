"""MGS: search among random steps, half of them around a surrogate's gradient step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _moments, _sampling

UNIFORM = "uniform"


def guided_search(
    surrogate: Callable[..., Any],
    objective: Callable[..., Any],
    *,
    alpha: Any,
    sigma: Any = 1.0,
    num_samples: int = 4,
    mix: Any = 0.5,
    step: Any = 1.0,
    clip_norm: Any = 1.0,
    batch_size: int | None = None,
) -> Callable[..., tuple[Any, Any]]:
    r"""Stands where `jax.value_and_grad(objective)` stands: MLE-guided parameter search (MGS).

    The objective :math:`\ell` is only evaluated; the gradient g of a differentiable surrogate,
    such as the cross-entropy for the error rate, says where to look. Candidate steps
    :math:`\Delta_i` are drawn from q and weighted towards the target p by self-normalised
    importance sampling:

    .. math::

      p(\Delta) &\propto \exp(-(\ell(x + \Delta) - \ell(x)) / \alpha) \\
      q(\Delta) &= \pi\, N(\Delta; -\eta g, \sigma^2 I) + (1 - \pi)\, N(\Delta; 0, \sigma^2 I) \\
      w &= \operatorname{softmax}_i(\log p(\Delta_i) - \log q(\Delta_i)), \qquad
      \text{gradient} = -\textstyle\sum_i w_i \Delta_i

    so that descent at learning rate 1 makes the expected step. The candidates are stratified: a
    share π of them around the gradient step, at π = 1/2 every other one, as in the released code;
    where πN is not an integer, its rounding is random with the right mean. Log-densities are exact
    for every σ (the released code takes σ = 1 whatever it draws with) and enter the softmax as
    they are, so that none underflows.

    Among d parameters :math:`\log q` varies by about :math:`\sqrt{d / 2}` between candidates,
    because their lengths do: the objective has a say only where its differences over α are larger.

    Args:
      surrogate: `surrogate(params, *args) -> scalar`, differentiable.
      objective: `objective(params, *args) -> scalar` to be minimised; floats, integers or bools.
      alpha: Temperature α, positive, in the units of the objective. Towards 0 the best candidate
        is taken, towards infinity candidates are weighted by 1/q alone.
      sigma: Standard deviation of the candidates, positive: a number, a prefix pytree of numbers,
        or "uniform" for the mean absolute value of g in each array.
      num_samples: Number of candidates. Each takes an evaluation of the objective, the value takes
        one more (which `jit` drops where nobody uses the value).
      mix: π in [0, 1], the share of candidates around the gradient step.
      step: η, the length of the gradient step.
      clip_norm: Global norm to which g is clipped first; None: not at all.
      batch_size: How many candidates are vectorised at once; None: all. At 1 the objective is not
        vectorised. Memory is that of so many evaluations and copies of the parameters.

    Returns:
      A function `(params, key, *args) -> (value, gradient)`: `objective(params, *args)`, and a
      direction to descend of the structure and dtypes of `params`; zeros if the objective is finite
      at no candidate. A surrogate's gradient that is not finite counts as zero. `params` are any
      pytree of real floating-point arrays, `key` is a PRNG key. Keyword arguments go to both
      functions. The paper clips the result again (`optax.clip_by_global_norm`) and gives it to
      Adam.

    Raises:
      ValueError: If an argument is out of range.
      TypeError: If an argument has the wrong type; when called, if `key` is missing, a parameter
        is not real and floating-point, or a function does not return a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_zoo as zoo
      >>> estimate = zoo.guided_search(
      ...     lambda x: jnp.sum((x - 3.0) ** 2),
      ...     lambda x: jnp.sum(jnp.abs(jnp.round(x - 3.0))),  # what counts, without a gradient
      ...     alpha=0.1,
      ...     sigma=0.1,
      ... )
      >>> value, direction = jax.jit(estimate)(jnp.zeros(2), jax.random.key(0))
      >>> print(value, (direction < 0).all())
      6.0 True

    References:
      Welleck and Cho, `MLE-guided parameter search for task loss minimization in neural sequence
      modeling <https://arxiv.org/abs/2006.03158>`_, 2020, Algorithm 1.
    """
    _checks.check_callable("surrogate", surrogate, "pass a function (params, *args) -> scalar")
    _checks.check_callable("objective", objective, "pass a function (params, *args) -> scalar")
    _checks.check_number("alpha", alpha, above=0.0, remedy="pass e.g. 0.1")
    if not isinstance(sigma, str):
        for scale in jax.tree.leaves(sigma, is_leaf=lambda x: x is None):
            remedy = f"pass e.g. 0.1, a prefix pytree of numbers, or {UNIFORM!r}"
            _checks.check_number("sigma", scale, above=0.0, remedy=remedy)
    elif sigma != UNIFORM:
        raise ValueError(f"sigma must be a number or {UNIFORM!r}, got {sigma!r}; pass e.g. 0.1")
    _sampling.check_sampling(num_samples, batch_size)
    _checks.check_number("mix", mix, at_least=0.0, at_most=1.0, remedy="the usual value is 0.5")
    _checks.check_number("step", step, at_least=0.0, remedy="the usual value is 1.0")
    if clip_norm is not None:
        _checks.check_number("clip_norm", clip_norm, above=0.0, remedy="pass e.g. 1.0, or None")

    def value_and_grad(params: Any, key: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        _sampling.check_call(params, key, who="guided_search")
        params = jax.tree.map(jnp.asarray, params)

        def guide(params):
            return _sampling.real_scalar("surrogate", surrogate(params, *args, **kwargs))

        def loss(params):
            return _sampling.real_scalar("objective", objective(params, *args, **kwargs))

        gradient = jax.tree.map(_moments.widen, jax.grad(guide)(params))
        if clip_norm is not None:
            clip = optax.clip_by_global_norm(clip_norm)
            gradient, _ = clip.update(gradient, clip.init(params))
        is_finite = jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(gradient)]).all()
        gradient = jax.tree.map(lambda g: jnp.where(is_finite, g, 0), gradient)
        scales = _scales(sigma, gradient)
        # In units of sigma, in which log q needs no sigma: the gradient step is -shift.
        shift = jax.tree.map(
            lambda g, s: jnp.where(s > 0, step * g / jnp.where(s > 0, s, 1), 0), gradient, scales
        )
        side_key, noise_key = jax.random.split(key)
        sides = guided_sides(side_key, num_samples, mix)
        keys = jax.random.split(noise_key, num_samples)

        def candidate(key, side):
            noise = _sampling.standard_normal(key, params)
            # What no candidate moves must not weigh either.
            noise = jax.tree.map(lambda e, s: jnp.where(s > 0, e, 1), noise, scales)
            jump = jax.tree.map(
                lambda e, h, s: s * (e - side.astype(e.dtype) * h), noise, shift, scales
            )
            return noise, jump

        def evaluate(sample):
            noise, jump = candidate(*sample)
            log_q = log_proposal(noise, shift, sample[1], mix)
            return loss(_sampling.moved(params, 1, jump)), log_q

        samples = (keys, sides)
        losses, log_q = _sampling.map_in_batches(evaluate, samples, batch_size)
        weights = importance_weights(losses, log_q, alpha)
        descent = _sampling.weighted_sum(
            -weights, samples, lambda sample: candidate(*sample)[1], batch_size
        )
        value = objective(params, *args, **kwargs)
        _sampling.real_scalar("objective", value)
        return value, optax.tree.cast_like(descent, params)

    return value_and_grad


def guided_sides(key: jax.Array, num_samples: int, mix: Any) -> jax.Array:
    """Which candidates lie around the gradient step: on average the share `mix`, spread evenly."""
    count = jnp.floor(num_samples * jnp.asarray(mix, float) + jax.random.uniform(key, dtype=float))
    count = jnp.minimum(count.astype(jnp.int32), num_samples)
    return jnp.arange(num_samples) * count % num_samples < count


def log_proposal(noise: Any, shift: Any, side: jax.Array, mix: Any) -> jax.Array:
    """log q of the candidate `noise − side · shift`, in units of sigma, up to a constant.

    Half the squared norm of the noise enters less its expectation, a constant that would cost
    digits in large trees; noise of 1 adds nothing.
    """
    zero = jnp.zeros((), jnp.float32)
    energy = sum((jnp.sum(e * e - 1) / 2 for e in jax.tree.leaves(noise)), zero)
    across = sum(
        (jnp.sum(e * h) for e, h in zip(*map(jax.tree.leaves, (noise, shift)), strict=True)), zero
    )
    length = sum((jnp.sum(h * h) / 2 for h in jax.tree.leaves(shift)), zero)
    # Of the two components, seen from the one that was drawn from, which is at distance `noise`.
    mix = jnp.asarray(mix, energy.dtype)
    drawn, other = jnp.where(side, mix, 1 - mix), jnp.where(side, 1 - mix, mix)
    gap = jnp.where(side, across, -across) - length
    return jnp.logaddexp(jnp.log(drawn), jnp.log(other) + gap) - energy


def importance_weights(losses: jax.Array, log_q: jax.Array, alpha: Any) -> jax.Array:
    """softmax(−loss/alpha − log q); candidates whose loss is not finite weigh nothing."""
    finite = jnp.isfinite(losses)
    # Above the least loss rather than above the centre's: the same weights, and less to round off.
    above = losses - jnp.min(losses, where=finite, initial=jnp.inf)
    logits = jnp.where(finite, -above / jnp.asarray(alpha, losses.dtype) - log_q, -jnp.inf)
    return jnp.where(finite.any(), jax.nn.softmax(logits), 0)


def _scales(sigma: Any, gradient: Any) -> Any:
    """The standard deviation of each array's noise."""
    if isinstance(sigma, str):
        return jax.tree.map(
            lambda g: jnp.abs(g).mean() if g.size else jnp.zeros((), g.dtype), gradient
        )
    spread = _checks.broadcast_prefix("sigma", sigma, gradient, "numbers", callable_too=False)
    return jax.tree.map(lambda g, s: jnp.asarray(s, g.dtype), gradient, spread)
