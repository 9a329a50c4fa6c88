"""Errors about arguments, raised where an optimizer is built or initialised.

Every message names the argument, the value seen and the remedy. Arrays, traced or not, pass
untouched: their values belong to the compiled program (`optax.inject_hyperparams` makes such
arrays of every number).
"""

import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    finite: bool = True,
    remedy: str,
) -> None:
    """Raises unless `value` is a real number in range, or an array."""
    if isinstance(value, jax.Array):
        return
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = (
            "; a hyper-parameter that follows the step goes through optax.inject_hyperparams"
            if callable(value)
            else ""
        )
        raise TypeError(f"{name} must be a number, got {value!r}; {remedy}{hint}")
    value = float(value)
    wrong = (
        math.isnan(value)
        or (finite and math.isinf(value))
        or (above is not None and not value > above)
        or (at_least is not None and not value >= at_least)
        or (below is not None and not value < below)
    )
    if wrong:
        limits = [
            text
            for text, given in (
                ("finite", finite),
                (f"> {above}", above is not None),
                (f">= {at_least}", at_least is not None),
                (f"< {below}", below is not None),
            )
            if given
        ]
        raise ValueError(f"{name} must be {' and '.join(limits)}, got {value!r}; {remedy}")


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
            f"{name} must be a Python int, got the array {value!r}; under "
            f"optax.inject_hyperparams list it in static_args=({name!r},)"
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
    try:
        floating = jnp.issubdtype(jnp.dtype(value), jnp.inexact)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(
            f"{name} must be a floating-point dtype or None, got {value!r}; pass e.g. jnp.bfloat16"
        )


def check_params(params: Any, *, who: str, complex_remedy: str | None = None) -> None:
    """Raises if a leaf is not floating-point (or complex, where `complex_remedy` is given)."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = jnp.result_type(leaf)
        name = jax.tree_util.keystr(path) or "the parameter"
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"params{name if path else ''} has dtype {dtype}, and {who} updates only "
                "floating-point arrays; leave it out with optax.masked or optax.partition, or "
                "cast it"
            )
        if complex_remedy is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"params{name if path else ''} has dtype {dtype}, which {who} does not support; "
                f"{complex_remedy}"
            )


def require_params(params: Any, *, who: str) -> None:
    """Raises if `update` was called without the parameters that `who` needs."""
    if params is None:
        raise ValueError(
            f"params is None, and {who} needs the parameters; call update(gradients, state, params)"
        )


def check_mask(name: str, mask: Any) -> None:
    """Raises unless every leaf of `mask` is a bool, or `mask` is callable."""
    if mask is None or callable(mask):
        return
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, (bool, np.bool_)) and not callable(leaf):
            raise TypeError(
                f"{name} must hold bools, got the leaf {leaf!r}; pass True or False per leaf, or "
                "a callable on the parameters"
            )


def broadcast_prefix(name: str, prefix: Any, tree: Any, what: str = "bools") -> Any:
    """Spreads a prefix pytree over `tree`: one entry for each of its leaves.

    Args:
      name: The argument's name, for the error.
      prefix: A pytree whose structure is `tree`'s or a prefix of it.
      tree: The pytree to cover.
      what: What the prefix holds, for the error.

    Returns:
      A pytree of `tree`'s structure.

    Raises:
      ValueError: If `prefix` does not fit.
    """
    try:
        return jax.tree.map(lambda x, sub: jax.tree.map(lambda _: x, sub), prefix, tree)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} does not fit the parameters: got the structure {jax.tree.structure(prefix)} "
            f"for parameters of structure {jax.tree.structure(tree)}; pass a pytree of {what} with "
            "the parameters' structure or a prefix of it, or a callable"
        ) from error


def fitted_mask(name: str, mask: Any) -> Callable[[Any], Any]:
    """`mask` as a callable that gives one bool for each leaf of the tree, or says why not."""
    check_mask(name, mask)

    def fit(tree: Any) -> Any:
        found = mask(tree) if callable(mask) else mask
        check_mask(name, found)
        return broadcast_prefix(name, found, tree)

    return fit
