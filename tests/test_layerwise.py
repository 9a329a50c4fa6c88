"""The layer-wise trust ratio: what is particular to it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import (
    assert_close,
    assert_same,
    call,
    problem,
    random_tree,
    train,
    updates_of,
)


def ratio_of(tx, params, updates):
    """The updates and the recorded ratios of one call."""
    scaled, state = call(tx, updates, params)
    return scaled, state.trust_ratio


@pytest.mark.parametrize(
    ("params", "updates"), [([0.0, 0.0], [3.0, 4.0]), ([3.0, 4.0], [0.0, 0.0])]
)
def test_a_zero_norm_leaves_the_ratio_at_one_and_still_decays(params, updates):
    params, updates = {"w": jnp.array(params)}, {"w": jnp.array(updates)}
    tx = zoo.scale_by_layerwise_trust_ratio(1e-3, weight_decay=0.5)
    scaled, ratios = ratio_of(tx, params, updates)
    assert ratios.tolist() == [1.0]
    assert_close(scaled["w"], updates["w"] + 0.5 * params["w"])


def test_the_state_records_the_ratio_of_each_leaf_in_tree_order():
    params = {"b": jnp.array([3.0, 4.0]), "a": jnp.zeros(2), "c": jnp.array([6.0, 8.0])}
    updates = optax.tree.ones_like(params)
    updates["b"] = jnp.array([0.0, 2.0])
    updates["c"] = jnp.array([5.0, 0.0])
    tx = zoo.scale_by_layerwise_trust_ratio(mask={"a": True, "b": True, "c": False})
    _, ratios = ratio_of(tx, params, updates)
    assert ratios.dtype == jnp.float32
    assert ratios.tolist() == [1.0, 2.5, 1.0]


def test_stacked_layers_record_their_mean_ratio():
    params = jnp.stack([jnp.full(4, 1.0), jnp.full(4, 3.0)])
    tx = zoo.scale_by_layerwise_trust_ratio(layer_axes=1)
    scaled, ratios = ratio_of(tx, params, jnp.ones_like(params))
    assert ratios.tolist() == [2.0]
    assert_close(scaled, params)


@pytest.mark.parametrize(("clip", "expected"), [((0, 1), 0.5), ((10, 20), 5.0), ((0, 10), 2.5)])
def test_the_clip_bounds_the_weights_norm(clip, expected):
    tx = zoo.scale_by_layerwise_trust_ratio(clip=clip)
    _, ratios = ratio_of(tx, jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
    assert ratios.tolist() == [expected]


def test_eps_stands_in_the_denominator():
    tx = zoo.scale_by_layerwise_trust_ratio(eps=3.0)
    _, ratios = ratio_of(tx, jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
    assert ratios.tolist() == [1.0]


def test_norms_of_bfloat16_and_float16_are_taken_in_float32():
    for dtype in (jnp.bfloat16, jnp.float16):
        params, updates = jnp.full(4096, 300.0, dtype), jnp.full(4096, 2.0, dtype)
        scaled, ratios = ratio_of(zoo.scale_by_layerwise_trust_ratio(), params, updates)
        assert ratios.tolist() == [150.0]
        assert_same(scaled, params)


def test_the_masks_take_ratio_and_decay_apart():
    params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([3.0, 4.0])}
    updates = {"w": jnp.array([0.0, 2.0]), "b": jnp.array([0.0, 2.0])}
    only = lambda name: lambda tree: {leaf: leaf == name for leaf in tree}  # noqa: E731
    tx = zoo.scale_by_layerwise_trust_ratio(
        weight_decay=1.0, weight_decay_mask=only("w"), mask=only("b")
    )
    scaled, ratios = ratio_of(tx, params, updates)
    assert ratios.tolist() == [2.5, 1.0]
    assert scaled["w"].tolist() == [3.0, 6.0]
    assert scaled["b"].tolist() == [0.0, 5.0]


def test_the_trust_ratios_decay_follows_a_schedule():
    params, zero = jnp.array([3.0, 4.0]), jnp.zeros(2)
    tx = zoo.scale_by_layerwise_trust_ratio(weight_decay=lambda step: 0.5 * step)
    updates = updates_of(tx, params, [zero, zero, zero])
    assert [u.tolist() for u in updates] == [[0.0, 0.0], [1.5, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("factory", [zoo.lars, zoo.lamb])
def test_a_constant_decay_schedule_equals_its_number(factory):
    params, grads = problem()
    scheduled = factory(1e-2, weight_decay=optax.schedules.constant_schedule(0.1))
    number = factory(1e-2, weight_decay=0.1)
    assert_close(train(scheduled, params, grads)[0], train(number, params, grads)[0])


STACKED = {"layers": (3, 4, 2), "head": (4, 2)}


@pytest.mark.parametrize("name", ["lars", "lamb"])
@pytest.mark.parametrize(
    "layer_axes",
    [
        pytest.param({"layers": 1, "head": 0}, id="prefix"),
        pytest.param(
            lambda path, leaf: int(path[0] == "layers"), id="by_path", marks=pytest.mark.slow
        ),
        pytest.param(lambda path, leaf: leaf.ndim - 2, id="by_leaf", marks=pytest.mark.slow),
    ],
)
def test_stacked_layers_step_as_separate_ones(name, layer_axes):
    tx = getattr(zoo, name)(0.1, weight_decay=0.1, layer_axes=layer_axes)
    params, grads = problem(shapes=STACKED)
    stacked, _ = train(tx, params, grads)

    def unstack(tree):
        return {"head": tree["head"], **{str(i): tree["layers"][i] for i in range(3)}}

    plain = getattr(zoo, name)(0.1, weight_decay=0.1)
    separate, _ = train(plain, unstack(params), [unstack(g) for g in grads])
    assert_close(unstack(stacked), separate)


def test_one_int_holds_for_every_leaf():
    params, grads = problem(shapes=STACKED)
    by_int = train(zoo.lamb(0.1, layer_axes=1), params, grads)[0]
    by_prefix = train(zoo.lamb(0.1, layer_axes={"layers": 1, "head": 1}), params, grads)[0]
    assert_same(by_int, by_prefix)
    assert not np.allclose(by_int["layers"], train(zoo.lamb(0.1), params, grads)[0]["layers"])


def test_every_axis_may_count_layers():
    params, updates = random_tree(0, shapes=(3, 4)), random_tree(1, shapes=(3, 4))
    scaled, _ = ratio_of(zoo.scale_by_layerwise_trust_ratio(layer_axes=2), params, updates)
    assert_close(scaled, jnp.abs(params) * jnp.sign(updates))
