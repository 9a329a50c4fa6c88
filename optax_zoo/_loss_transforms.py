"""Losses made from losses: a penalty on the gradient's size, and flooding."""

import functools
import sys
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _checks, _moments


def gradient_penalty(
    fun: Callable[..., Any],
    strength: Any,
    *,
    argnums: int | Sequence[int] = 0,
    form: str = "mean",
    finite_difference: Any = None,
) -> Callable[..., Any]:
    r"""A loss plus the size of its own gradient.

    .. math::

      \tilde L = L + \mu R, \qquad
      R = \|\nabla L\|^2 \ (\text{sum}) \quad \text{or} \quad \|\nabla L\|^2 / n \ (\text{mean})

    over the :math:`n` entries of the penalised arguments. Gradient descent with step :math:`h`
    follows, to second order in :math:`h`, the flow of :math:`L + (h/4)\|\nabla L\|^2`: it
    penalises by itself; this loss adds to it, or keeps it where the step is smaller.

    The gradient is :math:`\nabla L + 2 \mu \nabla^2 L\, \nabla L` (over :math:`n` for the mean).
    Without `finite_difference` it comes from differentiating twice, one Hessian-vector product.
    With it, from two gradients and no second derivative,

    .. math::

      \nabla L(\theta) + \frac{2 \mu}{\varepsilon} \big(
        \nabla L(\theta + \varepsilon \nabla L(\theta)) - \nabla L(\theta) \big),

    also for arguments that are not penalised; the value stays exact. With
    :math:`\varepsilon = 2 \mu` and the sum, the gradient is that at the point uphill.

    Args:
      fun: The loss L, a function to a real scalar or to a pair (scalar, auxiliary data); the
        returned function gives a pair then too, for `jax.value_and_grad(..., has_aux=True)`.
      strength: :math:`\mu`, at least 0; may be traced.
      argnums: Which positional arguments are penalised, an int or several.
      form: "mean" or "sum".
      finite_difference: None, or the step :math:`\varepsilon > 0`, of a size that moves
        :math:`\theta` by about 1e-4 to 1e-3 of itself in float32. The result may be
        differentiated once.

    Returns:
      A function of `fun`'s arguments, to stand where `fun` stood.

    Raises:
      ValueError: If an argument is out of range; in a call, if `argnums` does not fit or the loss
        is not a scalar.
      TypeError: If an argument has the wrong type; in a call, if the loss or a penalised argument
        is complex or not floating-point, or is an `nnx.Module` (pass its `nnx.Param` state).

    Examples:
      >>> import jax, jax.numpy as jnp, optax_zoo as zoo
      >>> loss = lambda x: jnp.sum(x**2) / 2  # the gradient is x
      >>> penalised = zoo.gradient_penalty(loss, 0.1, form="sum")
      >>> value, gradient = jax.value_and_grad(penalised)(jnp.array([1.0, 2.0]))
      >>> print(value, gradient)
      3.0 [1.2 2.4]

    References:
      Barrett and Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_,
      2021; Karakida et al., `Understanding Gradient Regularization in Deep Learning: Efficient
      Finite-Difference Computation and Implicit Bias <https://arxiv.org/abs/2210.02720>`_, 2023.
    """
    _checks.check_callable("fun", fun, "pass a callable that returns the loss")
    _checks.check_number("strength", strength, at_least=0.0, remedy="pass e.g. 0.01")
    argnums = _checked_argnums(argnums)
    _checks.check_choice("form", form, ("mean", "sum"))
    if finite_difference is not None:
        _checks.check_number(
            "finite_difference", finite_difference, above=0.0, remedy="pass e.g. 1e-2, or None"
        )

    @functools.wraps(fun, updated=())
    def penalised(*args, **kwargs):
        places = _places(argnums, args)
        theta = [args[place] for place in places]
        _check_penalised(theta, places)
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(theta))
        rate = strength / max(size, 1) if form == "mean" else strength

        def loss_at(theta, args, kwargs):
            replaced = dict(zip(places, theta, strict=True))
            full = [replaced.get(place, arg) for place, arg in enumerate(args)]
            return _loss_and_aux(fun(*full, **kwargs))

        if finite_difference is None:
            value, aux = _differentiated_twice(loss_at, theta, args, kwargs, rate)
        else:
            value, aux = _differenced(loss_at, theta, args, kwargs, rate, finite_difference)
        return _loss_or_pair(value, aux)

    return penalised


def flooding(fun: Callable[..., Any], level: Any) -> Callable[..., Any]:
    r"""A loss that is reflected at a level above its minimum.

    .. math:: \tilde L = |L - b| + b

    Its gradient is that of :math:`L` above the level, its negative below, 0 on it.

    Apply it to the loss that is differentiated, the mini-batch's mean. Below the level training
    turns round, and goes on near it as if the gradient's norm was penalised: a step down and a
    step up of size :math:`h` move by :math:`-(h^2/2) \nabla \|\nabla L\|^2`, see
    :func:`gradient_penalty`.

    Args:
      fun: The loss, a function to a real scalar or to a pair (scalar, auxiliary data); the
        returned function gives a pair then too, for `jax.value_and_grad(..., has_aux=True)`.
      level: :math:`b`, found on validation data; may be traced.

    Returns:
      A function of `fun`'s arguments, to stand where `fun` stood.

    Raises:
      ValueError: If `level` is not finite or, in a call, the loss is not a scalar.
      TypeError: If an argument has the wrong type or, in a call, the loss is complex or not
        floating-point.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_zoo as zoo
      >>> flooded = zoo.flooding(lambda x: x**2, level=1.0)
      >>> for x in (2.0, 1.0, 0.5):
      ...     value, gradient = jax.value_and_grad(flooded)(x)
      ...     print(value, gradient)
      4.0 4.0
      1.0 0.0
      1.75 -1.0

    References:
      Ishida et al., `Do We Need Zero Training Loss After Achieving Zero Training Error?
      <https://arxiv.org/abs/2002.08709>`_, 2020.
    """
    _checks.check_callable("fun", fun, "pass a callable that returns the loss")
    _checks.check_number("level", level, remedy="pass e.g. 0.05")

    @functools.wraps(fun, updated=())
    def flooded(*args, **kwargs):
        loss, aux = _loss_and_aux(fun(*args, **kwargs))
        b = jnp.asarray(level, loss.dtype)
        # |L − b| with the derivative 0 at 0; that of jnp.abs is 1 there.
        return _loss_or_pair(jnp.sign(loss - b) * (loss - b) + b, aux)

    return flooded


def _differentiated_twice(
    loss_at: Callable[..., Any], theta: Any, args: Any, kwargs: Any, rate: Any
) -> tuple[jax.Array, list[Any]]:
    """The penalised loss, whose derivative holds that of the gradient."""
    (loss, aux), gradient = jax.value_and_grad(loss_at, has_aux=True)(theta, args, kwargs)
    return _penalised_loss(loss, gradient, rate), aux


def _differenced(
    loss_at: Callable[..., Any], theta: Any, args: Any, kwargs: Any, rate: Any, epsilon: Any
) -> tuple[jax.Array, list[Any]]:
    """The same, with a difference of two gradients in the place of the gradient's derivative."""
    value_and_grad = jax.value_and_grad(loss_at, has_aux=True)
    # Constants go in and out, so that nobody asks for the gradients' own derivatives.
    here, *rest = _constant((theta, args, kwargs))
    (loss, aux), gradient = _constant(value_and_grad(here, *rest))
    uphill = jax.tree.map(lambda x, g: (x + epsilon * g).astype(jnp.result_type(x)), here, gradient)
    _, gradient_uphill = _constant(value_and_grad(uphill, *rest))
    weight = jax.lax.stop_gradient(2 * rate / epsilon)
    squares = jax.lax.stop_gradient(_squares(gradient))
    slopes = jax.tree.map(lambda g, u: g + weight * (u - g), gradient, gradient_uphill)
    # Linear in theta, with the slopes just found. For everything else the loss itself at both
    # points; where nothing else is differentiated, the compiler has these values already.
    stand_in = (
        sum(jax.tree.leaves(jax.tree.map(lambda s, x: jnp.sum(s * x), slopes, theta)))
        + (1 - weight) * loss_at(here, args, kwargs)[0]
        + weight * loss_at(uphill, args, kwargs)[0]
        + rate * squares
    )
    value = _penalised_loss(loss, gradient, rate)
    return _with_derivative_of(value, stand_in.astype(value.dtype)), aux


def _penalised_loss(loss: jax.Array, gradient: Any, rate: Any) -> jax.Array:
    return (loss + rate * _squares(gradient)).astype(loss.dtype)


def _squares(gradient: Any) -> Any:
    return sum(jnp.sum(_moments.abs_sq(g)) for g in jax.tree.leaves(gradient))


@jax.custom_jvp
def _with_derivative_of(value: jax.Array, stand_in: jax.Array) -> jax.Array:
    """`value`, differentiated as if it was `stand_in`."""
    del stand_in
    return value


@_with_derivative_of.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


def _constant(tree: Any) -> Any:
    """`tree` without derivatives; what is not an array has none."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x, tree)


def _loss_and_aux(found: Any) -> tuple[jax.Array, list[Any]]:
    """The loss and, in a list of one or none, what came beside it."""
    loss, *aux = found if isinstance(found, tuple) and len(found) == 2 else (found,)
    if not isinstance(loss, jax.Array | np.ndarray | np.generic | float | int | complex):
        raise TypeError(
            f"fun must return a number or a pair (number, auxiliary data), got {found!r}; put all "
            "that belongs beside the loss into one object"
        )
    shape, dtype = jnp.shape(loss), jnp.result_type(loss)
    if shape:
        raise ValueError(
            f"fun must return one number, got an array of shape {shape}; take e.g. its mean"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"fun must return a real floating-point number, got dtype {dtype}; take e.g. jnp.abs "
            "of a complex number, or cast an integer"
        )
    return jnp.asarray(loss), aux


def _loss_or_pair(loss: jax.Array, aux: list[Any]) -> Any:
    return (loss, *aux) if aux else loss


def _checked_argnums(argnums: Any) -> tuple[int, ...]:
    places = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not places or any(isinstance(i, bool) or not isinstance(i, Integral) for i in places):
        raise TypeError(f"argnums must be an int or several, got {argnums!r}; pass e.g. 0")
    return places


def _places(argnums: tuple[int, ...], args: tuple[Any, ...]) -> list[int]:
    """`argnums` counted from 0."""
    places = [i + len(args) if i < 0 else i for i in argnums]
    if len(set(places)) < len(places) or not set(places) <= set(range(len(args))):
        raise ValueError(
            f"argnums is {argnums}, and the loss was called with {len(args)} positional "
            "arguments; name each penalised one once and pass it by position"
        )
    return places


def _check_penalised(theta: list[Any], places: list[int]) -> None:
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and any(isinstance(x, nnx.Module) for x in theta):
        raise TypeError(
            "gradient_penalty got an nnx.Module: the loss would change a copy of it, and its "
            "counters and averages would count as parameters; split it with "
            "nnx.split(module, nnx.Param, ...), penalise the parameters, merge inside the loss and "
            "return what changes as auxiliary data"
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(theta)[0]:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = f"{places[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
            raise TypeError(
                f"argument {name} has dtype {dtype}, which gradient_penalty does not support; "
                "penalise real floating-point arguments only"
            )
