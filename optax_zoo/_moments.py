"""Moving averages of gradients, kept in float32 or wider whatever the parameters' dtype."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def wide_dtype(x: Any) -> Any:
    """float32 for narrower floats, the array's own dtype otherwise."""
    dtype = jnp.result_type(x)
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


def widest_dtype(leaves: Iterable[Any]) -> Any:
    """What holds all of these real arrays: float32, or wider if one of them is."""
    # Not `jnp.result_type`, which refuses two dtypes under JAX's strict promotion.
    dtypes = [jnp.dtype(jnp.float32), *map(wide_dtype, leaves)]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def widen(x: Any) -> jax.Array:
    """`x` in float32 or wider."""
    return jnp.asarray(x, wide_dtype(x))


def zeros(params: Any, dtype: Any = None) -> Any:
    """A moment's start: zeros, float32 or wider; `dtype` replaces that for real parameters."""
    dtype = None if dtype is None else jax.dtypes.canonicalize_dtype(dtype)

    def start(p):
        wide = wide_dtype(p)
        is_real = jnp.issubdtype(wide, jnp.floating)
        return jnp.zeros_like(p, dtype=dtype if dtype is not None and is_real else wide)

    return jax.tree.map(start, params)


def real_zeros(params: Any) -> Any:
    """The start of a moment of |g|², which is real also for complex parameters."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.finfo(wide_dtype(p)).dtype), params)


def ema(x: jax.Array, average: jax.Array, decay: Any) -> jax.Array:
    """decay·average + (1 − decay)·x in float32 or wider."""
    return decay * widen(average) + (1 - decay) * widen(x)


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|² elementwise, real, in float32 or wider."""
    x = widen(x)
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def root(x: jax.Array) -> jax.Array:
    """The square root; that of a sum of squares has gradient 0 at 0, not inf · 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), x)


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
