"""The closing bounds: what is particular to them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import (
    assert_close,
    call,
    random_tree,
    train,
    updates_of,
)


def test_the_bounds_are_called_with_the_step_from_one():
    tx = zoo.scale_by_dynamic_bounds(1e-2, b1=0.0, bounds=lambda t: (0.1 * t, 0.1 * t))
    updates = updates_of(tx, jnp.zeros(1), [jnp.ones(1)] * 3)
    np.testing.assert_allclose([float(u[0]) for u in updates], [0.1, 0.2, 0.3], rtol=1e-6)


def test_given_bounds_follow_the_schedule_only_with_base_lr():
    drop = lambda count: jnp.where(count == 0, 1.0, 0.1)  # noqa: E731
    bounds = lambda t: (0.5, 0.5)  # noqa: E731

    def rates(**base):
        tx = zoo.scale_by_dynamic_bounds(drop, b1=0.0, bounds=bounds, **base)
        return [float(u[0]) for u in updates_of(tx, jnp.zeros(1), [jnp.ones(1)] * 2)]

    np.testing.assert_allclose(rates(), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(rates(base_lr=1.0), [0.5, 0.05], rtol=1e-6)


def test_the_lower_bound_is_exact_to_rounding_at_the_first_steps():
    tx = zoo.scale_by_dynamic_bounds(1e-3, 0.1, b1=0.0, gamma=1e-3)
    huge = jnp.array([1e12])  # Adam's rate vanishes; the lower bound rules
    for t, update in enumerate(updates_of(tx, jnp.zeros(1), [huge] * 3), start=1):
        lower = 0.1 * (1 - 1 / (1e-3 * t + 1))
        np.testing.assert_allclose(float(update[0]), 1e12 * lower, rtol=1e-6)


def test_clipping_reproduces_the_rates_and_the_shares_at_the_bounds():
    scales = 10.0 ** np.linspace(-5, 3, 40)[:, None]
    grads = [{"w": random_tree(t, shapes=(40, 5)) * scales} for t in range(4)]
    tx = zoo.scale_by_dynamic_bounds(1e-2, 0.05, b2=0.99, gamma=0.1)
    updates: Any = None
    state: Any = None
    for g in grads:
        updates, state = call(tx, g, state=state)
    scale, eps, lower, upper = state.clipping
    raw = scale / (jnp.sqrt(state.nu["w"]) + eps)
    rates = jnp.clip(raw, lower, upper)
    assert_close(updates["w"], rates * state.mu["w"], rtol=1e-5)
    t = 4
    bounds = 0.05 * (1 - 1 / (0.1 * t + 1)), 0.05 * (1 + 1 / (0.1 * t))
    np.testing.assert_allclose([lower, upper], bounds, rtol=1e-6)
    v = sum(0.01 * 0.99 ** (3 - i) * np.asarray(g["w"], float) ** 2 for i, g in enumerate(grads))
    rate = 1e-2 * np.sqrt(1 - 0.99**4) / (1 - 0.9**4) / (np.sqrt(v) + 1e-8)
    for mine, expected in ((raw < lower, rate < bounds[0]), (raw > upper, rate > bounds[1])):
        assert 0 < expected.mean() < 1
        assert float(jnp.mean(mine)) == pytest.approx(expected.mean())


def test_clipping_shows_the_bounds_after_a_drop_of_the_rate():
    tx = zoo.scale_by_dynamic_bounds(lambda c: 1e-3, 0.1, base_lr=1e-2, gamma=0.1)
    _, state = call(tx, jnp.ones(2))
    np.testing.assert_allclose(state.clipping[2:], [0.01 / 11, 0.11], rtol=1e-5)


def test_amsbound_remembers_the_largest_second_moment():
    grads = [jnp.array([10.0]), jnp.array([0.0]), jnp.array([0.0])]
    _, state = train(zoo.scale_by_dynamic_bounds(1e-3, amsbound=True), jnp.ones(1), grads)
    np.testing.assert_allclose(state.nu_max, 0.1, rtol=1e-5)
    np.testing.assert_allclose(state.nu, 0.1 * 0.999**2, rtol=1e-5)


def test_adabound_keeps_no_maximum():
    assert call(zoo.scale_by_dynamic_bounds(1e-3), jnp.ones(3))[1].nu_max is None


FAMILY = [zoo.adabound, zoo.amsbound, zoo.adaboundw]


def bounds_under_injection(
    make: Any, rate: Any, steps: int, change: Any = None
) -> tuple[list, Any]:
    """The bounds of each step, the injected rate set to `change` for the last."""
    tx = optax.inject_hyperparams(make)(rate, gamma=0.1)
    params = jnp.ones(2)
    state: Any = tx.init(params)
    found, updates = [], params
    for index in range(steps):
        if change is not None and index == steps - 1:
            state.hyperparams["learning_rate"] = jnp.float32(change)
        updates, state = tx.update(params, state, params)
        (bounded,) = [s for s in state.inner_state if isinstance(s, zoo.DynamicBoundsState)]
        found.append(np.asarray(bounded.clipping[2:]))
    return found, updates


@pytest.mark.parametrize("make", FAMILY)
@pytest.mark.parametrize("change", [0.0, 1e-4, 2e-3])
def test_bounds_follow_an_injected_rate(make, change):
    """As released: final_lr times the rate over the first, or over the largest so far."""
    (_, last), updates = bounds_under_injection(make, 1e-3, 2, change)
    expected = 0.1 * change / max(change, 1e-3) * np.array([1 - 1 / 1.2, 1 + 1 / 0.2])
    np.testing.assert_allclose(last, expected, rtol=1e-5)
    assert (change == 0) == (not updates.any())


@pytest.mark.parametrize("make", FAMILY)
def test_an_injected_schedule_is_the_direct_one(make):
    schedule = optax.schedules.piecewise_constant_schedule(1e-3, {1: 0.1, 2: 0.1})
    found, _ = bounds_under_injection(make, schedule, 3)
    tx, params = make(schedule, gamma=0.1, base_lr=1e-3), jnp.ones(2)
    state: Any = tx.init(params)
    for step in found:
        _, state = tx.update(params, state, params)
        (bounded,) = [s for s in state if isinstance(s, zoo.DynamicBoundsState)]
        np.testing.assert_allclose(step, bounded.clipping[2:], rtol=1e-5)


@pytest.mark.parametrize("make", FAMILY)
def test_an_injected_schedule_that_starts_at_zero_needs_base_lr(make):
    schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
    injected = optax.inject_hyperparams(make)
    with pytest.raises(ValueError, match=r"^base_lr is None while learning_rate starts at 0.*peak"):
        injected(schedule).init(jnp.ones(2))
    injected(schedule, base_lr=1e-3).init(jnp.ones(2))


@pytest.mark.parametrize("first", [0.0, 1e-7])
def test_the_bounds_belong_to_the_peak_of_an_injected_warm_up(first):
    """Also where `init` runs inside `jit` and cannot see that the first rate is 0."""
    schedule = optax.schedules.warmup_cosine_decay_schedule(first, 1e-3, 4, 20)
    tx, direct = (
        optax.inject_hyperparams(zoo.adabound)(schedule),
        zoo.adabound(schedule, base_lr=1e-3),
    )
    params = jnp.ones(2)
    state: Any = jax.jit(tx.init)(params)
    wanted: Any = direct.init(params)
    for _ in range(12):
        _, state = tx.update(params, state, params)
        _, wanted = direct.update(params, wanted, params)
    (found,), (expected,) = (
        [s.clipping for s in states if isinstance(s, zoo.DynamicBoundsState)]
        for states in (state.inner_state, wanted)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
