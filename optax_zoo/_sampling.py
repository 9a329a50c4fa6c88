"""What the estimators share: keys, noise, control variates, sums over samples in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _moments

SAME_SAMPLE_BASELINES = ("mean", "leave_one_out", "optimal")


def check_sampling(num_samples: Any, batch_size: Any) -> None:
    """Raises unless both are positive Python integers; `batch_size` may be None."""
    _checks.check_integer("num_samples", num_samples, at_least=1, remedy="pass e.g. 16")
    if batch_size is not None:
        _checks.check_integer(
            "batch_size", batch_size, at_least=1, remedy="pass e.g. 8, or None for all at once"
        )


def check_baseline(baseline: Any, num_samples: int) -> None:
    """Raises unless `subtract_baseline` takes it for so many samples."""
    if baseline is None:
        return
    names = ", ".join(map(repr, SAME_SAMPLE_BASELINES))
    if not isinstance(baseline, str):
        remedy = f"pass a number, None, or one of {names}"
        _checks.check_number("baseline", baseline, remedy=remedy)
        return
    _checks.check_choice("baseline", baseline, SAME_SAMPLE_BASELINES)
    if num_samples < 2:
        raise ValueError(
            f"num_samples must be >= 2 with baseline={baseline!r}, got {num_samples}; draw more, "
            "or pass baseline=None or a number"
        )


def check_call(params: Any, key: Any, *, who: str) -> None:
    """Raises unless `params` are real floating-point arrays and `key` is one PRNG key."""
    _checks.check_params(
        params,
        who=who,
        remedy="close over it or pass it among the other arguments",
        complex_remedy="pass real and imaginary part as two arrays",
    )
    dtype, rank = getattr(key, "dtype", None), getattr(key, "ndim", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and rank == 0
    is_legacy = dtype == jnp.uint32 and rank == 1
    if not (is_typed or is_legacy):
        raise TypeError(
            f"key must be one PRNG key, got {key!r}; call the estimator of {who} with "
            "(params, key, *args), where key is e.g. jax.random.key(0), a new one each time"
        )


def real_scalar(name: str, value: Any) -> jax.Array:
    """What the function `name` returned, in float32 or wider; raises unless it is one number."""
    if not jax.tree_util.all_leaves([value]) or jnp.shape(value):
        found = jax.tree.map(jnp.shape, value)
        raise TypeError(
            f"{name} must return a scalar, got values of shape {found}; reduce them, e.g. by "
            "jnp.mean, and return nothing besides"
        )
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name} must return a real scalar, got {dtype}; take e.g. its real part")
    floating = jnp.issubdtype(dtype, jnp.floating)
    return jnp.asarray(value, _moments.wide_dtype(value) if floating else jnp.float32)


def standard_normal(key: jax.Array, tree: Any) -> Any:
    """Independent N(0, 1) noise of the shapes of `tree`, float32 or wider."""
    return optax.tree.random_like(key, jax.tree.map(_moments.widen, tree))


def moved(params: Any, scale: Any, direction: Any) -> Any:
    """params + scale · direction, summed in float32 or wider, in the dtypes of `params`."""
    return jax.tree.map(
        lambda p, d: (_moments.widen(p) + jnp.asarray(scale, d.dtype) * d).astype(p.dtype),
        params,
        direction,
    )


def subtract_baseline(losses: jax.Array, baseline: Any, norms: jax.Array | None) -> jax.Array:
    """Losses less a control variate, for estimates of the form mean[(loss − B) · score].

    Args:
      losses: One for each of N samples.
      baseline: None for 0; a number; "mean"; "leave_one_out", for each sample the mean of the
        others; "optimal", the mean weighted by the scores' squared norms.
      norms: |score|² of each sample; None unless the baseline is "optimal".

    Returns:
      N numbers.
    """
    if baseline is None:
        return losses
    if not isinstance(baseline, str):
        return losses - jnp.asarray(baseline, losses.dtype)
    n = losses.size
    centred = losses - losses.mean()
    if baseline == "leave_one_out":
        return centred * (n / (n - 1))
    if norms is not None:
        total = norms.sum()
        weights = norms / jnp.where(total > 0, total, 1)
        return centred - (weights * centred).sum()
    return centred


def squared_norms(
    score: Callable[[Any], Any], xs: Any, baseline: Any, batch_size: int | None
) -> jax.Array | None:
    """|score|² for each entry of `xs` where the baseline asks for it."""
    if not isinstance(baseline, str) or baseline != "optimal":
        return None

    def squared_norm(x):
        return optax.tree.norm(score(x), squared=True)

    return map_in_batches(squared_norm, xs, batch_size)


def map_in_batches(function: Callable[[Any], Any], xs: Any, batch_size: int | None) -> Any:
    """`function` of each entry of `xs`, `batch_size` at once, one after the other if it is 1."""
    if batch_size == 1:
        return jax.lax.map(function, xs)
    if batch_size is None or batch_size >= _length(xs):
        return jax.vmap(function)(xs)
    return jax.lax.map(function, xs, batch_size=batch_size)


def sum_in_batches(function: Callable[[Any], Any], xs: Any, batch_size: int | None) -> Any:
    """The sum of `function` over batches of `xs`; `function` itself sums within a batch.

    Unlike a sum over `map_in_batches`, it holds one result at a time.
    """
    n = _length(xs)
    if batch_size is None or batch_size >= n:
        return function(xs)
    whole = n - n % batch_size
    batches = jax.tree.map(
        lambda x: x[:whole].reshape(whole // batch_size, batch_size, *x.shape[1:]), xs
    )
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], batches))
    total, _ = jax.lax.scan(
        lambda total, batch: (optax.tree.add(total, function(batch)), None),
        optax.tree.zeros_like(shapes),
        batches,
    )
    if whole == n:
        return total
    return optax.tree.add(total, function(jax.tree.map(lambda x: x[whole:], xs)))


def weighted_sum(
    weights: jax.Array, samples: Any, draw: Callable[[Any], Any], batch_size: int | None
) -> Any:
    """Σ weight · draw(sample), in the dtypes of `draw`: noise is drawn anew rather than kept."""

    def batch_sum(batch):
        some_weights, some_samples = batch
        noise = jax.vmap(draw)(some_samples)
        return jax.tree.map(  # accelerators would otherwise round the factors to fewer bits
            lambda e: jnp.tensordot(some_weights.astype(e.dtype), e, 1, precision="highest"), noise
        )

    return sum_in_batches(batch_sum, (weights, samples), batch_size)


def _length(xs: Any) -> int:
    return jax.tree.leaves(xs)[0].shape[0]
