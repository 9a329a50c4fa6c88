"""Optax's links inside the optimizers: dtypes and the decay of 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from helpers import call
from optax_zoo import _links


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0.0)])
def test_a_decay_of_zero_is_the_identity_with_the_same_state(zero):
    link = _links.decay_link(zero, who="here")
    updates = {"w": jnp.ones(2)}
    helpers.assert_same(link.update(updates, link.init(updates)), (updates, optax.EmptyState()))
    assert _links.decay_link(0.1, who="here").init(updates) == optax.EmptyState()


def test_an_array_of_zero_keeps_the_link():
    link = _links.decay_link(jnp.array(0.0), who="here")
    with pytest.raises(ValueError, match="params is None, and here"):
        link.update(jnp.ones(2), link.init(jnp.ones(2)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_array_of_hyper_parameters_does_not_widen_the_updates(dtype):
    x = jnp.ones(2, dtype)
    decay = _links.decay_link(jnp.array(0.5, jnp.float32), who="here")
    rate = _links.learning_rate_link(jnp.array(0.5, jnp.float32), usual="1e-3")
    assert call(decay, x, x)[0].dtype == dtype
    assert call(rate, x)[0].dtype == dtype


@pytest.mark.slow
def test_a_link_in_float32_does_not_stall_on_bfloat16():
    link = _links.in_float32(optax.trace(0.999), optax.TraceState, "trace")
    x = jnp.ones(1, jnp.bfloat16)
    state = link.init(x)
    for _ in range(500):
        updates, state = call(link, x, state=state)
        assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(jax.tree.leaves(state)[0], (1 - 0.999**500) / 0.001, rtol=1e-4)
