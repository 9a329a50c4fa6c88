"""The score-function estimator, REINFORCE, with control variates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _moments, _sampling


def policy_gradient(
    sample: Callable[..., Any],
    log_prob: Callable[..., Any],
    loss: Callable[..., Any],
    *,
    num_samples: int,
    baseline: Any = "leave_one_out",
    batch_size: int | None = None,
) -> Callable[..., tuple[jax.Array, Any]]:
    r"""Value and gradient of an expected loss whose distribution depends on the parameters.

    For :math:`J(\theta) = E_{y \sim p_\theta} \ell(y)` and N samples :math:`y_i`,

    .. math::

      \nabla J \approx \tfrac{1}{N} \sum_i (\ell(y_i) - B)\, \nabla_\theta \log p_\theta(y_i)

    The loss is only evaluated, and samples are not differentiated through. Rewards are negative
    losses.

    Args:
      sample: `sample(params, key, *args) -> y`, any pytree of arrays.
      log_prob: `log_prob(params, y, *args) -> scalar`, differentiable in `params`.
      loss: `loss(y, *args) -> scalar` to be minimised; floats, integers or bools.
      num_samples: Number N of samples.
      baseline: B. None is 0; a number (or a traced scalar: a running mean of earlier values) adds
        no bias; "leave_one_out", for each sample the mean of the others, adds none; "mean" shrinks
        the expectation by (N − 1)/N; "optimal", the mean weighted by
        :math:`|\nabla \log p(y_i)|^2`, has a bias of the same order and takes another N gradients.
        The last three need N ≥ 2.
      batch_size: How many samples are vectorised at once; None: all. At 1 `sample` and `loss` are
        not vectorised. All N samples are kept, and the memory of so many gradients.

    Returns:
      A function `(params, key, *args) -> (value, gradient)`: the mean loss of the samples, and an
      estimate of the structure and dtypes of `params`. `params` are any pytree of real
      floating-point arrays, `key` is a PRNG key; sample i is drawn from
      `jax.random.split(key, num_samples)[i]`. Keyword arguments go to all three functions.

    Raises:
      ValueError: If an argument is out of range or unknown.
      TypeError: If an argument has the wrong type; when called, if `key` is missing, a parameter
        is not real and floating-point, or `log_prob` or `loss` does not return a real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_zoo as zoo
      >>> reward = jnp.array([0.0, 0.0, 3.0])
      >>> estimate = zoo.policy_gradient(
      ...     lambda logits, key: jax.random.categorical(key, logits),
      ...     lambda logits, y: jax.nn.log_softmax(logits)[y],
      ...     lambda y: -reward[y],
      ...     num_samples=4096,
      ... )
      >>> value, gradient = estimate(jnp.zeros(3), jax.random.key(0))
      >>> print(value.round(1), gradient.round(1))  # -p · (reward - mean reward)
      -1.0 [ 0.3  0.3 -0.7]

    References:
      Williams, `Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
      Learning <https://doi.org/10.1007/BF00992696>`_, 1992. Kool et al., `Buy 4 REINFORCE Samples,
      Get a Baseline for Free! <https://openreview.net/forum?id=r1lgTGL5DE>`_, 2019.
    """
    _checks.check_callable("sample", sample, "pass a function (params, key, *args) -> y")
    _checks.check_callable("log_prob", log_prob, "pass a function (params, y, *args) -> scalar")
    _checks.check_callable("loss", loss, "pass a function (y, *args) -> scalar")
    _sampling.check_sampling(num_samples, batch_size)
    _sampling.check_baseline(baseline, num_samples)

    def value_and_grad(
        params: Any, key: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[jax.Array, Any]:
        _sampling.check_call(params, key, who="policy_gradient")
        params = jax.tree.map(jnp.asarray, params)

        def draw(key):
            y = sample(params, key, *args, **kwargs)
            return y, _sampling.real_scalar("loss", loss(y, *args, **kwargs))

        def log_p(params, y):
            return _sampling.real_scalar("log_prob", log_prob(params, y, *args, **kwargs))

        def score(y):
            return jax.tree.map(_moments.widen, jax.grad(log_p)(params, y))

        def weighted_scores(batch):
            weights, ys = batch

            # One gradient of the weighted sum: a batch of gradients never exists.
            def weighted(params):
                return jnp.sum(weights * jax.vmap(log_p, (None, 0))(params, ys))

            return jax.tree.map(_moments.widen, jax.grad(weighted)(params))

        keys = jax.random.split(key, num_samples)
        ys, losses = _sampling.map_in_batches(draw, keys, batch_size)
        norms = _sampling.squared_norms(score, ys, baseline, batch_size)
        weights = _sampling.subtract_baseline(losses, baseline, norms) / num_samples
        grads = _sampling.sum_in_batches(weighted_scores, (weights, ys), batch_size)
        return losses.mean(), optax.tree.cast_like(grads, params)

    return value_and_grad
