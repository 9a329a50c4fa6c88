"""Errors about states of another configuration, raised where a state enters `update`.

A state knows options by its structure and parameters by its shapes. What leaves no trace there
`described` keeps as text. All of it is static, so the checks run while a program is traced and
cost a compiled step nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_zoo import _layers

REMEDY = (
    "start with `init` for these parameters and options, or go on with those that the state was "
    "made with"
)


def check_state(
    state: Any,
    kind: type,
    updates: Any,
    *,
    moments: Sequence[str] = (),
    options: Mapping[str, tuple[str, bool]] | None = None,
) -> None:
    """Raises unless a state is one of these options and of these parameters.

    Args:
      state: What `update` was given.
      kind: The class of the state.
      updates: The gradients, of the parameters' structure and shapes.
      moments: The fields that are like the parameters wherever they are not None.
      options: For each field that is None under some options: what asks for it, as the user wrote
        it, and whether it does. A field that is there though nothing asks for it is refused too.
    """
    check_kind(state, kind)
    for field, (option, is_wanted) in (options or {}).items():
        if is_wanted != (getattr(state, field) is not None):
            needs, found = ("needs a", "none") if is_wanted else ("has no", "one")
            raise ValueError(
                f"{option} {needs} `{field}` in the state, and this {kind.__name__} has {found}: "
                f"it was made with another {option.partition('=')[0]}; {REMEDY}"
            )
    for field in moments:
        moment = getattr(state, field)
        if moment is not None:
            check_moment(f"{kind.__name__}.{field}", moment, updates)


def check_kind(state: Any, kind: type) -> None:
    """Raises unless the state is of this class."""
    if not isinstance(state, kind):
        raise ValueError(
            f"state must be a {kind.__name__}, got {type(state).__name__}; pass the state of this "
            "transformation, as `init` or `update` gave it"
        )


def check_moment(name: str, moment: Any, updates: Any) -> None:
    """Raises unless a part of the state has the structure and the shapes of the gradients."""
    parts = leaf_by_leaf(name, moment, updates)
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(part)] for part in parts]
    if shapes != [[jnp.shape(leaf)] for leaf in jax.tree.leaves(updates)]:
        now = _named(updates)
        was = [(leaf, *own) for (leaf, _), own in zip(now, shapes, strict=True)]
        raise ValueError(_of_others(name, was, now))


def leaf_by_leaf(name: str, moment: Any, updates: Any) -> list[Any]:
    """What a part of the state has for each gradient; raises if it is of other parameters."""
    try:
        return jax.tree.structure(updates).flatten_up_to(moment)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(_of_others(name, _named(moment), _named(updates))) from error


def check_foreign(option: str, state: Any, init: Any, params: Any) -> None:
    """Raises unless the state of somebody else's transformation looks as its `init` would make it.

    Classes and shapes are compared, not structures: wrappers like NNX show `init` another tree.
    """
    try:
        wanted = jax.eval_shape(init, params)
    except TypeError:  # it wants values, so it cannot be asked
        return
    found, asked = ([jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (state, wanted))
    if _kind(state) != _kind(wanted) or found != asked:
        raise ValueError(
            f"{option} asks for the state {_outlined(wanted)}, got {_outlined(state)}; {REMEDY}"
        )


def described(params: Any, facts: Mapping[str, Any]) -> dict[str, tuple[()]]:
    """Names and shapes of the parameters, and facts, as the only key of a dict without arrays.

    What keeps no array like the parameters keeps this.

    Args:
      params: The parameters.
      facts: What else a state must agree in, by the option that decides it, fit for JSON.
    """
    return {json.dumps([_named(params), facts]): ()}


def names(description: Mapping[str, Any]) -> list[str]:
    """The names in what `described` gave."""
    return [name for name, _ in _read(description)[0]]


def check_described(
    name: str, description: Mapping[str, Any], updates: Any, facts: Mapping[str, Any]
) -> None:
    """Raises unless gradients and facts are those that were described."""
    (was, old), now = _read(description), _named(updates)
    if was != now:
        raise ValueError(_of_others(name, was, now))
    for option, value in json.loads(json.dumps(facts)).items():
        if old[option] != value:
            raise ValueError(
                f"{option} is {value}, and {name} was made with {old[option]}; {REMEDY}"
            )


def _read(description: Mapping[str, Any]) -> tuple[list[tuple[Any, ...]], Mapping[str, Any]]:
    if not isinstance(description, Mapping):  # that of a tree without leaves
        return [], {}
    (key,) = description
    leaves, facts = json.loads(key)
    return [(name, tuple(shape)) for name, shape in leaves], facts


def _named(tree: Any) -> list[tuple[Any, ...]]:
    with_paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(_layers.joined(_layers.path_names(path)), jnp.shape(x)) for path, x in with_paths]


def _of_others(name: str, was: Sequence[Any], now: Sequence[Any]) -> str:
    """What is said of a state of other parameters: the first thing in which they differ."""
    known, given = {leaf for leaf, *_ in was}, {leaf for leaf, *_ in now}
    if lost := [leaf for leaf, *_ in was if leaf not in given]:
        difference = f"{lost[0]} has no gradient"
    elif added := [leaf for leaf, *_ in now if leaf not in known]:
        difference = f"{added[0]} has a gradient and is not in the state"
    else:
        pairs = [(a, b) for a, b in zip(was, now, strict=False) if a != b]
        difference = "their trees differ"
        if pairs:
            (leaf, *shapes), (_, shape) = pairs[0]
            kept = ", ".join(map(str, shapes)) or "nothing"
            difference = f"at {leaf} the state has the shape {kept}, the gradient {shape}"
    return f"{name} was made for other parameters: {difference}; {REMEDY}"


def _outlined(state: Any) -> str:
    shapes = ", ".join(str(jnp.shape(x)) for x in jax.tree.leaves(state))
    return f"{_kind(state)} of shapes [{shapes}]"


def _kind(state: Any) -> str:
    return "an array" if jax.tree_util.all_leaves([state]) else type(state).__name__
