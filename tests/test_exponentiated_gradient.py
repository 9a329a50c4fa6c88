"""Exponentiated gradients: domains kept to the bit, invariances, the references, bad starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
import references
from helpers import assert_same, call, enable_x64, slow, some, trajectory

exponentiated: Any = zoo.exponentiated_gradient
DTYPES = ["float32", "bfloat16", "float16"]


def applied(tx: Any, params: Any, grads: Any) -> Any:
    """The parameters after one step."""
    # Inside jit the values of the parameters are not looked at.
    state = jax.jit(tx.init)(params)
    return optax.apply_updates(params, tx.update(grads, state, params)[0])


def numbers(dtype, seed=0, size=2000):
    """Positive normal numbers from the whole range of a dtype, not all of it at once."""
    info = jnp.finfo(dtype)
    low, high = np.log(float(info.tiny)) * 0.99, np.log(float(info.max)) * 0.9
    return jnp.asarray(np.exp(np.random.default_rng(seed).uniform(low, high, size)), dtype)


def gradients(dtype, seed=1, size=2000):
    """Gradients of both signs and of all sizes."""
    rng = np.random.default_rng(seed)
    largest = 4 if dtype == "float16" else 30
    return jnp.asarray(rng.normal(size=size) * 10.0 ** rng.uniform(-6, largest, size), dtype)


@pytest.mark.parametrize("domain", ["positive", "simplex"])
@pytest.mark.parametrize(
    ("dtype", "grads_dtype"),
    [
        ("bfloat16", "bfloat16"),
        ("float16", "float32"),
        *slow(*(("float32", dtype) for dtype in DTYPES), ("float16", "float16")),
    ],
)
def test_rounding_keeps_positive_numbers_positive_and_zeros_zero(dtype, grads_dtype, domain):
    params = numbers(dtype)
    if domain == "simplex":
        params = jnp.asarray(np.exp(-np.linspace(0, 80 if dtype != "float16" else 9, 2000)), dtype)
    params = params.at[7].set(0)
    tx = exponentiated(0.5, domain=domain)
    for seed in range(2):
        params = applied(tx, params, gradients(grads_dtype, seed))
        found = np.asarray(params).astype(float)
        assert params.dtype == dtype
        assert found[7] == 0
        assert np.all(np.delete(found, 7) > 0)
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize(("axis", "over"), [(None, (0, 1)), (0, 0), *slow((1, 1), (-1, 1))])
def test_a_simplex_stays_one(axis, over):
    params = jnp.abs(gradients("float32", 0, 12)).reshape(3, 4)
    params = params / params.sum(over, keepdims=True)
    tx = exponentiated(10.0, domain="simplex", axis=axis)
    for seed in range(5):
        params = applied(tx, params, gradients("float32", seed, 12).reshape(3, 4))
        np.testing.assert_allclose(params.sum(over), 1, atol=3e-7)


@pytest.mark.slow
def test_a_simplex_step_is_the_same_for_shifted_gradients():
    params = jnp.array([0.1, 0.2, 0.7])
    tx = exponentiated(1.0, domain="simplex")
    grads = jnp.array([1.0, -2.0, 0.5])
    moved, shifted = applied(tx, params, grads), applied(tx, params, grads + 1024)
    np.testing.assert_allclose(moved, shifted, rtol=1e-6)
    expected = np.asarray(params) * np.exp(-np.asarray(grads))
    np.testing.assert_allclose(moved, expected / expected.sum(), rtol=1e-6)


def test_a_simplex_survives_what_would_overflow_outside_logarithms():
    params = jnp.array([1e-30, 0.5, 0.5])
    moved = applied(exponentiated(1.0, domain="simplex"), params, jnp.array([-1e30, 1e30, 3e38]))
    np.testing.assert_allclose(moved, [1, 0, 0], atol=1e-7)
    assert bool(jnp.all(moved > 0))


@pytest.mark.slow
def test_the_decay_of_a_simplex_cancels():
    params, grads = jnp.array([0.25, 0.75]), jnp.array([1.0, -1.0])
    one = applied(exponentiated(0.1, domain="simplex"), params, grads)
    other = applied(exponentiated(0.1, domain="simplex", weight_decay=3.0), params, grads)
    assert_same(one, other)


def test_decay_multiplies():
    params = jnp.array([1.0, 3.0])
    moved = applied(exponentiated(0.5, weight_decay=0.2), params, jnp.zeros(2))
    np.testing.assert_allclose(moved, params * np.exp(-0.1), rtol=1e-6)


def test_exponents_are_bounded_but_small_steps_are_exact():
    params = jnp.ones(3)
    updates, _ = call(exponentiated(1.0), jnp.array([-1e9, 1e-9, -jnp.inf]), params)
    np.testing.assert_allclose(updates, np.expm1([20, -1e-9, 20]), rtol=1e-6)


def test_small_signed_weights_descend_at_the_rate_times_beta():
    tx = exponentiated(1e-3, domain="signed")
    params = jnp.array([1e-9, -1e-9, 0.0])
    updates, state = call(tx, jnp.ones(3), params)
    np.testing.assert_allclose(state.beta, 1.0, rtol=1e-6)  # u = v = 1/2
    np.testing.assert_allclose(updates, -np.sinh(1e-3), rtol=1e-6)


def test_a_weight_of_either_sign_can_change_it():
    tx = exponentiated(0.1, domain="signed")
    loss = lambda w: jnp.sum((w - jnp.array([-2.0, 3.0])) ** 2)  # noqa: E731
    path: Any = jnp.array([1.0, -1.0])
    grads = jax.jit(jax.grad(loss))
    state = tx.init(path)
    for _ in range(100):
        updates, state = tx.update(grads(path), state, path)
        path = optax.apply_updates(path, updates)
    np.testing.assert_allclose(path, [-2, 3], rtol=1e-3)


def test_a_long_decay_of_signed_weights_ends_in_finite_numbers():
    tx = exponentiated(1.0, domain="signed", weight_decay=15.0)
    params = jnp.array([2.0, -3.0])
    path = trajectory(tx, params, [jnp.zeros(2)] * 8 + [jnp.ones(2)])
    assert bool(jnp.all(jnp.isfinite(path[-1])))


@pytest.mark.parametrize("domain", ["positive", "simplex", "signed"])
def test_it_agrees_with_the_reference(domain):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    if domain != "signed":
        start = np.abs(start)
    if domain == "simplex":
        start /= start.sum(0)
    grads = rng.normal(size=(6, 3, 4))
    rates = [0.1, 0.2, 0.3, 0.1, 0.0, 0.5]
    arguments = {"axis": 0} if domain == "simplex" else {}
    expected = references.exponentiated_gradient(start, grads, rates, domain, wd=0.3, **arguments)
    with enable_x64():
        schedule = lambda count: jnp.array(rates)[count]  # noqa: E731
        tx = exponentiated(schedule, domain=domain, weight_decay=0.3, **arguments)
        path = trajectory(tx, jnp.asarray(start), [jnp.asarray(g) for g in grads], jit=False)
        np.testing.assert_allclose(np.stack(path), expected, rtol=1e-11)


def test_the_decay_may_follow_a_schedule():
    tx = exponentiated(0.5, weight_decay=lambda count: 0.1 * count)
    path = trajectory(tx, jnp.ones(1), [jnp.zeros(1)] * 3, jit=False)
    np.testing.assert_allclose(np.ravel(path), np.exp([0, 0, -0.05, -0.15]), rtol=1e-6)


def test_no_state_but_in_the_signed_domain():
    params = jnp.full((4, 4), 1 / 16)
    leaves = {d: jax.tree.leaves(exponentiated(0.1, domain=d).init(params)) for d in DOMAINS}
    assert {d: sum(leaf.nbytes for leaf in leaves[d]) for d in DOMAINS} == {
        "positive": 0,
        "simplex": 0,
        "signed": 4 * 16,
    }


DOMAINS = ("positive", "simplex", "signed")
BAD_STARTS: dict[str, tuple[dict[str, Any], Any, list[str]]] = {
    "negative": ({}, [1.0, -2.0], ["> 0", "-2.0", '"signed"']),
    "zero": ({}, 0.0, ["> 0", "0.0", '"positive"']),
    "zeros": ({}, [0.0, 0.0], ["> 0", "0.0", '"positive"']),
    "nan": ({}, [1.0, np.nan], ["> 0", "nan"]),
    "below_a_simplex": ({"domain": "simplex"}, [1.5, -0.5], ["> 0", "-0.5", '"simplex"']),
    "sum": ({"domain": "simplex"}, [0.5, 0.7], ["sum to 1 along axis None", "1.2", "softmax"]),
    "row": (
        {"domain": "simplex", "axis": 1},
        [[0.5, 0.5], [0.3, 0.3]],
        ["sum to 1 along axis 1", "0.6"],
    ),
    "axis": ({"domain": "simplex", "axis": 1}, [0.5, 0.5], ["axis is 1", "(2,)", "partition"]),
}


@pytest.mark.parametrize(("arguments", "values", "pieces"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_a_start_outside_the_domain_is_refused_by_name(arguments, values, pieces):
    params = {"layers": [jnp.asarray(values, jnp.float32)]}
    with pytest.raises(ValueError, match=r"params\['layers'\]\[0\]") as error:
        exponentiated(0.1, **arguments).init(params)
    assert not [piece for piece in pieces if piece not in str(error.value)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16", "float64"])
def test_rounded_or_empty_simplices_are_taken(dtype):
    with enable_x64(dtype == "float64"):
        softmax = jax.nn.softmax(jnp.linspace(-3, 3, 1000)).astype(dtype)
        params = {"w": softmax, "s": jnp.ones((), dtype), "e": jnp.zeros((0,), dtype)}
        tx = exponentiated(0.1, domain="simplex")
        updates, _ = call(tx, params, params)
        assert updates["e"].shape == (0,)


def test_values_inside_a_program_are_not_looked_at():
    zeros = jnp.zeros(2)
    tx = exponentiated(0.1)
    jax.jit(tx.init)(zeros)
    jax.eval_shape(tx.init, zeros)
    with pytest.raises(ValueError, match="must be > 0"):
        jax.jit(lambda: tx.init(zeros))()  # a constant is known also there


def test_a_weight_of_zero_stays_while_others_move():
    params = jnp.array([0.0, 1.0])  # and `init` takes it, though it takes no leaf of zeros alone
    assert float(applied(exponentiated(0.1), params, jnp.array([-5.0, -5.0]))[0]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["simplex", "positive"])
def test_derivatives_are_finite_also_where_a_weight_is_zero(domain):
    def loss(params, grads):
        return jnp.sum(applied(exponentiated(0.1, domain=domain), params, grads) ** 2)

    slopes = jax.grad(loss, argnums=(0, 1))(jnp.array([0.0, 0.4, 0.6]), jnp.array([1.0, -1.0, 2]))
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes)
    assert bool(jnp.any(slopes[1] != 0))


@pytest.mark.parametrize("domain", some(DOMAINS, "signed"))
def test_python_numbers_are_parameters_too(domain):
    updates, _ = call(exponentiated(0.1, domain=domain), 0.5, 1.0)
    assert jnp.isfinite(updates)
