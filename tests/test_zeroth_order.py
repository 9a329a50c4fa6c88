"""Zeroth-order estimates: recordings, closed forms of the smoothed gradient, ranks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import recording

import optax_zoo as zoo
from helpers import assert_close, assert_unbiased, replay
from optax_zoo import _sampling
from optax_zoo._zeroth_order import centred_ranks

RECORDED = {
    "est_forward": {"kind": "forward"},
    "est_antithetic": {"kind": "antithetic"},
    "est_score": {"kind": "score"},
    "est_score_meanbase": {"kind": "score", "baseline": "mean"},
    "est_score_loo": {"kind": "score", "baseline": "leave_one_out"},
    "est_score_optbase": {"kind": "score", "baseline": "optimal"},
    "est_rank": {"kind": "ranks"},
}


def recorded_quadratic(x):
    r = recording("zeroth_order")
    return 0.5 * (x - r["c"]) @ r["A"] @ (x - r["c"])


def recorded_objective(x):
    return recorded_quadratic(x) + 0.1 * jnp.cos(3 * x).sum()


def replayed(monkeypatch, fun, **arguments):
    r, key = recording("zeroth_order"), jax.random.key(0)
    replay(monkeypatch, jax.random.split(key, 8), r["noise"])
    estimate = zoo.zeroth_order_grad(fun, sigma=float(r["sigma"]), num_samples=8, **arguments)
    return jax.jit(estimate)(jnp.asarray(r["x0"]), key)


@pytest.mark.parametrize("name", RECORDED)
def test_the_recorded_noise_gives_the_recorded_estimate(name, monkeypatch, x64):
    r = recording("zeroth_order")
    value, grads = replayed(monkeypatch, recorded_objective, batch_size=3, **RECORDED[name])
    np.testing.assert_allclose(value, r["f0"], rtol=1e-13)
    np.testing.assert_allclose(grads, r[name], rtol=1e-11, atol=1e-12)


def test_a_recorded_constant_baseline(monkeypatch, x64):
    r = recording("zeroth_order")
    arguments = {"kind": "score", "baseline": float(r["f0"])}
    _, grads = replayed(monkeypatch, recorded_objective, **arguments)
    np.testing.assert_allclose(grads, r["est_forward"], rtol=1e-11, atol=1e-12)


def test_antithetic_differences_are_exact_on_a_quadratic(monkeypatch, x64):
    _, grads = replayed(monkeypatch, recorded_quadratic, kind="antithetic")
    exact = recording("zeroth_order")["quad_antithetic_exact"]
    np.testing.assert_allclose(grads, exact, rtol=1e-11, atol=1e-12)


SIGMA, N = 0.7, 4
CURVATURE = jnp.array([2.0, 0.5, 1.0])
X = jnp.array([1.0, -2.0, 0.3])
SMOOTHED_GRADIENT = CURVATURE * X - np.exp(-(SIGMA**2) / 2) * np.sin(X)


def wavy(x):
    """A quadratic, whose gradient smoothing keeps, and cosines, whose gradient it shrinks."""
    return 4.0 + 0.5 * (CURVATURE * x * x).sum() + jnp.cos(x).sum()


@functools.cache
def many(kind, baseline=None):
    """The estimates for many keys."""
    estimate = zoo.zeroth_order_grad(wavy, sigma=SIGMA, num_samples=N, kind=kind, baseline=baseline)
    keys = jax.random.split(jax.random.key(1), 16384)
    return jax.jit(jax.vmap(lambda key: estimate(X, key)[1]))(keys)


UNBIASED = [
    ("forward", None),
    ("antithetic", None),
    ("score", None),
    ("score", "leave_one_out"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "baseline"), UNBIASED)
def test_the_mean_is_the_gradient_of_the_smoothed_objective(kind, baseline):
    estimates = many(kind, baseline)
    assert_unbiased(estimates, SMOOTHED_GRADIENT)
    if (kind, baseline) != ("score", None):  # the others tell it from the gradient itself
        with pytest.raises(AssertionError):
            assert_unbiased(estimates, jax.grad(wavy)(X))


@pytest.mark.slow
def test_the_mean_of_the_same_samples_shrinks_the_estimate():
    estimates = many("score", "mean")
    assert_unbiased(estimates, SMOOTHED_GRADIENT * (N - 1) / N)
    with pytest.raises(AssertionError):
        assert_unbiased(estimates, SMOOTHED_GRADIENT)


def spread(*arguments):
    return float(jnp.var(many(*arguments), axis=0).sum())


@pytest.mark.slow
def test_antithetic_estimates_and_baselines_vary_less():
    assert spread("score", "leave_one_out") < spread("score") / 3
    assert spread("antithetic") < 0.8 * spread("forward")


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "optimal"])
def test_an_offset_changes_nothing_under_a_baseline(baseline):
    losses = jnp.array([1.0, 4.0, -2.0])
    norms = jnp.array([1.0, 3.0, 2.0]) if baseline == "optimal" else None
    low, high = (
        _sampling.subtract_baseline(losses + offset, baseline, norms) for offset in (0.0, 1024.0)
    )
    assert_close(high, low, rtol=1e-4)


def test_ranks_are_centred_and_shared_by_equals():
    ranks = centred_ranks(jnp.array([3.0, 1.0, 3.0, 9.0, 1.0]))
    np.testing.assert_allclose(ranks, (np.array([2.5, 0.5, 2.5, 4, 0.5]) / 4) - 0.5)


def test_a_value_that_is_not_a_number_ranks_worst():
    ranks = centred_ranks(jnp.array([jnp.nan, -jnp.inf, 5.0]))
    assert ranks.tolist() == [0.5, -0.5, 0.0]


@pytest.mark.slow
def test_ranks_ignore_increasing_functions():
    values = jax.random.normal(jax.random.key(0), (9,))
    assert_close(centred_ranks(jnp.exp(values)), centred_ranks(values))


@pytest.mark.slow
def test_a_plateau_has_no_rank():
    assert not centred_ranks(jnp.full(6, 7.0)).any()


@pytest.mark.slow
def test_an_objective_outside_jax_is_not_vectorised_at_batch_size_one():
    seen = []

    def outside(x):
        def host(x):
            seen.append(np.array(x))
            return np.float32(np.abs(x).sum())

        return jax.pure_callback(host, jax.ShapeDtypeStruct((), jnp.float32), x)

    estimate = zoo.zeroth_order_grad(outside, sigma=0.5, num_samples=3, batch_size=1)
    _, grads = estimate(X, jax.random.key(0))
    centre, *points = seen
    assert len(points) == 6
    noise = (np.stack(points[:3]) - centre) / 0.5
    np.testing.assert_allclose(np.stack(points[3:]), centre - 0.5 * noise, rtol=1e-5)
    losses = np.abs(np.stack(points)).sum(1)
    np.testing.assert_allclose(grads, (losses[:3] - losses[3:]) @ noise / 3, rtol=1e-4)


@pytest.mark.slow
def test_the_samples_are_not_all_in_memory_at_once():
    params = jnp.zeros(100_000)
    temporaries = {}
    for batch_size in (None, 4):
        estimate = zoo.zeroth_order_grad(
            lambda x: (x * x).sum(), sigma=0.1, num_samples=64, batch_size=batch_size
        )
        compiled = jax.jit(estimate).lower(params, jax.random.key(0)).compile()
        analysis: Any = compiled.memory_analysis()
        temporaries[batch_size] = analysis.temp_size_in_bytes
    assert temporaries[4] < temporaries[None] / 4
