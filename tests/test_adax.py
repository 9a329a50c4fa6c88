"""AdaX and AdaXW: what is particular to them, above all very long runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import assert_close, assert_finite, call, problem, train

# Near 887,000 steps the paper's second moment overflows float32.
LATE = [0, 10, 6_930, 887_000, 2_000_000, 2**31 - 2]


def at(count, mu, nu):
    return zoo.AdaxState(
        count=jnp.asarray(count, jnp.int32), mu=jnp.asarray(mu), nu=jnp.asarray(nu)
    )


def expected(count, mu, nu, g, b1=0.9, b2=1e-4, eps=1e-12):
    """One step from the corrected moment, in float64; the growth in logarithms."""
    t = float(count + 1)
    log_c = np.log(np.expm1(t * np.log1p(b2))) if t < 1e6 else t * np.log1p(b2)
    w = np.exp(np.log(b2) - log_c)
    mu = b1 * mu + (1 - b1) * g
    nu = (1 - w) * nu + w * g**2
    return mu / (np.sqrt(nu) + eps * np.exp(-0.5 * log_c)), mu, nu


@pytest.mark.parametrize("count", LATE)
def test_a_late_step_agrees_with_float64(count):
    mu, nu, g = np.array([0.1, -2.0, 1e-3]), np.array([0.5, 4.0, 1e-8]), np.array([1.0, 3.0, -1e-4])
    tx = zoo.scale_by_adax()
    updates, state = jax.jit(tx.update)(
        jnp.asarray(g, jnp.float32),
        at(count, np.float32(mu), np.float32(nu)),
    )
    u, mu, nu = expected(count, mu, nu, g)
    np.testing.assert_allclose(updates, u, rtol=2e-6)
    np.testing.assert_allclose(state.mu, mu, rtol=1e-6)
    np.testing.assert_allclose(state.nu, nu, rtol=2e-6)


@pytest.mark.parametrize("count", LATE)
def test_a_coordinate_without_gradients_stays_at_zero(count):
    zeros = jnp.zeros(2)
    updates, state = call(zoo.scale_by_adax(), zeros, state=at(count, zeros, zeros))
    assert updates.tolist() == [0.0, 0.0]
    assert_finite(state)


@pytest.mark.parametrize("count", [2**31 - 2, 2**31 - 1])
def test_the_count_does_not_overflow(count):
    one = jnp.ones(1)
    _, state = call(zoo.scale_by_adax(), one, state=at(count, one, one))
    assert int(state.count) == 2**31 - 1


def test_a_late_gradient_after_none_is_bounded():
    zeros = jnp.zeros(1)
    updates, state = call(zoo.scale_by_adax(), jnp.ones(1), state=at(887_000, zeros, zeros))
    assert_finite((updates, state))


def test_the_first_moment_is_not_corrected():
    updates, _ = call(zoo.scale_by_adax(b1=0.75), jnp.array([3.0, -0.02]))
    np.testing.assert_allclose(updates, [0.25, -0.25], rtol=1e-6)


def test_nothing_is_forgotten():
    tx = zoo.scale_by_adax(b2=1e-4)
    grads = [jnp.array([2.0])] + [jnp.zeros(1)] * 99
    _, state = train(tx, jnp.zeros(1), grads)
    # The first of a hundred nearly equal weights.
    np.testing.assert_allclose(state.nu, 4.0 / 100, rtol=0.01)


def test_epsilon_joins_the_root_that_grows():
    zeros, g = jnp.zeros(1), jnp.array([1e-3])
    for count in (0, 20_000):
        c = np.expm1((count + 1) * np.log1p(1e-4))
        found = call(zoo.scale_by_adax(b1=0.0, eps=1.0), g, state=at(count, zeros, zeros))[0]
        wanted = np.sqrt(c) * 1e-3 / (np.sqrt(1e-4) * 1e-3 + 1.0)  # as released
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("count", LATE)
def test_derivatives_are_finite_where_there_were_no_gradients(count):
    zeros = jnp.zeros(2)
    state = at(count, zeros, zeros)
    _, pulled = jax.vjp(lambda g: zoo.scale_by_adax().update(g, state)[0], zeros)
    assert_finite(pulled(jnp.ones(2)))


def test_a_traced_b2_gives_the_same_steps():
    params, grads = problem()
    traced = jax.jit(lambda b2: train(zoo.adax(b2=b2), params, grads, jit=False)[0])
    assert_close(traced(1e-3), train(zoo.adax(b2=1e-3), params, grads)[0])


def test_adax_decays_through_the_gradient_and_adaxw_beside_it():
    params, zero = jnp.ones(1), jnp.zeros(1)
    adax, _ = train(zoo.adax(1.0, weight_decay=0.5), params, [zero])
    adaxw, _ = train(zoo.adaxw(1.0, weight_decay=0.5), params, [zero])
    np.testing.assert_allclose(adax, 1 - 0.1, rtol=1e-5)
    np.testing.assert_allclose(adaxw, 1 - 0.5, rtol=1e-6)


def test_without_decay_adax_is_adaxw():
    params, grads = problem()
    adax, _ = train(zoo.adax(1e-3, weight_decay=0.0), params, grads)
    adaxw, _ = train(zoo.adaxw(1e-3, weight_decay=0.0), params, grads)
    assert_close(adax, adaxw)


def test_the_decay_of_adaxw_follows_the_schedule():
    schedule = optax.schedules.piecewise_constant_schedule(1.0, {1: 0.1})
    zero = jnp.zeros(1)
    after, _ = train(zoo.adaxw(schedule, weight_decay=0.5), jnp.ones(1), [zero, zero])
    np.testing.assert_allclose(after, 0.5 * 0.95, rtol=1e-6)
