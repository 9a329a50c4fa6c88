"""Amos: slots, names, and what the scale of the weights does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_zoo as zoo
import references
from helpers import (
    assert_close,
    assert_finite,
    call,
    problem,
    random_tree,
    slow,
    train,
    trajectory,
)


def half(name, shape):
    del name, shape
    return 0.5


def slots(shape):
    """The same slot for every parameter."""
    return lambda name, _: shape


SHAPES = {  # slot of a (5, 4, 3) array -> the axes that it averages over
    (5, 4, 3): (),
    (1, 4, 3): (0,),
    (5, 1, 3): (1,),
    (1, 1, 3): (0, 1),
    (4, 1): (0, 2),
    (3,): (0, 1),
    (1,): (0, 1, 2),
    (): (0, 1, 2),
}
SLOTS = list(SHAPES)


@pytest.mark.parametrize("slot", [*SLOTS[:3], *slow(*((slot,) for slot in SLOTS[3:]))], ids=str)
def test_any_slot_that_broadcasts_gives_the_papers_steps(slot, x64):
    shape = (5, 4, 3)
    params = random_tree(0, "float64", shape)
    grads = [random_tree(1 + t, "float64", shape) for t in range(6)]
    rates = [0.1, 0.2, 0.3, 0.2, 0.1, 0.0]
    tx = zoo.amos(
        lambda step: jnp.asarray([jnp.nan, *rates])[step],
        lambda name, shape: 0.7,
        slots(slot),
        beta=0.9,
        extra_l2=0.01,
        c_coef=0.5,
        d_coef=2.0,
        momentum=0.6,
        clip_value=0.8,
    )
    path = trajectory(tx, params, grads)
    desired = references.amos(
        np.asarray(params),
        np.stack(grads),
        rates,
        0.7,
        SHAPES[slot],
        beta=0.9,
        extra_l2=0.01,
        c=0.5,
        d=2.0,
        momentum=0.6,
        clip=0.8,
    )
    np.testing.assert_allclose(np.stack(path), desired, rtol=1e-11)


@pytest.mark.slow
def test_slots_have_the_shapes_asked_for():
    params = {"w": jnp.ones((5, 7)), "b": jnp.ones(7, jnp.bfloat16)}
    tx = zoo.scale_by_amos(0.1, half, lambda name, shape: (1, 7) if name == ("w",) else ())
    _, state = call(tx, params, params)
    for slot in (state.v, state.b):
        assert {k: (x.shape, x.dtype) for k, x in slot.items()} == {
            "w": ((1, 7), jnp.float32),
            "b": ((), jnp.float32),
        }


def test_the_link_is_amos_with_the_other_sign():
    params, grads = problem(steps=1)
    link, _ = call(zoo.scale_by_amos(0.1, half, extra_l2=0.1), grads[0], params)
    whole, _ = call(zoo.amos(0.1, half, extra_l2=0.1), grads[0], params)
    assert_close(whole, jax.tree.map(jnp.negative, link))


@pytest.mark.parametrize("scale", [1e-8, 1e4])
def test_steps_do_not_depend_on_the_gradients_scale(scale):
    params, grads = problem()
    tx = zoo.amos(0.1, half, slots(()))
    scaled = [jax.tree.map(lambda g: g * scale, tree) for tree in grads]
    assert_close(train(tx, params, scaled)[0], train(tx, params, grads)[0], rtol=1e-4)


def test_steps_are_proportional_to_eta():
    nothing, g = jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])
    steps = [call(zoo.amos(0.1, lambda *_, eta=eta: eta), g, nothing)[0] for eta in (0.25, 4.0)]
    np.testing.assert_allclose(steps[1], 16 * steps[0], rtol=1e-6)
    np.testing.assert_allclose(steps[0], -0.1 * 0.25 * jnp.sign(g), rtol=1e-6)


def test_rates_decay_by_themselves():
    tx = zoo.amos(0.3, half)
    g = jnp.ones(1)
    path = np.stack(trajectory(tx, jnp.zeros(1), [g] * 200))[:, 0]
    steps = -np.diff(path)
    assert np.all(np.diff(steps[20:]) < 0)
    assert steps[-1] < 0.5 * steps[0]


@pytest.mark.slow
def test_the_names_and_shapes_are_the_same_in_init_and_update_of_nnx():
    seen: list[set] = [set()]

    def eta_fn(name, shape):
        seen[-1].add((name, shape))
        return 0.5

    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, zoo.amos(0.1, eta_fn, zoo.flax_slots), wrt=nnx.Param)
    seen.append(set())
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert seen[0] == seen[1]
    assert seen[0] == {(("layers", "0", "kernel"), (2, 3)), (("layers", "0", "bias"), (3,))}


def test_the_functions_belong_into_static_args():
    tx = optax.inject_hyperparams(zoo.amos, static_args=("eta_fn", "shape_fn"))
    injected, state = train(tx(0.1, half, slots(())), *problem())
    assert_close(injected, train(zoo.amos(0.1, half, slots(())), *problem())[0], rtol=1e-4)
    assert "learning_rate" in state.hyperparams


def test_an_injected_schedule_counts_from_zero_unless_it_is_shifted():
    """Optax calls it there, not Amos; the docstring says how to get the released steps."""
    inject = optax.inject_hyperparams(zoo.amos, static_args=("eta_fn", "shape_fn"))

    def first(tx):
        return float(call(tx, jnp.ones(()), jnp.zeros(()))[0])

    rate = lambda t: 0.01 * t  # noqa: E731
    assert first(zoo.amos(rate, half)) == pytest.approx(-0.005, rel=1e-5)
    assert first(inject(rate, half)) == 0
    assert first(inject(lambda t: rate(t + 1), half)) == pytest.approx(-0.005, rel=1e-5)


def test_a_rate_of_zero_moves_nothing():
    params, grads = problem()
    after, state = train(zoo.amos(0.0, half), params, grads)
    assert_close(after, params, rtol=0, atol=0)
    assert_finite(state)


def test_the_first_gradient_after_many_zeros_is_bounded():
    zero, g = jnp.zeros(2), jnp.array([1e-30, 3.0])
    after, state = train(zoo.amos(0.1, half), zero, [zero] * 5 + [g])
    assert_finite((after, state))
    assert jnp.max(jnp.abs(after)) < 0.1 * 0.5 * 40  # at most 1 / sqrt(1 - beta) ordinary steps


@pytest.mark.parametrize("count", [2**31 - 2, 2**31 - 1])
def test_the_count_does_not_overflow(count):
    tx = zoo.scale_by_amos(0.1, half)
    one = jnp.ones(1)
    state = zoo.AmosState(jnp.asarray(count, jnp.int32), v=one, b=one)
    updates, state = call(tx, one, one, state)
    assert int(state.count) == 2**31 - 1
    assert_finite((updates, state))


def test_a_square_that_overflows_leaves_steps_finite():
    ones = jnp.ones(2)
    params, state = train(zoo.amos(0.1, half), ones, [ones, jnp.array([3e38, 1.0]), ones])
    assert_finite((params, optax.tree.get(state, "b")))


@pytest.mark.slow
def test_reduced_slots_are_sharded_as_what_is_left_of_the_parameter():
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices("cpu")[:8])
    by_columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    params = jax.device_put({"kernel": jnp.ones((4, 16))}, {"kernel": by_columns})
    tx = zoo.scale_by_amos(0.1, half, zoo.flax_slots)
    before: Any = tx.init(params)
    after: Any = jax.jit(tx.update)(params, before, params)[1]
    for state in (before, after):
        assert state.v["kernel"].sharding.is_equivalent_to(by_columns, 2)
        assert state.b["kernel"].sharding.is_equivalent_to(by_columns, 2)


@pytest.mark.slow
@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("g", [0.0, 1e-14, 1e-10, 1.0])
def test_derivatives_are_finite_however_small_the_gradient(derivative, g):
    tx = zoo.amos(0.1, half)
    params = jnp.ones(())

    def moved(g):
        return call(tx, g, params)[0]

    # A step of sign(g): its slope is 0, and at 0 that of g / 2**-62.5.
    slope = float(derivative(moved)(jnp.asarray(g, jnp.float32)))
    assert np.isfinite(slope)
    assert abs(slope) < 1e-3 / max(g, 1e-22)
