"""Gradients of functions that can only be evaluated: zeroth-order estimates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _sampling

KINDS = ("forward", "antithetic", "score", "ranks")
TWO_SIDED = ("antithetic", "ranks")


def zeroth_order_grad(
    fun: Callable[..., Any],
    *,
    sigma: Any,
    num_samples: int,
    kind: str = "antithetic",
    baseline: Any = None,
    batch_size: int | None = None,
) -> Callable[..., tuple[Any, Any]]:
    r"""Stands where `jax.value_and_grad(fun)` stands, for a `fun` that has no useful gradient.

    It estimates the gradient of the smoothed objective :math:`E f(x + \sigma e)`,
    :math:`e \sim N(0, I)`, from N directions :math:`e_i`. By `kind`:

    .. math::

      \text{forward:} \quad & \tfrac{1}{N} \sum_i \frac{f(x + \sigma e_i) - f(x)}{\sigma}\, e_i \\
      \text{antithetic:} \quad & \tfrac{1}{N} \sum_i
        \frac{f(x + \sigma e_i) - f(x - \sigma e_i)}{2 \sigma}\, e_i \\
      \text{score:} \quad & \tfrac{1}{N} \sum_i \frac{f(x + \sigma e_i) - B}{\sigma}\, e_i \\
      \text{ranks:} \quad & \text{antithetic, with } f \text{ replaced by its rank among all } 2N
        \text{ values, in } [-\tfrac12, \tfrac12]

    The first three are unbiased, for score with the baselines named below; their variance grows
    with the number of parameters. On a quadratic, antithetic differences are the exact directional
    derivatives at any :math:`\sigma`. The estimate by ranks does not change under increasing
    functions of `fun`; its size says nothing about slope. Equal values share their mean rank,
    and NaN counts as the worst.

    Args:
      fun: `fun(params, *args) -> scalar` to be minimised; floats, integers or bools. It need not
        be differentiable, only traceable (`jax.pure_callback` reaches what is not).
      sigma: Standard deviation of the perturbations, positive. It must exceed the spacing of the
        parameters' dtype: a bfloat16 near 1 does not move by less than 0.004.
      num_samples: Number N of directions; antithetic ones and ranks take two evaluations each. The
        value takes one more, which `jit` drops where nobody uses the value (forward needs it).
      kind: "forward", "antithetic", "score" or "ranks".
      baseline: B in score. None is 0; a number (or a traced scalar: a running mean) adds no bias;
        "leave_one_out", for each sample the mean of the others, adds none; "mean" shrinks the
        expectation by (N − 1)/N; "optimal", the mean weighted by :math:`|e_i|^2`, has a bias of
        the same order. The last three need N ≥ 2. The other kinds take none.
      batch_size: How many evaluations are vectorised at once; None: all. At 1 `fun` is not
        vectorised. Memory is that of so many evaluations and copies of the parameters: noise is
        drawn anew from its key, not kept.

    Returns:
      A function `(params, key, *args) -> (value, gradient)`: `fun(params, *args)`, and an estimate
      of the structure and dtypes of `params`, accumulated in float32 or wider. `params` are any
      pytree of real floating-point arrays, `key` is a PRNG key; direction i is drawn from
      `jax.random.split(key, num_samples)[i]`. Keyword arguments go to `fun`.

    Raises:
      ValueError: If an argument is out of range or unknown.
      TypeError: If an argument has the wrong type; when called, if `key` is missing, a parameter
        is not real and floating-point, or `fun` does not return a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_zoo as zoo
      >>> def misses(x):  # piecewise constant: its gradient is 0
      ...     return jnp.sum(jnp.round(x) != jnp.array([2.0, -1.0]))
      >>> estimate = jax.jit(zoo.zeroth_order_grad(misses, sigma=1.0, num_samples=4096))
      >>> value, gradient = estimate(jnp.zeros(2), jax.random.key(0))
      >>> print(value, gradient.round(1))
      2 [-0.1  0.2]

    References:
      Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement Learning
      <https://arxiv.org/abs/1703.03864>`_, 2017. Nesterov and Spokoiny, `Random Gradient-Free
      Minimization of Convex Functions <https://doi.org/10.1007/s10208-015-9296-2>`_, 2017.
    """
    _checks.check_callable("fun", fun, "pass a function (params, *args) -> scalar")
    _checks.check_number("sigma", sigma, above=0.0, remedy="pass e.g. 0.1")
    _checks.check_choice("kind", kind, KINDS)
    _sampling.check_sampling(num_samples, batch_size)
    if kind != "score" and baseline is not None:
        raise ValueError(
            f"baseline must be None for kind={kind!r}, got {baseline!r}; leave it out, or pass "
            "kind='score'"
        )
    _sampling.check_baseline(baseline, num_samples)
    signs = (1, -1) if kind in TWO_SIDED else (1,)

    def value_and_grad(params: Any, key: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        _sampling.check_call(params, key, who="zeroth_order_grad")
        params = jax.tree.map(jnp.asarray, params)
        value = fun(params, *args, **kwargs)
        centre = _sampling.real_scalar("fun", value)
        keys = jax.random.split(key, num_samples)

        def direction(key):
            return _sampling.standard_normal(key, params)

        def evaluate(sample):
            key, scale = sample
            point = _sampling.moved(params, scale, direction(key))
            return _sampling.real_scalar("fun", fun(point, *args, **kwargs))

        samples = (
            jnp.concatenate([keys] * len(signs)),
            jnp.concatenate([jnp.full(num_samples, sign * sigma) for sign in signs]),
        )
        values = _sampling.map_in_batches(evaluate, samples, batch_size)
        if kind == "score":
            norms = _sampling.squared_norms(direction, keys, baseline, batch_size)
            differences = _sampling.subtract_baseline(values, baseline, norms)
        elif kind == "forward":
            differences = values - centre
        else:
            values = centred_ranks(values) if kind == "ranks" else values
            differences = (values[:num_samples] - values[num_samples:]) / 2
        slopes = differences / jnp.asarray(sigma, differences.dtype)
        grads = _sampling.weighted_sum(slopes / num_samples, keys, direction, batch_size)
        return value, optax.tree.cast_like(grads, params)

    return value_and_grad


def centred_ranks(values: jax.Array) -> jax.Array:
    """Ranks from −1/2, the least value, to 1/2; equal values share the mean of their ranks."""
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    ordered = jnp.sort(values)
    below = jnp.searchsorted(ordered, values, side="left")
    not_above = jnp.searchsorted(ordered, values, side="right")
    ranks = (below + not_above - 1).astype(values.dtype) / 2
    return ranks / (values.size - 1) - 0.5
