"""Losses with a penalty on their gradient, flooded losses, what gradient descent does unasked."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_zoo as zoo
from helpers import assert_close, assert_finite, slow

GOLDEN = Path(__file__).parent / "golden"
both_ways = pytest.mark.parametrize("epsilon", [None, 1e-4], ids=["twice", "difference"])


def recording():
    with np.load(GOLDEN / "loss_transforms.npz") as file:
        return dict(file), json.loads((GOLDEN / "loss_transforms.json").read_text())


def quadratic(x, matrix, center):
    return 0.5 * (x - center) @ matrix @ (x - center)


def descend(loss, x, rate, steps=20):
    step = jax.jit(lambda x: x - rate * jax.grad(loss)(x))
    path = [x]
    for _ in range(steps):
        path.append(step(path[-1]))
    return np.stack(path)


# --- recordings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gd", "egr_sum", "egr_mean", "flood"])
def test_the_recorded_descent_comes_out_again(name, x64):
    data, settings = recording()
    h = settings["hyperparameters"]
    loss = lambda x: quadratic(x, data["A"], data["c"])  # noqa: E731
    transformed = {
        "gd": loss,
        "egr_sum": zoo.gradient_penalty(loss, h["mu"], form="sum"),
        "egr_mean": zoo.gradient_penalty(loss, h["mu"]),
        "flood": zoo.flooding(loss, h["flood_level"]),
    }[name]
    rate = h["flood_lr"] if name == "flood" else h["lr"]
    path = descend(transformed, jnp.asarray(data["x0"]), rate)
    np.testing.assert_allclose(path, data[f"traj|{name}"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_on_a_quadratic_the_difference_is_the_product(form, x64):
    data, settings = recording()
    mu = settings["hyperparameters"]["mu"]
    loss = lambda x: quadratic(x, data["A"], data["c"])  # noqa: E731
    penalised = zoo.gradient_penalty(loss, mu, form=form, finite_difference=0.1)
    path = descend(penalised, jnp.asarray(data["x0"]), settings["hyperparameters"]["lr"])
    np.testing.assert_allclose(path, data[f"traj|egr_{form}"], rtol=1e-10, atol=1e-12)


# --- what gradient descent does unasked -------------------------------------------------------


def flow(loss, x, time, steps=40):
    """Gradient flow by the classical Runge-Kutta method."""
    slope = lambda x: -jax.grad(loss)(x)  # noqa: E731
    h = time / steps

    def step(_, x):
        k1 = slope(x)
        k2 = slope(x + h / 2 * k1)
        k3 = slope(x + h / 2 * k2)
        k4 = slope(x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jax.lax.fori_loop(0, steps, step, x)


def distances(loss, x, steps):
    """From a step of gradient descent to the flow of the loss and to that of the penalised one."""

    @jax.jit
    def measure(h):
        penalised = zoo.gradient_penalty(loss, h / 4, form="sum")
        descended = x - h * jax.grad(loss)(x)
        return [jnp.max(jnp.abs(descended - flow(f, x, h))) for f in (loss, penalised)]

    return np.array([measure(h) for h in steps])


@pytest.mark.slow
def test_a_step_follows_the_flow_of_the_penalised_loss(x64):
    data, settings = recording()
    loss = lambda x: quadratic(x, data["A"], data["c"])  # noqa: E731
    x, h = jnp.asarray(data["x0"]), settings["hyperparameters"]["lr"]
    desired = settings["backward_error"]
    found = distances(loss, x, [h])[0]
    np.testing.assert_allclose(found, list(desired.values()), rtol=1e-6)


@pytest.mark.slow
def test_the_distance_is_of_third_order_with_the_penalty_and_of_second_without(x64):
    loss = lambda x: jnp.sum(jnp.cosh(x)) + 0.5 * jnp.prod(x)  # noqa: E731
    x = jnp.array([0.5, -1.0, 0.8])
    coarse, fine = distances(loss, x, [0.02, 0.01])
    orders = np.log2(coarse / fine)
    np.testing.assert_allclose(orders, [2, 3], atol=0.1)


@pytest.mark.slow
def test_a_step_down_and_a_step_up_penalise_the_gradient(x64):
    data, _ = recording()
    loss = lambda x: quadratic(x, data["A"], data["c"])  # noqa: E731
    x, e = jnp.asarray(data["x0"]), 1e-3
    down = x - e * jax.grad(loss)(x)
    up = down + e * jax.grad(loss)(down)
    np.testing.assert_allclose(up, data["down_up_eps1e-3"], rtol=1e-10)
    nothing = zoo.gradient_penalty(loss, 1.0, form="sum")
    slope = jax.grad(lambda x: nothing(x) - loss(x))(x)
    np.testing.assert_allclose(x - e**2 / 2 * slope, up, rtol=0, atol=1e-12)


# --- the penalty ------------------------------------------------------------------------------


def network(params, x, scale=1.0):
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return scale * jnp.mean(hidden**2) + jnp.sum(jnp.cos(params["b"]))


def inputs():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=4))}
    return params, jnp.asarray(rng.normal(size=(5, 3)))


def by_hand(params, x, argnums, entries, mu=0.3):
    gradient = jax.grad(network, argnums)(params, x)
    return network(params, x) + mu / entries * optax.tree.norm(gradient, squared=True)


@both_ways
@pytest.mark.parametrize(
    ("argnums", "entries"), [((0, 1), 31), *slow((0, 16), (1, 15), ((-1,), 15))], ids=str
)
def test_value_and_every_derivative_are_those_of_the_penalised_loss(argnums, entries, epsilon, x64):
    # Also those for arguments that are not penalised.
    params, x = inputs()
    penalised = zoo.gradient_penalty(network, 0.3, argnums=argnums, finite_difference=epsilon)
    value, slopes = jax.jit(jax.value_and_grad(penalised, (0, 1)))(params, x)
    places = argnums if isinstance(argnums, int) else tuple(i % 2 for i in argnums)
    desired = jax.value_and_grad(lambda p, x: by_hand(p, x, places, entries), (0, 1))(params, x)
    np.testing.assert_allclose(value, desired[0], rtol=1e-12)
    assert_close(slopes, desired[1], rtol=1e-12 if epsilon is None else 1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_sum_and_the_mean_differ_by_the_number_of_entries():
    params, x = inputs()
    mean = zoo.gradient_penalty(network, 0.16)(params, x)
    total = zoo.gradient_penalty(network, 0.01, form="sum")(params, x)
    np.testing.assert_allclose(mean, total, rtol=1e-6)


@pytest.mark.slow
@both_ways
def test_forward_mode_keywords_and_closures_work(epsilon, x64):
    params, x = inputs()

    def value(scale, by_keyword):
        if by_keyword:
            penalised = zoo.gradient_penalty(network, 0.3, finite_difference=epsilon)
            return penalised(params, x, scale=scale)
        closed = lambda p, x: network(p, x, scale)  # noqa: E731
        return zoo.gradient_penalty(closed, 0.3, finite_difference=epsilon)(params, x)

    slopes = [
        derivative(value)(2.0, by_keyword)
        for derivative in (jax.grad, jax.jacfwd)
        for by_keyword in (True, False)
    ]
    step = 1e-5
    desired = (value(2.0 + step, True) - value(2.0 - step, True)) / (2 * step)
    np.testing.assert_allclose(slopes, desired, rtol=1e-8 if epsilon is None else 1e-3)


@pytest.mark.slow
def test_at_twice_the_strength_the_difference_gives_the_gradient_uphill():
    params, x = inputs()
    penalised = zoo.gradient_penalty(network, 0.05, form="sum", finite_difference=0.1)
    uphill = jax.tree.map(lambda p, g: p + 0.1 * g, params, jax.grad(network)(params, x))
    assert_close(jax.grad(penalised)(params, x), jax.grad(network)(uphill, x), rtol=1e-4)


@jax.custom_vjp
def known_to_first_order(x):
    return jnp.sum(x**3)


def no_second_derivative(x, cotangent):
    on_host = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (cotangent * jax.pure_callback(lambda x: 3 * x**2, on_host, x),)


known_to_first_order.defvjp(lambda x: (known_to_first_order(x), x), no_second_derivative)


def test_the_difference_asks_for_no_second_derivative():
    x = jnp.array([1.0, -2.0])
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(zoo.gradient_penalty(known_to_first_order, 0.1))(x)
    penalised = zoo.gradient_penalty(known_to_first_order, 0.1, finite_difference=1e-4)
    g, curvature = 3 * x**2, 6 * x
    found = jax.grad(penalised)(x)
    np.testing.assert_allclose(found, g + 0.1 * curvature * g, rtol=2e-2)


@pytest.mark.slow
def test_the_difference_costs_two_gradients():
    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    def flops(loss):
        compiled = jax.jit(jax.grad(loss)).lower([jnp.eye(64)] * 4, jnp.ones((64, 64))).compile()
        cost: Any = compiled.cost_analysis()
        return cost["flops"]

    difference = zoo.gradient_penalty(loss, 0.1, finite_difference=1e-3)
    assert flops(difference) <= 2.1 * flops(loss)
    assert flops(zoo.gradient_penalty(loss, 0.1)) >= 2.7 * flops(loss)


@pytest.mark.slow
@both_ways
def test_it_works_under_jit_vmap_scan_and_with_traced_numbers(epsilon):
    params, x = inputs()

    @jax.jit
    def slopes(mu, epsilon, params, x):
        penalised = zoo.gradient_penalty(network, mu, finite_difference=epsilon)
        one = lambda row: jax.grad(penalised)(params, row[None])  # noqa: E731
        return jax.vmap(one)(x), jax.lax.scan(lambda c, row: (c, one(row)), 0, x)[1]

    mapped, scanned = slopes(0.3, epsilon, params, x)
    penalised = zoo.gradient_penalty(network, 0.3, finite_difference=epsilon)
    first = jax.tree.map(lambda leaf: leaf[0], mapped)
    coarse = 1e-5 if epsilon is None else 2e-2
    assert_close(mapped, scanned, rtol=coarse, atol=coarse)
    assert_close(first, jax.grad(penalised)(params, x[:1]), rtol=coarse, atol=coarse)


@pytest.mark.slow
@both_ways
def test_narrow_losses_keep_their_dtype(epsilon):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), inputs())
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    coarse = None if epsilon is None else 0.1  # moves narrow numbers too
    found = jax.value_and_grad(zoo.gradient_penalty(network, 0.3, finite_difference=coarse))(
        *narrow
    )
    desired = jax.value_and_grad(zoo.gradient_penalty(network, 0.3))(*wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    as_wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)
    assert_close(as_wide, desired, rtol=0.1, atol=0.05)


@pytest.mark.slow
@both_ways
def test_trees_without_entries_and_stationary_points_are_harmless(epsilon):
    loss = lambda p: 1.0 + sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
    penalised = zoo.gradient_penalty(loss, 0.3, finite_difference=epsilon)
    for params in ({}, {"n": None, "e": jnp.ones((0, 2))}, {"w": jnp.zeros(2), "s": 0.0}):
        found = jax.value_and_grad(penalised)(params)
        assert_finite(found)
        assert float(found[0]) == 1


# --- flooding ---------------------------------------------------------------------------------


def test_the_gradient_turns_round_at_the_level_and_is_zero_on_it():
    flooded = zoo.flooding(lambda x: x**2, 4.0)
    for x, value, slope in [(3.0, 9.0, 6.0), (2.0, 4.0, 0.0), (1.0, 7.0, -2.0)]:
        found = jax.value_and_grad(flooded)(x)
        assert tuple(map(float, found)) == (value, slope)
        assert float(jax.jacfwd(flooded)(x)) == slope


def test_flooding_keeps_the_dtype_and_takes_a_traced_level():
    loss = lambda x: jnp.sum(x) ** 2  # noqa: E731
    found = jax.jit(lambda b, x: jax.value_and_grad(zoo.flooding(loss, b))(x))(
        jnp.float32(4.0), jnp.ones(1, jnp.bfloat16)
    )
    assert {leaf.dtype for leaf in found} == {jnp.dtype("bfloat16")}
    assert (float(found[0]), float(found[1][0])) == (7.0, -2.0)


def test_flooding_follows_a_complex_parameter():
    flooded = zoo.flooding(lambda z: jnp.abs(z) ** 2, 4.0)
    assert complex(jax.grad(flooded)(1.0 + 1.0j)) == -complex(
        jax.grad(lambda z: jnp.abs(z) ** 2)(1.0 + 1.0j)
    )


# --- both -------------------------------------------------------------------------------------

TRANSFORMS = {
    "flooding": lambda loss: zoo.flooding(loss, 1.0),
    "twice": lambda loss: zoo.gradient_penalty(loss, 0.1),
    "difference": lambda loss: zoo.gradient_penalty(loss, 0.1, finite_difference=1e-2),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_auxiliary_data_come_along(transform):
    with_aux = transform(lambda x: (jnp.sum(x**2), {"count": x.size, "x": x}))
    x = jnp.array([1.0, 2.0])
    (value, aux), slope = jax.value_and_grad(with_aux, has_aux=True)(x)
    desired = jax.value_and_grad(transform(lambda x: jnp.sum(x**2)))(x)
    assert_close((value, slope), desired)
    assert aux["count"] == 2
    np.testing.assert_array_equal(aux["x"], x)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_it_stands_where_the_loss_stood(transform):
    def loss(x, power):
        """A loss."""
        return jnp.sum(x**power)

    transformed = transform(loss)
    assert (transformed.__name__, transformed.__doc__) == ("loss", "A loss.")
    jitted = jax.jit(transformed, static_argnames="power")
    np.testing.assert_allclose(jitted(jnp.ones(2), power=2), transformed(jnp.ones(2), 2), rtol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_nest(transform):
    nested = zoo.flooding(transform(lambda x: jnp.sum(x**2)), 0.0)
    plain = transform(lambda x: jnp.sum(x**2))
    x = jnp.array([1.0, 2.0])
    assert_close(jax.value_and_grad(nested)(x), jax.value_and_grad(plain)(x))


@both_ways
def test_the_derivative_by_the_strength_is_the_penalty(epsilon):
    def value(strength):
        loss = zoo.gradient_penalty(
            lambda x: jnp.sum(x**4) / 4, strength, form="sum", finite_difference=epsilon
        )
        return loss(jnp.array([1.0, 2.0]))

    np.testing.assert_allclose(jax.grad(value)(0.1), 1 + 64, rtol=1e-6)  # |(1, 8)|²


def test_a_module_that_would_be_copied_is_refused():
    module = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    penalised = zoo.gradient_penalty(lambda m, x: m(x).sum(), 0.1)
    with pytest.raises(TypeError, match=r"nnx\.Module.*nnx\.split"):
        penalised(module, jnp.ones((2, 3)))
