"""Lion and its link: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import assert_close, assert_same, call, enable_x64, problem, train, updates_of


def links(b1=0.9, b2=0.99, weight_decay=1e-3, learning_rate=1e-2):
    return optax.chain(
        zoo.scale_by_sign_momentum(b1, b2),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def test_lion_is_its_three_links_to_the_bit():
    params, grads = problem(steps=5)
    assert_same(train(zoo.lion(1e-2), params, grads), train(links(), params, grads))


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lion_equals_optax(dtype, weight_decay):
    with enable_x64(dtype == "float64"):
        params, grads = problem(dtype, steps=20)
        ours, _ = train(zoo.lion(1e-2, weight_decay=weight_decay), params, grads)
        theirs, _ = train(optax.lion(1e-2, weight_decay=weight_decay), params, grads)
        assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("b2", [0.0, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("b1", [0.0, 0.5, 0.95])
def test_every_pair_of_betas_equals_optax(b1, b2):
    params, grads = problem(steps=6)
    ours, _ = train(zoo.lion(1e-2, b1, b2), params, grads, jit=False)
    theirs, _ = train(optax.lion(1e-2, b1, b2), params, grads, jit=False)
    assert_close(ours, theirs)


@pytest.mark.parametrize("b2", [0.0, 0.3, 0.99])
def test_a_traced_b2_gives_the_same_steps(b2):
    params, grads = problem(steps=6)
    traced = jax.jit(lambda b2: train(zoo.lion(1e-2, b2=b2), params, grads, jit=False)[0])
    assert_close(traced(b2), train(zoo.lion(1e-2, b2=b2), params, grads)[0])


def test_the_momentum_in_the_direction_is_the_old_one():
    tx = zoo.scale_by_sign_momentum(b1=0.5, b2=0.5)
    # The old momentum 1/2 · 4 = 2 outweighs -1; the new one, 1/2 · 2 - 1/2 = 1/2, would not.
    updates = updates_of(tx, jnp.zeros(1), [jnp.array([4.0]), jnp.array([-1.5])])
    assert updates[1].tolist() == [1.0]


def test_a_b1_next_to_one_still_sees_the_gradient():
    updates = updates_of(zoo.scale_by_sign_momentum(1 - 1e-8, 0.5), jnp.zeros(1), [jnp.ones(1)])
    assert updates[0].tolist() == [1.0]


def test_directions_are_signs_and_zero_stays_zero():
    grads = [jnp.array([3.0, -1e-30, 0.0])] * 3
    for updates in updates_of(zoo.scale_by_sign_momentum(), jnp.zeros(3), grads):
        assert updates.tolist() == [1.0, -1.0, 0.0]


def test_a_zero_gradient_still_steps_along_the_momentum():
    grads = [jnp.array([2.0, -2.0]), jnp.zeros(2)]
    assert updates_of(zoo.scale_by_sign_momentum(), jnp.zeros(2), grads)[1].tolist() == [1.0, -1.0]


def test_bfloat16_momentum_does_not_stall():
    tx = zoo.scale_by_sign_momentum(b2=0.999)
    params = jnp.zeros(1, jnp.bfloat16)
    grads = [jnp.ones(1, jnp.bfloat16)] * 300
    mu = train(tx, params, grads)[1].mu
    np.testing.assert_allclose(mu, 1 - 0.999**300, rtol=1e-4)


def test_the_decay_follows_a_schedule():
    tx = zoo.lion(1.0, weight_decay=lambda step: jnp.where(step == 0, 0.0, 0.5))
    zero = jnp.zeros(1)
    updates = updates_of(tx, jnp.array([2.0]), [zero, zero])
    assert [float(u[0]) for u in updates] == [0.0, -1.0]


@pytest.mark.parametrize("mask", [{"w": True, "b": False}, lambda p: {"w": True, "b": False}])
def test_the_mask_chooses_what_decays(mask):
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    grads = optax.tree.zeros_like(params)
    tx = zoo.lion(1.0, weight_decay=0.5, mask=mask)
    updates, _ = call(tx, grads, params)
    assert updates["w"].tolist() == [-0.5, -0.5]
    assert updates["b"].tolist() == [0.0, 0.0]


def test_a_complex_parameter_is_sent_to_split_real_and_imaginary():
    params = {"z": jnp.ones(2, jnp.complex64)}
    with pytest.raises(TypeError, match="split_real_and_imaginary"):
        zoo.lion(1e-3).init(params)
    tx = optax.contrib.split_real_and_imaginary(zoo.lion(1e-3))
    updates, _ = call(tx, params, params)
    assert updates["z"].dtype == jnp.complex64
