"""Learning-rate scaling and warm-up."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_zoo as zoo
from helpers import assert_finite, problem, slow, train


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parent / "golden" / "lr_scaling.npz") as file:
        return dict(file)


def rate(schedule, step) -> float:
    return np.asarray(schedule(step)).item()


def test_the_linear_rule_is_the_recorded_one(recorded):
    rates = [zoo.scale_learning_rate(0.1, 256, int(b)) for b in recorded["batch"]]
    np.testing.assert_allclose(rates, recorded["linear_rule_0.1_per_256"], rtol=1e-14)


def test_the_square_root_rule_gives_lambs_table(recorded):
    rates = [zoo.scale_learning_rate(6.25e-4, 512, int(b), "sqrt") for b in recorded["batch"]]
    np.testing.assert_allclose(rates, recorded["lamb_sqrt_lr"], rtol=1e-14)


def test_the_default_warm_up_is_lambs_table(recorded):
    for batch, share in zip(recorded["batch"], recorded["lamb_warmup_ratio"], strict=True):
        schedule = zoo.large_batch_schedule(1.0, 512, int(batch), total_steps=3200, rule="sqrt")
        peak = zoo.scale_learning_rate(1.0, 512, int(batch), "sqrt")
        warmup = round(share * 3200)
        assert rate(schedule, warmup) == pytest.approx(peak)
        assert rate(schedule, warmup - 1) == pytest.approx(peak * (warmup - 1) / warmup)


def test_the_default_warm_up_takes_a_fifth_at_most():
    schedule = zoo.large_batch_schedule(1.0, 1, 1000, total_steps=100)
    assert rate(schedule, 20) == pytest.approx(1000.0)
    assert rate(schedule, 10) == pytest.approx(500.0)


@pytest.mark.parametrize(
    ("decay_from", "key"),
    [("start", "zero_warmup_then_poly1"), ("warmup", "zero_warmup_then_poly1_shifted")],
)
def test_both_conventions_of_the_decay_are_the_recorded_ones(recorded, decay_from, key, x64):
    schedule = zoo.large_batch_schedule(
        0.1, 256, 1024, total_steps=100, warmup_steps=10, decay_from=decay_from
    )
    rates = [rate(schedule, t) for t in range(101)]
    np.testing.assert_allclose(rates, recorded[key], rtol=1e-12, atol=1e-15)


arguments = st.fixed_dictionaries(
    {
        "base_lr": st.floats(1e-4, 10.0),
        "base_batch": st.integers(1, 4096),
        "batch": st.integers(1, 65536),
        "total_steps": st.integers(1, 5000),
        "rule": st.sampled_from(["linear", "sqrt"]),
        "power": st.sampled_from([1.0, 2.0]),
        "decay_from": st.sampled_from(["warmup", "start"]),
    }
)


@pytest.mark.slow
@settings(max_examples=25)
@given(arguments, st.floats(0, 1, exclude_max=True))
def test_it_rises_to_the_peak_and_falls_to_the_end(arguments, share):
    total, warmup = arguments["total_steps"], int(share * arguments["total_steps"])
    schedule = zoo.large_batch_schedule(**arguments, warmup_steps=warmup)
    ratio = arguments["batch"] / arguments["base_batch"]
    peak = arguments["base_lr"] * (ratio if arguments["rule"] == "linear" else ratio**0.5)
    slack, count = 1e-4, 50  # one array shape for all examples, compiled once

    def relative(first, last):
        steps = np.linspace(first, last, count).astype(int)
        return np.asarray(schedule(jnp.asarray(steps))) / peak, steps

    rising, steps = relative(0, max(warmup - 1, 0))
    if warmup:
        np.testing.assert_allclose(rising, steps / warmup, atol=slack)
    falling, steps = relative(warmup, total)
    begin = 0 if arguments["decay_from"] == "start" else warmup
    left = 1 - (steps - begin) / (total - begin)
    np.testing.assert_allclose(falling, left ** arguments["power"], atol=2e-3)
    np.testing.assert_allclose(relative(total, 2 * total)[0], 0.0, atol=slack)


@given(st.floats(1e-6, 10), st.integers(1, 10**6), st.integers(1, 10**6))
def test_scaling_there_and_back_changes_nothing(lr, base, batch):
    for rule in ("linear", "sqrt"):
        there = zoo.scale_learning_rate(lr, base, batch, rule)
        assert zoo.scale_learning_rate(there, batch, base, rule) == pytest.approx(lr)


def test_the_end_value_is_held():
    schedule = zoo.large_batch_schedule(
        1.0, 1, 1, total_steps=10, warmup_steps=0, power=2.0, end_value=0.25
    )
    assert [rate(schedule, t) for t in (0, 10, 11, 1000)] == [1.0, 0.25, 0.25, 0.25]


def test_power_zero_keeps_the_peak():
    schedule = zoo.large_batch_schedule(1.0, 1, 2, total_steps=10, warmup_steps=2, power=0.0)
    assert [rate(schedule, t) for t in (0, 1, 2, 5, 9)] == [0.0, 1.0, 2.0, 2.0, 2.0]


def test_a_traced_step_and_a_traced_rate_work(x64):
    def traced(base_lr, count):
        return zoo.large_batch_schedule(base_lr, 256, 512, total_steps=100, warmup_steps=10)(count)

    assert float(jax.jit(traced)(0.1, 5)) == pytest.approx(0.1)
    assert float(jax.jit(traced)(0.1, 55)) == pytest.approx(0.1)


@pytest.mark.parametrize("factory", [zoo.lamb, *slow(zoo.lion, zoo.lars, zoo.adax, optax.adam)])
def test_every_optimizer_takes_the_schedule(factory):
    schedule = zoo.large_batch_schedule(0.1, 32, 64, total_steps=5, warmup_steps=1)
    params, grads = problem()
    after, _ = train(factory(schedule), params, grads)
    assert_finite(after)


def test_numbers_without_arrays_give_a_float():
    assert type(zoo.scale_learning_rate(0.1, 256, 512)) is float
