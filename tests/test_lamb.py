"""LAMB: what is particular to it, above all the order of its large leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import (
    assert_close,
    call,
    enable_x64,
    problem,
    random_tree,
    slow,
    train,
)
from optax_zoo import _lamb


@pytest.mark.parametrize("weight_decay", [0.1, *slow(0.0)])
@pytest.mark.parametrize("dtype", ["float64", *slow("float32")])
def test_lamb_equals_optax(dtype, weight_decay):
    with enable_x64(dtype == "float64"):
        params, grads = problem(dtype, steps=6)
        arguments = {"b1": 0.8, "b2": 0.99, "eps": 1e-5, "weight_decay": weight_decay}
        ours, _ = train(zoo.lamb(1e-2, **arguments), params, grads)
        theirs, _ = train(optax.lamb(1e-2, **arguments), params, grads)
        tight = 1e-5 if dtype == "float32" else 1e-13
        assert_close(ours, theirs, rtol=tight, atol=tight)


@pytest.fixture
def small_leaves_count_as_large(monkeypatch):
    monkeypatch.setattr(_lamb, "_LARGE_LEAF", 4)


def special_numbers(dtype):
    """No subnormal numbers: XLA takes them for 0 wherever it computes."""
    limits = jnp.finfo(dtype)
    return jnp.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, limits.max, -limits.tiny, limits.smallest_normal],
        dtype,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float32", "float64", "float16", "complex64")])
@pytest.mark.parametrize("jit", [True, False])
def test_the_ordering_link_is_the_identity_to_the_bit(small_leaves_count_as_large, dtype, jit):
    with enable_x64(dtype == "float64"):
        plain = random_tree(0, dtype, {"a": (8,), "c": (2, 4), "s": ()})
        special = plain if dtype == "complex64" else {**plain, "b": special_numbers(dtype)}
        link = _lamb._one_leaf_at_a_time()
        run = functools.partial(call, link)
        for tree in (plain, special):
            ordered, state = (jax.jit(run) if jit else run)(tree)
            assert state == optax.EmptyState()
            for name, leaf in tree.items():
                wide = complex if dtype == "complex64" else float
                expected, actual = (np.asarray(x).astype(wide) for x in (leaf, ordered[name]))
                assert ordered[name].dtype == dtype
                np.testing.assert_array_equal(actual, expected)
                np.testing.assert_array_equal(
                    np.signbit(np.real(actual)), np.signbit(np.real(expected))
                )


@pytest.mark.slow
def test_large_leaves_give_the_same_result(small_leaves_count_as_large, monkeypatch):
    params, grads = problem(shapes={"a": (3, 3), "b": (4, 4), "c": (2,)})
    ordered = train(zoo.lamb(1e-2, weight_decay=0.1), params, grads)
    monkeypatch.setattr(_lamb, "_LARGE_LEAF", 10**9)
    plain = train(zoo.lamb(1e-2, weight_decay=0.1), params, grads)
    assert_close(ordered, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_broken_leaf_does_not_spoil_the_others(small_leaves_count_as_large):
    params, grads = problem(shapes={"a": (3, 3), "b": (4, 4)})
    grads[0]["a"] = grads[0]["a"].at[0, 0].set(jnp.nan)
    after, _ = train(zoo.lamb(1e-2), params, grads[:1])
    assert bool(jnp.all(jnp.isfinite(after["b"])))
    assert bool(jnp.any(jnp.isnan(after["a"])))


@pytest.mark.slow
def test_a_really_large_leaf_equals_optax():
    params = {"a": jnp.ones(_lamb._LARGE_LEAF), "b": jnp.ones(_lamb._LARGE_LEAF + 1)}
    grads = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=jnp.float32)), params)
    ours, _ = train(zoo.lamb(1e-2), params, [grads])
    theirs, _ = train(optax.lamb(1e-2), params, [grads])
    assert_close(ours, theirs, rtol=1e-5)
