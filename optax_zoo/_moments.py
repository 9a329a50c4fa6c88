"""Moving averages of gradients, kept in float32 or wider whatever the parameters' dtype."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax


def wide_dtype(x: Any) -> jnp.dtype:
    """float32 for narrower floats, the array's own dtype otherwise."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def widen(x: Any) -> jax.Array:
    """`x` in float32 or wider."""
    return jnp.asarray(x, wide_dtype(x))


def zeros(params: Any, dtype: Any = None) -> Any:
    """A moment's start: zeros in `dtype`, by default float32 or wider."""
    dtype = None if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype or wide_dtype(p)), params)


def real_zeros(params: Any) -> Any:
    """The start of a moment of |g|², which is real also for complex parameters."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=widen(p).real.dtype), params)


def ema(x: jax.Array, average: jax.Array, decay: Any) -> jax.Array:
    """decay·average + (1 − decay)·x in float32 or wider."""
    return decay * widen(average) + (1 - decay) * widen(x)


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|² elementwise, real, in float32 or wider."""
    x = widen(x)
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def power_minus_one(log_base: Any, count: jax.typing.ArrayLike) -> jax.Array:
    """base^count − 1 from log(base), exact to rounding where the power is near 1.

    In float32, `1 - 0.999**t` is 1.3e-5 off (relative) at t = 1, because 0.999 itself is rounded;
    with the logarithm taken in double precision it is 2e-7 off.
    """
    return jnp.expm1(jnp.asarray(count, float) * log_base)


def bias_correction(decay: Any, count: jax.typing.ArrayLike) -> jax.Array:
    """1 − decay^count, the weight that an average started at zero has gathered."""
    if isinstance(decay, jax.Array):
        log_decay = jnp.log(decay)
    else:
        log_decay = math.log(decay) if decay > 0 else -math.inf
    return -power_minus_one(log_decay, count)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` on float32 copies of narrower updates and parameters.

    Optax keeps second moments and momentum in the parameters' dtype, where bfloat16 rounds
    0.999·v + 0.001·g² back to v. The state is `inner`'s own, float32 or wider; updates come back
    in the incoming dtype.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return inner.init(jax.tree.map(widen, params))

    def update(updates, state, params=None, **extra_args):
        wide_params = None if params is None else jax.tree.map(widen, params)
        wide_updates, state = inner.update(
            jax.tree.map(widen, updates), state, wide_params, **extra_args
        )
        return optax.tree.cast_like(wide_updates, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
