"""What derivatives through Shampoo and SOAP are worth, and what to do where that is nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo

A, START = np.random.default_rng(5).normal(size=(2, 6, 6))
# Begun at 5 and 10, adopted at 10 and 15: the steps between see no root of their own.
WITHIN = zoo.Refresh(every=5, delay=5, start=5)
FRESH = zoo.Refresh(every=1, delay=0)


def steps_of(tx: Any, x: Any, state: Any, steps: int, bend: Any = 0.0) -> tuple[Any, Any]:
    """Some steps on a problem that `bend` bends."""
    for _ in range(steps):
        gradient = A.T @ (A @ x) + bend * A * jnp.cos(x)
        moves, state = tx.update(gradient, state)
        x = x - 0.03 * moves
    return x, state


def loss_after(bend: Any, tx: Any, x: Any, state: Any, steps: int) -> jax.Array:
    return jnp.sum((A @ steps_of(tx, x, state, steps, bend)[0] - 1) ** 2) / 2


def derivative_and_difference(tx: Any, steps: int, before: int = 0) -> tuple[float, float]:
    """Of `loss_after`, past `before` steps that do not count."""
    start = jnp.array(START)
    step = jax.jit(lambda x, state: steps_of(tx, x, state, 1))
    x, state = start, tx.init(start)
    for _ in range(before):
        x, state = step(x, state)
    loss = jax.jit(lambda bend: loss_after(bend, tx, x, state, steps))
    difference = (loss(0.3 + 1e-4) - loss(0.3 - 1e-4)) / 2e-4
    return float(jax.grad(loss)(0.3)), float(difference)


@pytest.mark.slow
@pytest.mark.parametrize("make", [zoo.scale_by_shampoo, zoo.scale_by_soap])
def test_derivatives_are_exact_while_no_root_of_their_own_is_adopted(make, x64):
    """After a refresh, over as many steps as the delay leaves."""
    found, difference = derivative_and_difference(make(refresh=WITHIN), 3, before=10)
    assert found == pytest.approx(difference, rel=1e-5)


@pytest.mark.slow
def test_with_roots_of_their_own_gradients_they_may_have_the_wrong_sign(x64):
    """So the docstrings say; if this fails, they can say something better."""
    found, difference = derivative_and_difference(zoo.scale_by_shampoo(refresh=FRESH), 1)
    assert found * difference < 0


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_soap_bounds_what_rounding_would_make_of_them(steps):
    """6e4 and more where the quotients of what is 0 but for rounding were differentiated."""
    tx, x = zoo.scale_by_soap(refresh=FRESH), jnp.array(START)
    assert abs(jax.grad(loss_after)(0.3, tx, x, tx.init(x), steps)) < 50


@pytest.mark.slow
def test_drift_correction_is_a_constant_too(x64):
    """As the docstring says: a correction looks at statistics of the very steps."""
    refresh = zoo.Refresh(every=5, delay=5, start=5, drift_every=1)
    found, difference = derivative_and_difference(zoo.scale_by_shampoo(refresh=refresh), 3, 10)
    assert found != pytest.approx(difference, rel=1e-2)


@pytest.mark.slow
def test_differences_of_whole_runs_tell_the_truth(x64):
    """What the docstrings advise where derivatives do not."""
    tx, x = zoo.scale_by_shampoo(refresh=FRESH), jnp.array(START)

    def run(bend):
        return loss_after(bend, tx, x, tx.init(x), 1)

    estimate = jax.jit(zoo.zeroth_order_grad(run, sigma=1e-3, num_samples=64))
    _, found = estimate(jnp.asarray(0.3), jax.random.key(0))
    _, difference = derivative_and_difference(tx, 1)
    assert found == pytest.approx(difference, rel=0.3)
