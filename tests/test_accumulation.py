"""Accumulation hidden in the moments: the average's exact step, in the moments' memory."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
import references
from helpers import (
    assert_close,
    assert_same,
    call,
    problem,
    slow,
    specification,
    train,
    updates_of,
)

EVERY = 3
DROP = optax.schedules.piecewise_constant_schedule(0.5, {1: 0.1})
REST = optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(DROP))


def multi_steps(inner: optax.GradientTransformation, k: int) -> optax.GradientTransformation:
    """`optax.MultiSteps`, gathering in float64 under x64."""
    takes_dtype = "accumulator_dtype" in inspect.signature(optax.MultiSteps).parameters
    dtype: dict[str, Any] = {"accumulator_dtype": jnp.float64} if takes_dtype else {}
    return optax.MultiSteps(inner, k, **dtype).gradient_transformation()


def scanned(tx: optax.GradientTransformation, params: Any, grads: list[Any]) -> Any:
    """The parameters after each step."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    return jax.lax.scan(step, (params, tx.init(params)), stacked)[1]


def jitted(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Outside jit a `cond` is compiled in every call."""
    return tx._replace(update=jax.jit(tx.update))


# --- the same steps as averaging --------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("k", [EVERY, *slow(1)])
def test_it_takes_the_steps_of_multi_steps_around_momentum_sgd(k, nesterov, x64):
    params, grads = problem("float64", steps=8)
    # Heavy-ball momentum of (1 - decay)·g is momentum in its averaging form.
    momentum = optax.chain(optax.scale(1 - 0.8), optax.trace(0.8, nesterov))
    desired = scanned(multi_steps(optax.chain(momentum, REST), k), params, grads)
    tx = zoo.accumulate_in_momentum(k, 0.8, nesterov=nesterov, then=REST)
    assert_close(scanned(tx, params, grads), desired, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_agrees_with_the_reference(nesterov, x64):
    params, grads = problem("float64", steps=8, shapes={"w": (2, 3)})
    stacked = np.stack([g["w"] for g in grads])
    arguments = {"decay": 0.7, "nesterov": nesterov}
    desired = references.accumulated_momentum(
        np.asarray(params["w"]), stacked, EVERY, 0.5, **arguments
    )
    tx = zoo.accumulate_in_momentum(EVERY, then=optax.scale_by_learning_rate(0.5), **arguments)
    np.testing.assert_allclose(scanned(tx, params, grads)["w"], desired[1:], rtol=1e-12)


def test_adam_agrees_with_the_reference(x64):
    params, grads = problem("float64", steps=8, shapes={"w": (2, 3)})
    desired = references.accumulated_adam(
        np.asarray(params["w"]), np.stack([g["w"] for g in grads]), EVERY, 0.5, 0.8, 0.95, 1e-3
    )
    tx = zoo.accumulate_in_adam(EVERY, 0.8, 0.95, 1e-3, then=optax.scale_by_learning_rate(0.5))
    np.testing.assert_allclose(scanned(tx, params, grads)["w"], desired[1:], rtol=1e-11)


def test_adam_on_single_gradients_is_adam(x64):
    params, grads = problem("float64")
    ours = zoo.accumulate_in_adam(1, then=optax.scale_by_learning_rate(0.1))
    desired, _ = train(optax.adam(0.1), params, grads)
    assert_close(train(ours, params, grads)[0], desired, rtol=1e-11)


def test_on_equal_gradients_adam_is_multi_steps_and_on_noise_its_second_moment_is_k_times_that():
    grads = list(np.random.default_rng(0).normal(size=(8, 4000)).astype(np.float32))
    _, ours = train(zoo.accumulate_in_adam(8), jnp.zeros(4000), grads)
    _, theirs = train(optax.scale_by_adam(), jnp.zeros(4000), [np.mean(grads, axis=0)])
    assert float(jnp.mean(ours.nu) / jnp.mean(theirs.nu)) == pytest.approx(8, rel=0.05)
    _, ours = train(zoo.accumulate_in_adam(8), jnp.zeros(4000), grads[:1] * 8)
    _, theirs = train(optax.scale_by_adam(), jnp.zeros(4000), grads[:1])
    assert_close((ours.mu, ours.nu), (theirs.mu, theirs.nu))


def test_a_chain_and_then_agree_where_the_rest_has_no_state():
    params, grads = problem(steps=4)
    rate = optax.scale_by_learning_rate(0.5)
    chained = optax.chain(zoo.accumulate_in_momentum(2), rate)
    inside = zoo.accumulate_in_momentum(2, then=rate)
    assert_close(
        updates_of(jitted(chained), params, grads), updates_of(jitted(inside), params, grads)
    )


# --- memory -----------------------------------------------------------------------------------


def state_size(tx: optax.GradientTransformation, params: Any) -> int:
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim)


def test_the_state_is_one_gradient_smaller_than_that_of_multi_steps():
    params = jnp.zeros((16, 16))
    rate = optax.scale_by_learning_rate(0.1)
    for ours, theirs in [
        (zoo.accumulate_in_momentum(4, then=rate), optax.sgd(0.1, momentum=0.9)),
        (zoo.accumulate_in_adam(4, then=rate), optax.adam(0.1)),
    ]:
        averaging = optax.MultiSteps(theirs, 4).gradient_transformation()
        assert state_size(ours, params) == state_size(theirs, params)
        assert state_size(ours, params) == state_size(averaging, params) - params.nbytes


@pytest.mark.parametrize(
    ("make", "fields"),
    [(zoo.accumulate_in_momentum, ("mu", "mean")), (zoo.accumulate_in_adam, ("mu", "nu"))],
)
def test_the_moments_have_the_accumulators_dtype(make, fields):
    params, grads = problem()
    nesterov = {"nesterov": True} if "mean" in fields else {}
    tx = make(2, accumulator_dtype=jnp.bfloat16, **nesterov)
    state = tx.init(params)
    _, after = train(tx, params, grads)
    assert specification(after) == specification(state)
    for field in fields:
        assert {leaf.dtype for leaf in jax.tree.leaves(getattr(after, field))} == {
            jnp.dtype("bfloat16")
        }


def test_many_bfloat16_gradients_are_gathered_in_float32():
    tx = zoo.accumulate_in_momentum(1000, decay=0.0)
    step = jax.jit(tx.update)
    state: Any = tx.init(jnp.zeros(1, jnp.bfloat16))
    updates = None
    for _ in range(1000):
        updates, state = step(jnp.ones(1, jnp.bfloat16), state)
    np.testing.assert_allclose(state.mu, 1, rtol=1e-4)  # in bfloat16 it would stop near 0.25
    assert updates == 1


# --- groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("then", [None, optax.scale_by_learning_rate(0.1)])
@pytest.mark.parametrize("make", [zoo.accumulate_in_momentum, zoo.accumulate_in_adam])
def test_parameters_move_in_every_kth_call(make, then):
    updates = updates_of(jitted(make(3, then=then)), jnp.ones(2), [jnp.ones(2)] * 7)
    assert [bool(jnp.any(u != 0)) for u in updates] == [False, False, True] * 2 + [False]


@pytest.mark.parametrize("make", [zoo.accumulate_in_momentum, zoo.accumulate_in_adam])
def test_a_run_stopped_within_a_group_goes_on_to_the_bit(make):
    params, grads = problem(steps=5)
    tx = make(3, then=REST)
    step = jax.jit(tx.update)
    whole, state = [], tx.init(params)
    for t, g in enumerate(grads):
        if t == 2:
            state = jax.tree.map(lambda x: jnp.asarray(np.array(x)), state)
            assert int(state.mini_step) == 2
        updates, state = step(g, state, params)
        whole.append(updates)
    straight, state = [], tx.init(params)
    for g in grads:
        updates, state = step(g, state, params)
        straight.append(updates)
    assert_same(whole, straight)


def test_a_traced_k_gives_the_same_steps():
    params, grads = problem(steps=4)
    traced = jax.jit(
        lambda k: train(zoo.accumulate_in_momentum(k, then=REST), params, grads, jit=False)[0]
    )
    for k in (1, 2):
        desired, _ = train(zoo.accumulate_in_momentum(k, then=REST), params, grads)
        assert_close(traced(k), desired)


def test_k_may_follow_a_schedule():
    # One group of one gradient, then groups of two.
    inject = optax.inject_hyperparams(zoo.accumulate_in_momentum)
    tx = inject(lambda count: jnp.where(count < 1, 1, 2), decay=0.0)
    updates = updates_of(tx, jnp.zeros(1), [jnp.full(1, x) for x in (1.0, 2.0, 4.0, 6.0, 8.0)])
    np.testing.assert_allclose(jnp.concatenate(updates), [1, 0, 3, 0, 7])


def test_no_counter_overflows():
    most = 2**31 - 1
    one, zeros = jnp.ones(1), jnp.zeros(1)
    full = jnp.asarray(most, jnp.int32)
    almost = zoo.AccumulateInMomentumState(full - 1, zeros, None, ())
    updates, state = call(zoo.accumulate_in_momentum(most, decay=0.0), one, state=almost)
    assert int(state.mini_step) == 0
    assert float(updates[0]) > 0
    late = zoo.AccumulateInAdamState(jnp.zeros((), jnp.int32), full, zeros, zeros, ())
    _, state = call(zoo.accumulate_in_adam(1), one, state=late)
    assert int(state.count) == most


def test_a_gradient_that_apply_if_finite_skips_is_replaced_by_the_next():
    grads = [jnp.full(1, x) for x in (1.0, np.nan, 3.0)]
    plain = zoo.accumulate_in_momentum(2, decay=0.0)
    assert [float(u[0]) for u in updates_of(plain, jnp.ones(1), grads)][:1] == [0.0]
    updates = updates_of(optax.apply_if_finite(plain, 2), jnp.ones(1), grads)
    assert [float(u[0]) for u in updates] == [0.0, 0.0, 2.0]


# --- then -------------------------------------------------------------------------------------


def test_then_runs_in_every_kth_call_with_parameters_and_extra_arguments():
    def update(updates, state, params=None, **extra_args):
        value = extra_args["value"]
        return jax.tree.map(lambda u, p: value * u + p, updates, params), state + 1

    counting = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), int), update)
    tx = zoo.accumulate_in_momentum(2, decay=0.0, then=counting)
    params = jnp.array([10.0])
    state: Any = tx.init(params)
    found = []
    updates: Any
    for value in (1.0, 2.0, 3.0, 4.0):
        updates, state = tx.update(jnp.ones(1), state, params, value=value)
        found.append((float(updates[0]), int(state.then)))
    assert found == [(0.0, 0), (12.0, 1), (0.0, 1), (14.0, 2)]


def test_then_may_be_masked_or_partitioned():
    params, grads = problem(steps=4)
    sgd, frozen = optax.sgd(0.5), optax.set_to_zero()
    split = optax.partition({"sgd": sgd, "frozen": frozen}, {"w": "sgd", "b": "frozen"})
    decayed = optax.masked(optax.add_decayed_weights(0.1), {"w": True, "b": False})
    tx = zoo.accumulate_in_momentum(2, then=optax.chain(decayed, split))
    alone = zoo.accumulate_in_momentum(
        2, then=optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5))
    )
    actual, _ = train(tx, params, grads)
    assert_close(actual["w"], train(alone, params["w"], [g["w"] for g in grads])[0])
    assert_same(actual["b"], params["b"])


@pytest.mark.slow
def test_then_may_draw_random_numbers():
    tx = zoo.accumulate_in_momentum(2, then=optax.add_noise(0.1, 0.1, jax.random.key(0)))
    updates = updates_of(jitted(tx), jnp.zeros(3), [jnp.zeros(3)] * 4)
    assert [bool(jnp.any(u != 0)) for u in updates] == [False, True] * 2
    assert not np.allclose(updates[1], updates[3])


def test_the_state_of_then_keeps_its_dtype():
    tx = zoo.accumulate_in_momentum(2, then=optax.trace(0.9))  # promotes to the gradients' dtype
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    _, after = train(tx, params, [jnp.ones(2, jnp.float32)] * 2, jit=False)
    assert specification(after) == specification(state)


@pytest.mark.parametrize("every_k", [np.array(2), np.int64(2), jnp.array(2)])
def test_every_k_may_be_an_array_of_one_integer(every_k):
    grads = [jnp.ones(2), 3 * jnp.ones(2)]
    found = updates_of(zoo.accumulate_in_momentum(every_k, decay=0.0), jnp.zeros(2), grads)
    assert_close(found, [jnp.zeros(2), 2 * jnp.ones(2)])


@pytest.mark.parametrize("every_k", [np.array(2.0), np.array([2, 2]), np.array(0)])
def test_every_k_is_one_positive_integer(every_k):
    with pytest.raises((TypeError, ValueError), match=r"^every_k must be"):
        zoo.accumulate_in_adam(every_k)
