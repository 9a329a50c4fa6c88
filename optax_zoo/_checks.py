"""Errors about arguments, raised where an optimizer is built or initialised.

Every message names the argument, the value seen and the remedy. Of arrays, traced or not, only the
shape and the kind are looked at: their values belong to the compiled program
(`optax.inject_hyperparams` makes such arrays of every number).
"""

import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# The least eps that float32 does not flush to 0, where a weight without gradients has 0 / eps.
LEAST_EPS = float(jnp.finfo(jnp.float32).tiny)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
    remedy: str,
) -> None:
    """Raises unless `value` is a real number in range, or a scalar array."""
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(f"{name} must be one number, got the array {value!r}; {remedy}")
        return
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not _is_number(value):
        hint = (
            "; a hyper-parameter that follows the step goes through optax.inject_hyperparams"
            if callable(value)
            else ""
        )
        raise TypeError(f"{name} must be a number, got {value!r}; {remedy}{hint}")
    limits = {
        "finite": finite and math.isinf(value),
        f"> {above}": above is not None and value <= above,
        f">= {at_least}": at_least is not None and value < at_least,
        f"< {below}": below is not None and value >= below,
        f"<= {at_most}": at_most is not None and value > at_most,
        "a number": math.isnan(value),
    }
    broken = [limit for limit, exceeded in limits.items() if exceeded]
    if broken:
        raise ValueError(f"{name} must be {' and '.join(broken)}, got {value!r}; {remedy}")


def _is_number(value: Any) -> bool:
    """Whether `value` is a real number of Python's, NumPy's or ml_dtypes' (bfloat16, ...)."""
    if isinstance(value, np.generic):
        return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_zero(value: Any) -> bool:
    """Whether `value` is the number 0, not an array or a schedule that may be."""
    is_number = _is_number(value) or isinstance(value, np.ndarray)
    return is_number and np.ndim(value) == 0 and value == 0


def check_decay_rate(name: str, value: Any, default: float) -> None:
    """Raises unless `value` can be the decay of a moving average, in [0, 1)."""
    check_number(name, value, at_least=0.0, below=1.0, remedy=f"the usual value is {default}")


def check_schedulable(name: str, value: Any, *, remedy: str) -> None:
    """Raises unless `value` is a non-negative number or a schedule."""
    if not callable(value):
        check_number(name, value, at_least=0.0, remedy=f"{remedy}, or a schedule (step -> number)")


def check_flag(name: str, value: Any) -> None:
    """Raises unless `value` is a Python bool: it fixes the structure of the program."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} must be True or False, got {value!r}; under optax.inject_hyperparams "
            f"list it in static_args=({name!r},)"
        )


def check_integer(name: str, value: Any, *, at_least: int, remedy: str) -> None:
    """Raises unless `value` is a Python integer (it fixes shapes or loops) and large enough."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} must be a Python int, got the array {value!r}; pass an int (under "
            f"optax.inject_hyperparams list it in static_args=({name!r},))"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r}; {remedy}")
    if value < at_least:
        raise ValueError(f"{name} must be >= {at_least}, got {value!r}; {remedy}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in tuple(choices):
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}; "
            "pass one of these strings"
        )


def check_dtype(name: str, value: Any) -> None:
    """Raises unless `value` is None or names a floating-point type."""
    if value is None:
        return
    remedy = "pass e.g. jnp.bfloat16"
    if isinstance(value, jax.Array):
        remedy += f" (under optax.inject_hyperparams list it in static_args=({name!r},))"
        floating = False
    else:
        try:
            floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
        except TypeError:
            floating = False
    if not floating:
        raise TypeError(f"{name} must be a floating-point dtype or None, got {value!r}; {remedy}")


def check_params(
    params: Any,
    *,
    who: str,
    remedy: str = "leave it out with optax.masked or optax.partition, or cast it",
    complex_remedy: str | None = None,
) -> None:
    """Raises if a leaf is an integer or bool or, given a `complex_remedy`, if it is complex."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = jnp.result_type(leaf)
        name = f"params{jax.tree_util.keystr(path)}"
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{name} has dtype {dtype}, and {who} updates only floating-point arrays; {remedy}"
            )
        if complex_remedy is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} has dtype {dtype}, which {who} does not support; {complex_remedy}"
            )


def require_params(params: Any, *, who: str) -> None:
    """Raises if `update` was called without the parameters that `who` needs."""
    if params is None:
        raise ValueError(
            f"params is None, and {who} needs the parameters; call update(gradients, state, params)"
        )


def check_mask(name: str, mask: Any) -> None:
    """Raises unless every leaf of `mask` is a bool, or `mask` is callable."""
    if callable(mask):
        return
    for leaf in jax.tree.leaves(mask):
        boolean = getattr(leaf, "dtype", type(leaf)) in (bool, np.bool_) and np.ndim(leaf) == 0
        if not boolean or isinstance(leaf, Tracer):
            raise TypeError(
                f"{name} must hold bools, got the leaf {leaf!r}; pass True or False per leaf, or "
                "a callable on the parameters"
            )


def broadcast_prefix(
    name: str, prefix: Any, tree: Any, what: str = "bools", *, callable_too: bool = True
) -> Any:
    """Spreads a prefix pytree over `tree`: one entry for each of its leaves.

    Args:
      name: The argument's name, for the error.
      prefix: A pytree whose structure is `tree`'s or a prefix of it.
      tree: The pytree to cover.
      what: What the prefix holds, for the error.
      callable_too: Whether the argument may be a callable as well, for the error.

    Returns:
      A pytree of `tree`'s structure.

    Raises:
      ValueError: If `prefix` does not fit.
    """
    try:
        return jax.tree.broadcast(prefix, tree)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} does not fit the parameters: got the structure {jax.tree.structure(prefix)} "
            f"for parameters of structure {jax.tree.structure(tree)}; pass a pytree of {what} with "
            "the parameters' structure or a prefix of it" + ", or a callable" * callable_too
        ) from error


def fitted_mask(name: str, mask: Any) -> Callable[[Any], Any]:
    """`mask` as a callable that gives one bool for each leaf of the tree, or says why not.

    None counts as True.
    """
    mask = True if mask is None else mask
    check_mask(name, mask)

    def fit(tree: Any) -> Any:
        if not jax.tree.leaves(tree):
            return tree  # nothing to fit: an empty tree, or what optax.tree.map_params stands in
        found = mask(tree) if callable(mask) else mask
        check_mask(name, found)
        return broadcast_prefix(name, found, tree)

    return fit


def check_callable(name: str, value: Any, remedy: str) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r}; {remedy}")


def check_transformation(name: str, value: Any) -> None:
    """Raises unless `value` has `init` and `update`."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise TypeError(
            f"{name} must be a gradient transformation, got {value!r}; pass e.g. optax.identity()"
        )
