"""LARS: what is particular to it."""

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
    slow,
    train,
    updates_of,
)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", ["float64", *slow("float32")])
def test_lars_without_decay_equals_optax(dtype, nesterov):
    with enable_x64(dtype == "float64"):
        params, grads = problem(dtype, steps=6)
        ours, _ = train(zoo.lars(1.0, nesterov=nesterov), params, grads)
        theirs, _ = train(optax.lars(1.0, nesterov=nesterov), params, grads)
        tight = 1e-5 if dtype == "float32" else 1e-13
        assert_close(ours, theirs, rtol=tight, atol=tight)


def test_lars_with_decay_takes_the_norms_apart_and_optax_together():
    params, grads = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([-0.3, -0.4])}
    # The norms are 5 and 1/2: 0.1·5 / (0.5 + 0.1·5) is 1/2, and g + wd·w is 0.
    tx = zoo.scale_by_layerwise_trust_ratio(0.1, weight_decay=0.1)
    assert call(tx, grads, params)[1].trust_ratio.tolist() == pytest.approx([0.5])
    ours, theirs = (
        train(factory(1.0, 0.2, trust_coefficient=0.1), params, [grads])[0]
        for factory in (zoo.lars, optax.lars)
    )
    assert not np.allclose(ours["w"], theirs["w"], rtol=0.05)


def test_the_learning_rate_is_inside_the_velocity():
    params, grads = jnp.array([3.0, 4.0]), [jnp.array([0.0, 5.0])] * 2
    tx = zoo.lars(lambda step: jnp.where(step == 0, 1.0, 0.0), trust_coefficient=1.0, momentum=0.5)
    first, second = updates_of(tx, params, grads)
    assert first.tolist() == [0.0, -5.0]
    assert second.tolist() == [0.0, -2.5]
