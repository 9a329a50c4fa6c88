"""inspect: what a state knows of its layers, wherever it is wrapped."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_zoo as zoo
from helpers import random_tree

QUANTITIES = {"residual", "age", "iterations", "condition", "failures", "skipped"}
SHAPES = {"w": (4, 4), "k": (4, 3), "b": (4,)}
EVERY, DELAY = 4, 2


@functools.cache
def optimizer(method: str = "schur_newton") -> optax.GradientTransformationExtraArgs:
    return zoo.shampoo(
        0.01,
        refresh=zoo.Refresh(every=EVERY, delay=DELAY, start=EVERY),
        roots=zoo.Roots(method=method),
    )


@functools.cache
def update(tx: optax.GradientTransformation) -> Any:
    return jax.jit(lambda g, state: tx.update(g, state, g)[1])


def reports(tx, steps: int, change=lambda t, grads: grads, shapes=SHAPES) -> list[Any]:
    """What `inspect` says after each step."""
    params = random_tree(0, shapes=shapes)
    state, found = tx.init(params), [zoo.inspect(tx.init(params), params)]
    for t in range(1, steps + 1):
        state = update(tx)(change(t, random_tree(t, shapes=shapes)), state)
        found.append(zoo.inspect(state, params))
    return found


def ages(found: list[Any], name: str) -> list[float]:
    return [report[name]["age"] for report in found]


# --- quantities -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["schur_newton", "eigh"])
def test_a_short_training(method):
    found = reports(optimizer(method), 13)
    assert all(set(report) == {"w", "k", "b"} for report in found)
    for report in found:
        for layer in report.values():
            assert set(layer) == QUANTITIES
            assert all(type(value) is float for value in layer.values())
            assert layer["failures"] == layer["skipped"] == 0
    # Begun at 4, 8 and 12, adopted two steps later.
    expected = [-1.0] * 6 + [2, 3, 4, 5, 2, 3, 4, 5]
    assert ages(found, "w") == ages(found, "k") == expected
    assert ages(found, "b") == [-1.0] * 14
    w, b = found[-1]["w"], found[-1]["b"]
    assert w["residual"] < 1e-8 if method == "eigh" else 0 < w["residual"] < 1e-3
    assert w["iterations"] == 0 if method == "eigh" else 1 <= w["iterations"] <= 100
    assert 1 <= w["condition"] <= 1.01e4
    assert [b[q] for q in ("residual", "iterations", "condition")] == [0, 0, 0]
    assert [found[5]["w"][q] for q in ("residual", "iterations", "condition")] == [0, 0, 0]


def test_the_condition_is_that_of_the_ridged_statistic():
    tx = zoo.scale_by_shampoo(refresh=zoo.Refresh(every=1, delay=0))
    state = tx.init({"w": jnp.eye(4)})
    state = update(tx)({"w": jnp.diag(jnp.array([10.0, 3.0, 2.0, 1.0]))}, state)
    report = zoo.inspect(state)["0"]
    np.testing.assert_allclose(report["condition"], 100 * 1.0001 / 1.01, rtol=0.02)


def test_the_worst_factor_of_a_block_is_shown():
    tx = zoo.scale_by_shampoo(b2=1.0, refresh=zoo.Refresh(every=2, delay=0))
    state = tx.init({"w": jnp.zeros((2, 2))})
    for row in ([1.0, 0.0], [0.0, 1.0]):  # on the left diag(2, 0), on the right diag(1, 1)
        state = update(tx)({"w": jnp.array([row, [0.0, 0.0]])}, state)
    np.testing.assert_allclose(zoo.inspect(state)["0"]["condition"], 1e4, rtol=0.02)


def test_ages_with_roots_at_once():
    tx = zoo.scale_by_shampoo(
        refresh=zoo.Refresh(every=4, delay=0, start=2), roots=zoo.Roots(method="eigh")
    )
    assert ages(reports(tx, 9), "w") == [-1, -1, 0, 1, 0, 1, 2, 3, 0, 1]


def test_refreshes_without_a_root_are_counted():
    def zero_w(t, grads):
        return {**grads, "w": jnp.zeros_like(grads["w"])} if t <= 8 else grads

    found = reports(optimizer(), 14, zero_w)
    # Both factors of w: adopted (or not) at 6 and 10; at 14 there is something to take a root of.
    assert [r["w"]["failures"] for r in found] == [0.0] * 6 + [2.0] * 4 + [4.0] * 5
    assert ages(found, "w")[-2:] == [-1, 2]
    assert {r["k"]["failures"] for r in found} == {0.0}
    assert ages(found, "k")[6] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_gradients_left_out_are_counted(bad):
    def spoil(t, grads):
        if t in (2, 3):
            grads = {**grads, "w": grads["w"].at[1, 2].set(bad)}
        return {**grads, "b": grads["b"].at[0].set(bad)} if t == 5 else grads

    found = reports(optimizer(), 7, spoil)
    assert [r["w"]["skipped"] for r in found] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert [r["b"]["skipped"] for r in found] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert {r["k"]["skipped"] for r in found} == {0.0}
    assert {r[name]["failures"] for r in found for name in SHAPES} == {0.0}


def test_skipped_gradients_are_counted_by_block_and_by_layer():
    params = {"w": jnp.zeros((8, 4)), "s": jnp.zeros((3, 5))}
    tx = zoo.scale_by_shampoo(blocks=zoo.Blocks(size=4), layer_axes={"w": 0, "s": 1})
    grads = {"w": params["w"].at[:, 0].set(jnp.nan), "s": params["s"].at[:2, 0].set(jnp.inf)}
    state = update(tx)(grads, tx.init(params))
    found = zoo.inspect(state, params)
    assert (found["w"]["skipped"], found["s"]["skipped"]) == (2, 2)


# --- names and wrappings ----------------------------------------------------------------------

PARAMS = {"block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "head": [jnp.ones((2, 2))]}
NAMES = {"block/kernel", "block/bias", "head/0"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(-1.0)),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: zoo.graft(optax.identity(), tx),
    ],
    ids=["alone", "chain", "masked", "apply_if_finite", "multi_steps", "graft"],
)
def test_a_wrapped_state_is_found_by_name(wrap):
    state = wrap(zoo.scale_by_shampoo()).init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == NAMES
    assert set(zoo.inspect(state)) == {"0", "1", "2"}


def test_under_inject_hyperparams():
    tx = optax.inject_hyperparams(zoo.shampoo)(learning_rate=0.1, b2=0.9)
    state = tx.init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == NAMES


def test_the_state_of_a_compiled_step():
    tx = optimizer()
    state = update(tx)(PARAMS, tx.init(PARAMS))
    assert set(zoo.inspect(state, PARAMS)) == NAMES


def test_a_mask_leaves_only_its_leaves():
    mask = {"block": {"kernel": True, "bias": False}, "head": [True]}
    state = optax.masked(zoo.scale_by_shampoo(), mask).init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == {"block/kernel", "head/0"}


def test_a_partition_names_the_leaves_of_each_part():
    labels = {"block": {"kernel": "fast", "bias": "plain"}, "head": ["slow"]}
    tx = optax.partition(
        {"fast": zoo.shampoo(0.1), "slow": zoo.shampoo(0.01), "plain": optax.sgd(0.1)}, labels
    )
    state = tx.init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == {"block/kernel", "head/0"}
    assert len(zoo.inspect(state)) == 2


def test_a_mask_is_no_obstacle_without_momentum():
    mask = {"block": {"kernel": True, "bias": False}, "head": [True]}
    state = optax.masked(zoo.scale_by_shampoo(b1=0.0, graft_to="adam"), mask).init(PARAMS)
    assert len(zoo.inspect(state, PARAMS)) == 2


def test_two_shampoos_on_the_same_leaves_are_both_shown():
    tx = optax.chain(zoo.scale_by_shampoo(), zoo.scale_by_shampoo())
    found = zoo.inspect(tx.init(PARAMS), PARAMS)
    assert len(found) == 6
    assert set(found) > NAMES


def test_a_bare_array_is_called_by_its_empty_path():
    state = zoo.scale_by_shampoo().init(jnp.ones((2, 2)))
    assert set(zoo.inspect(state, jnp.ones((2, 2)))) == {"()"}


@pytest.mark.parametrize("tx", [optax.adam(0.1), zoo.lion(0.1), optax.identity()])
def test_a_state_without_shampoo_says_nothing(tx):
    assert zoo.inspect(tx.init(PARAMS), PARAMS) == {}


@pytest.mark.parametrize("params", [{}, {"a": None}])
def test_an_empty_tree(params):
    assert zoo.inspect(zoo.shampoo(0.1).init(params), params) == {}


def test_abstract_parameters_name_as_well():
    state = zoo.scale_by_shampoo().init(PARAMS)
    assert set(zoo.inspect(state, jax.eval_shape(lambda: PARAMS))) == NAMES


def test_the_optimizer_of_nnx():
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, zoo.shampoo(0.1), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    names = {"layers/0/kernel", "layers/0/bias"}
    assert set(zoo.inspect(optimizer.opt_state, params)) == names
    assert set(zoo.inspect(optimizer, params)) == names

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    step(model, optimizer, params)
    found = zoo.inspect(optimizer, params)
    assert set(found) == names
    assert set(found["layers/0/kernel"]) == QUANTITIES
