"""The optimizers by name."""

import difflib
import fnmatch
from typing import Any

import optax

from optax_zoo._catalogue import TABLE, OptimizerInfo


def create(
    name: str, learning_rate: optax.ScalarOrSchedule, **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    r"""Builds the optimizer of a name, as it comes from a configuration or a command line.

    .. math:: \text{create("lion", lr, b2=0.98)} = \text{lion(lr, b2=0.98)}

    For `optax.inject_hyperparams`, which looks at signatures, take `info(name).factory`.

    Args:
      name: One of :func:`list_optimizers`.
      learning_rate: A number or a schedule.
      kwargs: Any other arguments of the optimizer.

    Returns:
      The optimizer.

    Raises:
      ValueError: If there is no optimizer of this name, or a value is out of range.
      TypeError: If the optimizer takes no argument of a given name, lacks one that it needs, or
        gets one of the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.create("lion", 1e-3, weight_decay=0.0)
      >>> updates, state = tx.update(jnp.array([3.0, -0.1]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [-0.001  0.001]

    References:
      The papers of the optimizers: `info(name).paper`, at
      `https://arxiv.org/abs/` and `info(name).arxiv`.
    """
    entry = info(name)
    known = [*entry.required, *(key for key in entry.defaults if key != "learning_rate")]
    for key, value in kwargs.items():
        if key not in known:
            raise TypeError(
                f"{name} takes no argument {key!r}, got {key}={value!r}; "
                f"{_suggestion(key, known)}it takes {', '.join(known)}"
            )
    missing = [key for key in entry.required if key not in kwargs]
    if missing:
        raise TypeError(
            f"{name} also needs {', '.join(missing)}, got {', '.join(kwargs) or 'none'}; see "
            f"help(optax_zoo.{name})"
        )
    return entry.factory(learning_rate, **kwargs)


def list_optimizers(pattern: str = "*") -> list[str]:
    """The names of the optimizers that fit a pattern, sorted.

    Args:
      pattern: A name with wildcards as in file names: `*` any letters, `?` one, `[ab]` a choice.

    Returns:
      The names that :func:`create` and :func:`info` take; empty where none fits.

    Raises:
      TypeError: If `pattern` is not a string.

    Examples:
      >>> import optax_zoo as zoo
      >>> zoo.list_optimizers("*bound*")
      ['adabound', 'adaboundw', 'amsbound']

    References:
      `fnmatch <https://docs.python.org/3/library/fnmatch.html>`_ of Python.
    """
    if not isinstance(pattern, str):
        raise TypeError(f'pattern must be a string, got {pattern!r}; pass e.g. "ada*"')
    return sorted(name for name in TABLE if fnmatch.fnmatchcase(name, pattern))


def info(name: str) -> OptimizerInfo:
    """What an optimizer is, which values to start from, what it needs and costs.

    Args:
      name: One of :func:`list_optimizers`.

    Returns:
      An `OptimizerInfo`.

    Raises:
      ValueError: If there is no optimizer of this name.

    Examples:
      >>> import optax_zoo as zoo
      >>> lion = zoo.info("lion")
      >>> lion.arxiv, lion.state_bytes, lion.defaults["b2"]
      ('2302.06675', 4, 0.99)
      >>> print("decay", lion.weight_decay.low, "to", lion.weight_decay.high, "x AdamW's")
      decay 3.0 to 10.0 x AdamW's

    References:
      The papers of the optimizers, at `https://arxiv.org/abs/` and `info(name).arxiv`.
    """
    if not isinstance(name, str) or name not in TABLE:
        raise ValueError(
            f"name is {name!r}, which the zoo has not; {_suggestion(name, TABLE)}known are "
            f"{', '.join(sorted(TABLE))}"
        )
    return TABLE[name]


def _suggestion(name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}? " if close else ""
