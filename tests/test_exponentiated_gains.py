"""Exponentiated gains and EGDD: orientation, bounds, scopes, other optimizers, the reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
import references
from helpers import assert_close, assert_same, call, enable_x64, problem, train, updates_of

gains: Any = zoo.scale_by_exponentiated_gains


def test_the_first_update_is_momentum_sgds():
    params, grads = problem(steps=1)
    assert_close(
        updates_of(zoo.egdd(0.1), params, grads), updates_of(optax.sgd(0.1), params, grads)
    )


def test_without_adaptation_it_is_heavy_ball_momentum():
    params, grads = problem(steps=5)
    still = zoo.egdd(0.1, 0.8, gain_lr=0.0, scale_lr=0.0)
    sgd = optax.sgd(0.1, momentum=0.8)
    assert_close(train(still, params, grads)[0], train(sgd, params, grads)[0])


def test_the_link_keeps_the_orientation_and_egdd_turns_it():
    params, grads = problem(steps=4)
    ahead = updates_of(gains(0.1, 0.9), params, grads)
    back = updates_of(gains(0.1, 0.9), params, [optax.tree.scale(-1, g) for g in grads])
    egdd = updates_of(zoo.egdd(0.1, 0.9), params, grads)
    assert_same(back, [optax.tree.scale(-1, u) for u in ahead])
    assert_same(egdd, back)


def test_consistent_coordinates_accelerate_and_oscillating_ones_slow_down():
    tx = gains(beta=0.0, gain_lr=0.1)
    state: Any = tx.init(jnp.zeros(3))
    for step in range(11):
        _, state = tx.update(jnp.array([1.0, (-1.0) ** step, 0.0]), state)
    np.testing.assert_allclose(state.gains, np.exp([1.0, -1.0, 0.0]), rtol=1e-5)


@pytest.mark.parametrize("use_signs", [True, False])
def test_gains_and_scales_stop_at_their_bounds(use_signs):
    tx = gains(
        momentum=0.5,
        beta=0.0,
        gain_lr=0.5,
        scale_lr=0.5,
        use_signs=use_signs,
        use_directions=False,
        gain_bounds=(0.5, 2.0),
        scale_bounds=(0.25, 3.0),
    )
    state: Any = tx.init({"up": jnp.zeros(1), "down": jnp.zeros(1)})
    for step in range(20):
        # Large enough that a bare exponential overflows.
        _, state = tx.update(
            {"up": jnp.full(1, 1e6), "down": jnp.full(1, 1e6 * (-1.0) ** step)}, state
        )
    np.testing.assert_allclose(state.scale, [0.25, 3.0], rtol=1e-6)  # down, up
    assert (float(state.gains["up"][0]), float(state.gains["down"][0])) == (2.0, 0.5)


def test_a_scale_for_each_leaf_or_one_for_all():
    params, grads = problem(steps=3)
    leaf = train(zoo.egdd(0.1), params, grads)[1][0]
    whole = train(zoo.egdd(0.1, scope="global"), params, grads)[1][0]
    assert leaf.scale.shape == (2,)
    assert whole.scale.shape == ()
    assert float(leaf.scale[0]) != float(leaf.scale[1])
    one = {"w": params["w"]}, [{"w": g["w"]} for g in grads]
    assert_close(train(zoo.egdd(0.1), *one)[0], train(zoo.egdd(0.1, scope="global"), *one)[0])


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_an_empty_tree_and_an_empty_leaf_pass(scope):
    tx = gains(scope=scope)
    assert call(tx, {})[0] == {}
    updates, state = call(tx, {"e": jnp.zeros((0, 2)), "s": jnp.ones((), jnp.bfloat16)})
    assert updates["e"].shape == (0, 2)
    assert state.scale.dtype == jnp.float32
    assert bool(jnp.all(state.scale == 1))


def test_the_scale_does_not_see_the_size_of_gradients_but_their_bare_product_does():
    params, grads = problem(steps=3)
    big = [optax.tree.scale(1024.0, g) for g in grads]
    scales = [
        train(zoo.egdd(0.1, use_directions=directions), params, g, jit=False)[1][0].scale
        for directions in (True, False)
        for g in (grads, big)
    ]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-6)
    assert not np.allclose(scales[2], scales[3], rtol=1e-3)


def test_a_zero_gradient_leaves_gain_and_scale_and_the_momentum_moves_on():
    tx = gains(momentum=0.5)
    _, state = call(tx, jnp.array([2.0]))
    updates, after = call(tx, jnp.zeros(1), state=state)
    assert_same((after.gains, after.scale), (state.gains, state.scale))
    assert updates.tolist() == [1.0]


def test_it_follows_any_direction():
    params, grads = problem(steps=4)
    link = gains(gain_lr=0.1)
    tx = optax.chain(optax.scale_by_adam(), link, optax.scale_by_learning_rate(1e-2))
    directions = updates_of(optax.scale_by_adam(), params, grads)
    expected = [optax.tree.scale(-1e-2, u) for u in updates_of(link, params, directions)]
    assert_close(updates_of(tx, params, grads), expected)


def test_the_rate_inside_the_momentum_follows_its_schedule():
    schedule = lambda count: jnp.where(count < 1, 1.0, 0.0)  # noqa: E731
    tx = zoo.egdd(schedule, 0.5, gain_lr=0.0, scale_lr=0.0)
    found = updates_of(tx, jnp.zeros(1), [jnp.ones(1)] * 3)
    assert np.ravel(found).tolist() == [-1.0, -0.5, -0.25]


def test_the_count_does_not_overflow():
    tx = gains(use_signs=False)
    last = jnp.asarray(2**31 - 1, jnp.int32)
    state = tx.init(jnp.zeros(1))._replace(count=last)
    assert int(call(tx, jnp.ones(1), state=state)[1].count) == 2**31 - 1


@pytest.mark.parametrize("use_directions", [True, False])
@pytest.mark.parametrize("use_signs", [True, False])
def test_it_agrees_with_the_reference(use_signs, use_directions):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(3, 4)), rng.normal(size=(8, 3, 4))
    grads[3] = 0
    arguments = {
        "momentum": 0.7,
        "beta": 0.8,
        "gain_lr": 0.05,
        "scale_lr": 0.02,
        "use_signs": use_signs,
        "use_directions": use_directions,
        "gain_bounds": (0.9, 1.2),
        "scale_bounds": (0.95, 1.05),
    }
    expected = references.egdd(start, grads, 0.1, **arguments)
    with enable_x64():
        tx = zoo.egdd(0.1, **arguments)
        params: Any = jnp.asarray(start)
        state = tx.init(params)
        for g, desired in zip(grads, expected[1:], strict=True):
            updates, state = tx.update(jnp.asarray(g), state)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, desired, rtol=1e-11)


def test_an_overflowing_norm_leaves_the_scale():
    tx = gains(momentum=0.9)
    grads = jnp.array([1e30, -1e30])
    _, state = call(tx, grads)
    updates, state = call(tx, grads, state=state)
    assert state.scale.tolist() == [1.0]
    assert bool(jnp.all(jnp.isfinite(updates)))


@pytest.mark.slow
def test_ten_times_too_small_a_rate_is_made_up_for():
    """A badly scaled quadratic: the gains find the rate of each coordinate."""
    curvature = jnp.array([1.0, 1e-2])

    def end(tx: Any) -> Any:
        def step(carry, _):
            updates, state = tx.update(curvature * carry[0], carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        start = jnp.ones(2)
        return jax.lax.scan(step, (start, tx.init(start)), length=600)[0][0]

    slow = float(jnp.abs(end(optax.sgd(0.1))[1]))
    fast = float(jnp.abs(end(zoo.egdd(0.1, momentum=0.0))[1]))
    assert fast < 0.1 * slow
