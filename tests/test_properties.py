"""Random trees, shapes, dtypes and arguments over the whole table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_zoo as zoo
from helpers import assert_finite, call, enable_x64, problem, specification, train, updates_of
from laws import TABLE

names = pytest.mark.parametrize("name", TABLE)

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
trees = st.recursive(
    shapes,
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner | st.none(), max_size=3)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=4,
)
dtypes = st.sampled_from(["float64", "float32", "float16", "bfloat16"])


@pytest.mark.slow
@names
@settings(max_examples=3)
@given(tree=trees, dtype=dtypes)
def test_two_steps_on_any_tree_keep_every_promise(name, tree, dtype):
    tx = TABLE[name].tx
    with enable_x64(dtype == "float64"):
        params, grads = problem(dtype, steps=2, shapes=tree)
        state = tx.init(params)
        after, new_state = train(tx, params, grads, jit=False)
        assert jax.tree.structure(after) == jax.tree.structure(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} <= {jnp.dtype(dtype)}
        assert specification(new_state) == specification(state)
        assert_finite((after, new_state))


@pytest.mark.slow
@names
@settings(max_examples=5)
@given(exponent=st.integers(-12, 12), seed=st.integers(0, 1000))
def test_gradients_of_any_scale_stay_finite(name, exponent, seed):
    params, grads = problem(steps=2)
    scaled = [optax.tree.scale(10.0**exponent, g) for g in grads]
    assert_finite(updates_of(TABLE[name].tx, params, scaled))


SCALE_FREE = ["scale_by_sign_momentum", "lion", "lars", "lamb"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALE_FREE)
@settings(max_examples=5)
@given(exponent=st.integers(-3, 12))
def test_the_scale_of_the_gradients_does_not_matter(name, exponent):
    entry = TABLE[name]
    tiny = {"eps": 1e-30} if name == "lamb" else {}
    decay = {"weight_decay": 0.0} if name == "lars" else {}
    tx = entry.make(**tiny, **decay)
    params, grads = problem()
    scaled = [optax.tree.scale(2.0**exponent, g) for g in grads]
    for a, b in zip(updates_of(tx, params, grads), updates_of(tx, params, scaled), strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["lars", "lamb"])
@settings(max_examples=5)
@given(scale=st.floats(0.01, 100.0))
def test_the_step_grows_with_the_weights(name, scale):
    tx = TABLE[name].make(weight_decay=0.0)
    params, grads = problem(steps=1)
    big = optax.tree.scale(scale, params)
    one, other = (updates_of(tx, p, grads)[0] for p in (params, big))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(scale * x, y, rtol=1e-4)


@settings(max_examples=5)
@given(seed=st.integers(0, 1000), clip=st.tuples(st.floats(0, 1), st.floats(1.5, 10)))
def test_the_step_of_lamb_has_the_clipped_norm_of_its_weights(seed, clip):
    rng = np.random.default_rng(seed)
    params, grads = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    tx = zoo.lamb(0.1, weight_decay=0.1, trust_clip=clip)
    updates, _ = call(tx, grads, params)
    expected = 0.1 * np.clip(float(jnp.linalg.norm(params)), *clip)
    assert float(jnp.linalg.norm(updates)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("amsbound", [False, True])
@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    final_lr=st.floats(1e-3, 1.0),
    gamma=st.floats(1e-3, 1.0),
    steps=st.integers(1, 5),
)
def test_every_rate_of_adabound_lies_between_its_bounds(amsbound, seed, final_lr, gamma, steps):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, 6, size=30)
    grads = [jnp.asarray(scale * rng.normal(size=30), jnp.float32) for _ in range(steps)]
    tx = zoo.scale_by_dynamic_bounds(1e-2, final_lr, gamma=gamma, amsbound=amsbound)
    updates: Any = None
    state: Any = None
    for g in grads:
        updates, state = call(tx, g, state=state)
    rates = np.asarray(updates, float) / np.asarray(state.mu, float)
    slack = 1e-3
    assert np.all(rates >= final_lr * (1 - 1 / (gamma * steps + 1)) * (1 - slack))
    assert np.all(rates <= final_lr * (1 + 1 / (gamma * steps)) * (1 + slack))


@settings(max_examples=10)
@given(
    b1=st.floats(0.0, 0.99),
    grads=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6),
)
def test_lions_direction_is_a_sign(b1, grads):
    directions = updates_of(
        zoo.scale_by_sign_momentum(b1), jnp.zeros(1), [jnp.array([g]) for g in grads]
    )
    assert {float(d[0]) for d in directions} <= {-1.0, 0.0, 1.0}
    assert float(directions[0][0]) == np.sign(np.float32(grads[0]) if abs(grads[0]) > 1e-37 else 0)


# --- bad arguments ----------------------------------------------------------------------------

RATE = st.floats(max_value=-1e-6) | st.floats(min_value=1.0) | st.just(float("nan"))
NEGATIVE = st.floats(max_value=-1e-30) | st.sampled_from([float("nan"), float("inf")])
NOT_POSITIVE = st.just(0.0) | NEGATIVE
NOT_A_NUMBER = st.none() | st.booleans() | st.text(max_size=3) | st.complex_numbers()
BAD_NUMBERS = {
    "b1": RATE,
    "b2": RATE,
    "momentum": RATE,
    "eps": NEGATIVE,
    "eps_root": NEGATIVE,
    "learning_rate": NEGATIVE,
    "weight_decay": NEGATIVE,
    "final_lr": NOT_POSITIVE,
    "gamma": NOT_POSITIVE,
    "trust_coefficient": NOT_POSITIVE,
}


def bad(argument):
    """A factory that takes the argument, and a value out of its range."""
    takers = [name for name, entry in TABLE.items() if entry.takes(argument)]
    return st.tuples(st.sampled_from(takers), st.just(argument), BAD_NUMBERS[argument])


@settings(max_examples=150)
@given(st.one_of([bad(argument) for argument in BAD_NUMBERS]))
def test_a_number_out_of_range_is_named_with_its_value(case):
    name, argument, value = case
    with pytest.raises(ValueError, match=rf"^{argument} must be .*; ") as error:
        TABLE[name].make(**{argument: value})
    assert f"got {float(value)!r}" in str(error.value)


@settings(max_examples=50)
@given(st.sampled_from(sorted(BAD_NUMBERS)), NOT_A_NUMBER, st.data())
def test_what_is_no_number_is_named_with_its_value(argument, value, data):
    takers = [name for name, entry in TABLE.items() if entry.takes(argument)]
    name = data.draw(st.sampled_from(takers))
    with pytest.raises(TypeError) as error:
        TABLE[name].make(**{argument: value})
    assert str(error.value).startswith(f"{argument} must be a number, got {value!r}; ")
