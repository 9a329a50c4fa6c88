"""The score-function estimator: recordings, closed forms, baselines."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import recording

import optax_zoo as zoo
from helpers import assert_unbiased, place_among


def categorical(logits, key):
    return jax.random.categorical(key, logits)


def log_softmax_of(logits, y):
    return jax.nn.log_softmax(logits)[y]


def recorded_baselines():
    """Name of the recording -> the baseline of the loss, which is minus the reward."""
    return {
        "pg_nobase": None,
        "pg_meanbase": "mean",
        "pg_loo": "leave_one_out",
        "pg_optbase": "optimal",
        "pg_truebase": "true",
    }


@pytest.mark.parametrize("name", recorded_baselines())
def test_the_recorded_samples_give_the_recorded_estimate(name, x64):
    r, key = recording("zeroth_order"), jax.random.key(3)
    logits, reward = jnp.asarray(r["pg_logits"]), jnp.asarray(r["pg_reward"])
    baseline = recorded_baselines()[name]
    if baseline == "true":
        baseline = -float(jax.nn.softmax(logits) @ reward)
    keys, samples = jax.random.split(key, 8), jnp.asarray(r["pg_samples"])
    estimate = zoo.policy_gradient(
        lambda logits, key: samples[place_among(keys, key)],
        log_softmax_of,
        lambda y: -reward[y],
        num_samples=8,
        baseline=baseline,
        batch_size=3,
    )
    value, grads = jax.jit(estimate)(logits, key)
    np.testing.assert_allclose(value, -r["pg_reward"][r["pg_samples"]].mean(), rtol=1e-13)
    np.testing.assert_allclose(grads, -r[name], rtol=1e-11, atol=1e-13)


N = 3
LOGITS = jnp.array([0.5, -1.0, 0.0, 1.5])
REWARD = jnp.array([1.0, 4.0, -2.0, 2.0])
P = jax.nn.softmax(LOGITS)
EXACT = -P * (REWARD - P @ REWARD)


@functools.cache
def many(baseline):
    estimate = zoo.policy_gradient(
        categorical,
        log_softmax_of,
        lambda y: 5.0 - REWARD[y],
        num_samples=N,
        baseline=baseline,
    )
    keys = jax.random.split(jax.random.key(2), 8192)
    return jax.jit(jax.vmap(lambda key: estimate(LOGITS, key)))(keys)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [None, "leave_one_out"])
def test_the_mean_is_the_gradient_of_the_expected_loss(baseline):
    values, grads = many(baseline)
    assert_unbiased(values, 5.0 - P @ REWARD)
    assert_unbiased(grads, EXACT)


def test_the_mean_of_the_same_samples_shrinks_the_estimate():
    _, grads = many("mean")
    assert_unbiased(grads, EXACT * (N - 1) / N)
    with pytest.raises(AssertionError):
        assert_unbiased(grads, EXACT)


def test_a_baseline_varies_less():
    plain, based = (jnp.var(many(b)[1], axis=0).sum() for b in (None, "leave_one_out"))
    assert based < plain / 2


@pytest.mark.slow
def test_a_tree_of_continuous_parameters():
    params = {"mean": jnp.array(0.8), "log_scale": jnp.array(-0.5)}

    def draw(params, key, k):
        y = params["mean"] + jnp.exp(params["log_scale"]) * jax.random.normal(key)
        return {"y": y, "key": key}  # samples may be trees

    def log_prob(params, sample, k):
        return jax.scipy.stats.norm.logpdf(
            sample["y"], params["mean"], jnp.exp(params["log_scale"])
        )

    estimate = zoo.policy_gradient(draw, log_prob, lambda s, k: k * s["y"] ** 2, num_samples=8)
    keys = jax.random.split(jax.random.key(4), 4096)
    values, grads = jax.jit(jax.vmap(lambda key: estimate(params, key, 3.0)))(keys)
    variance = np.exp(-1.0)
    assert_unbiased(values, 3 * (0.8**2 + variance))
    assert_unbiased(grads["mean"], 3 * 2 * 0.8)
    assert_unbiased(grads["log_scale"], 3 * 2 * variance)
