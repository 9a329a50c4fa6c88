"""Moving averages and powers: exact to rounding, differentiable at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import enable_x64
from optax_zoo import _moments


@pytest.mark.parametrize(
    ("given", "wide"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("complex64", "complex64"),
    ],
)
def test_narrow_floats_become_float32(given, wide):
    with enable_x64(given == "float64"):
        x = jnp.ones(2, given)
        assert _moments.widen(x).dtype == wide
        assert _moments.zeros(x).dtype == wide
        assert _moments.abs_sq(x).dtype == wide.replace("complex64", "float32")
        assert _moments.real_zeros(x).dtype == wide.replace("complex64", "float32")


def test_the_square_of_a_complex_number_is_its_squared_absolute_value():
    assert _moments.abs_sq(jnp.array([3 + 4j])).tolist() == [25.0]


def test_the_root_of_a_square_has_slope_zero_at_zero_and_the_usual_one_elsewhere():
    slopes = jax.grad(lambda x: jnp.sum(_moments.root(_moments.abs_sq(x))))(jnp.array([0.0, -4.0]))
    assert slopes.tolist() == [0.0, -1.0]


def test_the_root_keeps_nan_and_infinity():
    roots = np.asarray(_moments.root(jnp.array([0.0, 9.0, np.inf, np.nan])))
    np.testing.assert_array_equal(roots, [0.0, 3.0, np.inf, np.nan])


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
@pytest.mark.parametrize("count", [1, 2, 10, 1000, 10**6])
def test_the_bias_correction_is_exact_to_float32_rounding(decay, count):
    exact = -np.expm1(count * np.log(decay))
    np.testing.assert_allclose(_moments.bias_correction(decay, count), exact, rtol=3e-7)


def test_without_decay_there_is_nothing_to_correct():
    assert float(_moments.bias_correction(0.0, 1)) == 1.0
    assert float(_moments.bias_correction(jnp.array(0.0), 1)) == 1.0


@pytest.mark.parametrize("count", [1, 100, 6_931, 800_000])
def test_a_growing_power_is_exact_to_float32_rounding(count):
    growth = np.log1p(1e-4)
    exact = np.expm1(count * growth)
    np.testing.assert_allclose(_moments.power_minus_one(growth, count), exact, rtol=2e-5)


def test_a_power_beyond_float32_is_infinite_not_nan():
    assert float(_moments.power_minus_one(np.log1p(1e-4), 2**31 - 1)) == np.inf
