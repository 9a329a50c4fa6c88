"""Small trees, training loops and comparisons that the tests share."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_zoo import _sampling

SHAPES = {"w": (3, 4), "b": (4,)}


def slow(*values: Any) -> list[Any]:
    """Values of `parametrize` that run under the marker `slow` alone; a tuple is one case."""
    return [
        pytest.param(*(v if type(v) is tuple else (v,)), marks=pytest.mark.slow) for v in values
    ]


def some(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """All `cases` for `parametrize`, of which only `quick` ones run without the marker `slow`."""
    return [*quick, *slow(*(case for case in cases if case not in quick))]


def enable_x64(on: bool = True) -> Any:
    """A context of double precision; JAX before 0.8 keeps it in `jax.experimental`."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax import experimental

    return getattr(experimental, "enable_x64")(on)  # noqa: B009


def random_tree(seed: int, dtype: Any = jnp.float32, shapes: Any = SHAPES) -> Any:
    """Standard normal leaves, as reproducible as NumPy's generator."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        x = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return jnp.asarray(x, dtype)

    return jax.tree.map(leaf, shapes, is_leaf=_is_shape)


def _is_shape(x: Any) -> bool:
    return type(x) is tuple and all(isinstance(n, int) for n in x)


def problem(dtype: Any = jnp.float32, steps: int = 3, shapes: Any = SHAPES) -> tuple[Any, list]:
    """Parameters and the gradients of some steps."""
    return (
        random_tree(0, dtype, shapes),
        [random_tree(1 + t, dtype, shapes) for t in range(steps)],
    )


def one_step(tx: optax.GradientTransformation):
    """(params, state, gradients) -> (params, state), `apply_updates` included."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def jitted_step(tx: optax.GradientTransformation):
    """`one_step`, compiled once for all tests of a transformation."""
    return jax.jit(one_step(tx))


def train(
    tx: optax.GradientTransformation, params: Any, grads: Sequence[Any], *, jit: bool = True
) -> tuple[Any, Any]:
    """The parameters and the state after one step for each of `grads`."""
    step = jitted_step(tx) if jit else one_step(tx)
    state = tx.init(params)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def call(
    tx: optax.GradientTransformation, grads: Any, params: Any = None, state: Any = None
) -> tuple[Any, Any]:
    """The updates and the state of one `update`, by default of the first."""
    if state is None:
        state = tx.init(grads if params is None else params)
    return tx.update(grads, state, params)


def updates_of(tx: optax.GradientTransformation, params: Any, grads: Sequence[Any]) -> list[Any]:
    """The updates of all steps, outside jit, while the parameters stay where they are."""
    state, found = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params)
        found.append(updates)
    return found


def trajectory(
    tx: optax.GradientTransformation, params: Any, grads: Sequence[Any], *, jit: bool = True
) -> list[Any]:
    """The parameters before the first step and after each."""
    step = jitted_step(tx) if jit else one_step(tx)
    state, found = tx.init(params), [params]
    for g in grads:
        params, state = step(params, state, g)
        found.append(params)
    return found


def assert_same(actual: Any, desired: Any) -> None:
    """Structure, dtypes and bits agree."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, d = np.asarray(a), np.asarray(d)
        assert (a.dtype, a.shape) == (d.dtype, d.shape)
        assert a.tobytes() == d.tobytes(), f"{a} is not {d} to the bit"


def assert_close(actual: Any, desired: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Structure and dtypes agree, numbers nearly."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert jnp.result_type(a) == jnp.result_type(d)
        assert jnp.shape(a) == jnp.shape(d)
        wide = complex if jnp.iscomplexobj(d) else float
        np.testing.assert_allclose(
            np.asarray(a).astype(wide), np.asarray(d).astype(wide), rtol=rtol, atol=atol
        )


def assert_finite(tree: Any) -> None:
    """No leaf holds NaN or infinity."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        assert bool(jnp.all(jnp.isfinite(leaf))), f"{jax.tree_util.keystr(path)} is {leaf}"


@dataclasses.dataclass(frozen=True)
class AlteredTask:
    """A host task whose items are run by `function(task, item)`."""

    task: Any
    function: Any

    def split(self, arrays):
        return self.task.split(arrays)

    def run(self, item):
        return self.function(self.task, item)

    def join(self, results):
        return self.task.join(results)


def specification(tree: Any) -> Any:
    """What a compiled program knows of a tree: shape, dtype, weak type and sharding by path."""
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def parameter_leaves(tx: optax.GradientTransformation, state: Any) -> list[jax.Array]:
    """The leaves of `state` that are shaped like parameters."""
    found = []
    optax.tree.map_params(tx, found.append, state)
    return found


def assert_unbiased(estimates: Any, expected: Any) -> None:
    """The mean over the first axis lies within five standard errors of `expected`."""
    estimates = np.asarray(estimates, float)
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    assert np.all(error > 0)
    np.testing.assert_array_less(np.abs(estimates.mean(0) - expected), 5 * error)


def place_among(keys: jax.Array, key: jax.Array) -> jax.Array:
    """The index of `key` in `keys`."""
    table = jax.random.key_data(keys)
    return jnp.argmax((table == jax.random.key_data(key)[None]).all(-1))


def replay(monkeypatch: Any, keys: jax.Array, noise: Any) -> None:
    """Lets the estimators' noise of the i-th of `keys` be the i-th row of `noise`."""
    rows = jnp.asarray(noise)
    monkeypatch.setattr(
        _sampling, "standard_normal", lambda key, tree: rows[place_among(keys, key)]
    )
