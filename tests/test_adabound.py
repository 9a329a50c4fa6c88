"""AdaBound, AMSBound, AdaBoundW: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import (
    assert_close,
    assert_finite,
    assert_same,
    call,
    problem,
    train,
)


def test_open_bounds_are_adam(x64):
    params, grads = problem("float64", steps=8)
    tx = zoo.adabound(1e-2, bounds=lambda step: (0.0, jnp.inf))
    # Adam adds epsilon to the corrected root: 1e-8 against 1e-8 / sqrt(1 - b2^t).
    assert_close(train(tx, params, grads)[0], train(optax.adam(1e-2), params, grads)[0], 1e-5, 1e-7)


def test_closed_bounds_are_sgd_with_averaged_momentum(x64):
    params, grads = problem("float64", steps=8)
    tx = zoo.adabound(1e-2, bounds=lambda step: (0.05, 0.05))
    sgd = optax.chain(optax.ema(0.9, debias=False), optax.sgd(0.05))
    assert_close(train(tx, params, grads)[0], train(sgd, params, grads)[0], 1e-12, 1e-14)


def test_the_default_bounds_given_as_a_callable_change_nothing():
    params, grads = problem()
    bounds = lambda t: (0.1 * (1 - 1 / (1e-3 * t + 1)), 0.1 * (1 + 1 / (1e-3 * t)))  # noqa: E731
    given = train(zoo.adabound(1e-2, bounds=bounds), params, grads)[0]
    assert_close(given, train(zoo.adabound(1e-2), params, grads)[0], rtol=1e-4)


@pytest.mark.parametrize("bounds", [None, lambda t: (0.0, jnp.inf)], ids=["default", "adam"])
@pytest.mark.parametrize("name", ["adabound", "amsbound", "adaboundw"])
def test_a_schedule_that_starts_at_zero_gives_no_nan(name, bounds):
    params, grads = problem()
    warmup = optax.schedules.linear_schedule(0.0, 1e-2, 2)
    tx = getattr(zoo, name)(warmup, base_lr=1e-2, bounds=bounds)
    after, state = train(tx, params, grads[:1])
    assert_same(after, params)
    after, state = train(tx, params, grads)
    assert_finite(after)
    assert not np.allclose(after["w"], params["w"])
    if bounds is None:
        assert_finite(state)


@pytest.mark.parametrize("amsbound", [False, True])
def test_adaboundw_takes_the_flag(amsbound):
    params, grads = problem(steps=6)
    w = train(zoo.adaboundw(1e-2, amsbound=amsbound), params, grads)[0]
    plain = zoo.amsbound if amsbound else zoo.adabound
    assert_same(w, train(plain(1e-2), params, grads)[0])


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0])
def test_the_decay_of_adaboundw_has_no_rate(rate):
    tx = zoo.adaboundw(lambda count: rate, base_lr=1.0, weight_decay=0.25)
    updates, _ = call(tx, jnp.zeros(2), jnp.array([1.0, -2.0]))
    assert updates.tolist() == [-0.25, 0.5]


def test_the_decay_of_adabound_enters_the_moments():
    zero, params = jnp.zeros(1), jnp.ones(1)
    _, state = train(zoo.adabound(1e-3, weight_decay=0.5), params, [zero])
    assert float(optax.tree.get(state, "mu")[0]) == pytest.approx(0.05)


def test_a_weight_without_gradients_stays_though_its_rate_meets_the_bound():
    tx = zoo.adabound(1e-3)
    assert train(tx, jnp.ones(1), [jnp.zeros(1)] * 3)[0].tolist() == [1.0]


def test_traced_final_rates_are_not_checked():
    run = jax.jit(lambda f: train(zoo.adabound(1e-2, f), *problem(), jit=False)[0])
    assert_close(run(0.1), train(zoo.adabound(1e-2, 0.1), *problem())[0])


def test_a_traced_rate_is_its_own_base():
    run = jax.jit(lambda lr: train(zoo.adabound(lr), *problem(), jit=False)[0])
    assert_close(run(1e-2), train(zoo.adabound(1e-2), *problem())[0], rtol=1e-4)
