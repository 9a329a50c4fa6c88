"""Grafting: the direction of one transformation at the norm of another, layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import (
    assert_close,
    assert_finite,
    assert_same,
    call,
    enable_x64,
    problem,
    random_tree,
    slow,
    updates_of,
)

MAGNITUDE, DIRECTION = optax.scale_by_adam(), optax.scale_by_rms(decay=0.5)
SHAPES = {"stack": (3, 4, 2), "w": (5, 4), "b": (4,), "scalar": ()}


def norms(tree: Any, layer_axes: int = 0) -> list[np.ndarray]:
    """The norm of each layer, in float64."""
    found = []
    for leaf in jax.tree.leaves(tree):
        x = np.asarray(leaf, np.float64)
        axes = min(layer_axes, x.ndim)
        found.append(np.sqrt((x * x).sum(tuple(range(axes, x.ndim)))))
    return found


def cosines(a: Any, b: Any) -> list[float]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    flat = [
        (np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()) for x, y in pairs
    ]
    return [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in flat]


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


@pytest.mark.parametrize("scale", [1e-8, *slow(1.0, 1e4)])
def test_the_norm_is_the_ones_and_the_direction_the_others(scale):
    params, grads = problem(shapes=SHAPES)
    grads = jax.tree.map(lambda g: scale * g, grads)
    found = updates_of(zoo.graft(MAGNITUDE, DIRECTION), params, grads)
    sizes, ways = (updates_of(tx, params, grads) for tx in (MAGNITUDE, DIRECTION))
    for grafted, size, way in zip(found, sizes, ways, strict=True):
        np.testing.assert_allclose(np.hstack(norms(grafted)), np.hstack(norms(size)), rtol=1e-5)
        np.testing.assert_allclose(cosines(grafted, way), 1, rtol=1e-6)


def test_a_direction_that_is_the_magnitude_changes_nothing():
    params, grads = problem(shapes=SHAPES)
    found = updates_of(zoo.graft(MAGNITUDE, MAGNITUDE), params, grads)
    assert_close(found, updates_of(MAGNITUDE, params, grads))


def test_the_scale_of_the_direction_is_without_effect():
    params, grads = problem(shapes=SHAPES)
    scaled = optax.chain(DIRECTION, optax.scale(1e6))
    found = updates_of(zoo.graft(MAGNITUDE, scaled), params, grads)
    assert_close(found, updates_of(zoo.graft(MAGNITUDE, DIRECTION), params, grads))


@pytest.mark.parametrize("jit", [False, True])
def test_a_zero_direction_leaves_the_magnitude(jit):
    grads = random_tree(1, shapes=SHAPES)
    tx = zoo.graft(optax.identity(), optax.set_to_zero())
    update = jax.jit(tx.update) if jit else tx.update
    assert_same(update(grads, tx.init(grads))[0], grads)


def test_only_the_leaf_or_layer_without_a_direction_falls_back():
    grads = {"w": jnp.array([[3.0, 4.0], [6.0, 8.0]]), "b": jnp.array([3.0, 4.0])}
    ways = {"w": jnp.array([[0.0, 0.0], [0.0, 2.0]]), "b": jnp.array([1.0, 0.0])}
    direction = optax.stateless(lambda updates, params: ways)
    updates, _ = call(zoo.graft(optax.identity(), direction, layer_axes={"w": 1, "b": 0}), grads)
    np.testing.assert_allclose(updates["w"], [[3, 4], [0, 10]], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [5, 0], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_direction_that_is_not_finite_leaves_the_magnitude(bad):
    grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([6.0, 8.0])}
    ways = {"w": jnp.array([1.0, bad]), "b": jnp.array([1.0, 0.0])}
    updates, _ = call(
        zoo.graft(optax.identity(), optax.stateless(lambda updates, params: ways)), grads
    )
    assert_same(updates["w"], grads["w"])
    np.testing.assert_allclose(updates["b"], [10, 0], rtol=1e-6)


def test_a_zero_magnitude_stops_the_layer():
    grads = random_tree(1, shapes=SHAPES)
    assert_close(call(zoo.graft(optax.set_to_zero(), DIRECTION), grads)[0], zeros(grads), atol=0)


def test_norms_whose_squares_are_not_representable_are_no_nan():
    grads = {"w": jnp.array([3e19, 0.0])}
    assert_finite(call(zoo.graft(optax.identity(), optax.scale_by_sign()), grads)[0])


@pytest.mark.slow
@pytest.mark.parametrize("graft_to", ["adam", optax.identity(), None], ids=["adam", "sgd", "none"])
def test_shampoos_layers_of_several_huge_blocks_are_no_nan(graft_to):
    # The squares of each block have a finite sum, those of the layer do not.
    grads = {"w": jnp.zeros((4, 2)).at[jnp.array([0, 2]), 0].set(1.7e19)}
    tx = zoo.scale_by_shampoo(
        graft_to=graft_to,
        blocks=zoo.Blocks(size=2),
        refresh=zoo.Refresh(every=1, delay=0),
        roots=zoo.Roots(method="eigh"),
    )
    assert_finite(jax.jit(tx.update)(grads, tx.init(grads))[0])


@pytest.mark.slow
@pytest.mark.parametrize("order", [3, 4])
def test_shampoos_direction_of_tiny_gradients_is_grafted_too(order):
    # With exponent 2 it grows as |g|^(1 - order): its squares may exceed what float32 holds.
    tx = zoo.scale_by_shampoo(
        b1=0.0,
        exponent=2,
        graft_to=optax.identity(),
        blocks=zoo.Blocks(merge_below=1),
        refresh=zoo.Refresh(every=1, delay=0),
        roots=zoo.Roots(method="eigh"),
    )
    update, found = jax.jit(tx.update), []
    for scale in (1.0, 1e-8, 1e4):
        grads = jax.tree.map(lambda g, s=scale: s * g, random_tree(1, shapes=(2,) * order))
        found.append(update(grads, tx.init(grads))[0] / scale)
    np.testing.assert_allclose([cosines(found[0], x) for x in found[1:]], 1, rtol=1e-3)


# --- layers and masks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer_axes",
    [
        {"stack": 1, "w": 0, "b": 0, "scalar": 0},
        lambda path, leaf: int(path == ("stack",)),
    ],
    ids=["prefix", "callable"],
)
def test_each_slice_of_stacked_layers_has_its_norm(layer_axes):
    grads = random_tree(1, shapes=SHAPES)
    updates, _ = call(zoo.graft(optax.identity(), DIRECTION, layer_axes=layer_axes), grads)
    found = norms(updates["stack"], 1)[0]
    np.testing.assert_allclose(found, norms(grads["stack"], 1)[0], rtol=1e-5)
    together, _ = call(zoo.graft(optax.identity(), DIRECTION), grads)
    assert not np.allclose(found, norms(together["stack"], 1)[0], rtol=1e-3)
    assert_same(updates["w"], together["w"])


@pytest.mark.slow
def test_stacked_layers_are_grafted_as_separate_ones():
    grads = random_tree(1, shapes={"a": (3, 4, 2)})
    stacked, _ = call(zoo.graft(MAGNITUDE, DIRECTION, layer_axes=1), grads)
    for i in range(3):
        alone, _ = call(zoo.graft(MAGNITUDE, DIRECTION), {"a": grads["a"][i]})
        assert_close(alone["a"], stacked["a"][i])


@pytest.mark.parametrize(
    "where",
    [
        {"stack": True, "w": True, "b": False, "scalar": False},
        lambda updates: jax.tree.map(lambda u: u.ndim >= 2, updates),
    ],
    ids=["tree", "callable"],
)
def test_leaves_left_out_take_the_magnitude(where):
    params, grads = problem(shapes=SHAPES)
    found = updates_of(zoo.graft(MAGNITUDE, DIRECTION, where=where), params, grads)
    plain = updates_of(MAGNITUDE, params, grads)
    everywhere = updates_of(zoo.graft(MAGNITUDE, DIRECTION), params, grads)
    for mine, out, within in zip(found, plain, everywhere, strict=True):
        assert_same(
            {name: mine[name] for name in ("b", "scalar")},
            {name: out[name] for name in ("b", "scalar")},
        )
        assert_same((mine["stack"], mine["w"]), (within["stack"], within["w"]))


def test_where_may_be_a_prefix():
    grads = {"body": random_tree(1), "head": random_tree(2)}
    tx = zoo.graft(optax.identity(), DIRECTION, where={"body": False, "head": True})
    updates, _ = call(tx, grads)
    assert_same(updates["body"], grads["body"])
    np.testing.assert_allclose(
        cosines(updates["head"], call(DIRECTION, grads["head"])[0]), 1, rtol=1e-6
    )


# --- what passes through ----------------------------------------------------------------------


def test_parameters_and_extra_arguments_reach_both():
    seen = []

    def recorder(name):
        def update(updates, state, params=None, **extra_args):
            seen.append((name, params is not None, extra_args))
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    grads = random_tree(1)
    tx = zoo.graft(recorder("magnitude"), recorder("direction"))
    tx.update(grads, tx.init(grads), params=grads, value=1.0, step=2)
    extra = {"value": 1.0, "step": 2}
    assert sorted(seen, key=lambda call: call[0]) == [
        ("direction", True, extra),
        ("magnitude", True, extra),
    ]


def test_transformations_without_extra_arguments_are_spared_them():
    grads = random_tree(1)
    tx = zoo.graft(optax.trace(0.9), optax.scale_by_sign())
    updates, _ = tx.update(grads, tx.init(grads), value=1.0)
    np.testing.assert_allclose(np.hstack(norms(updates)), np.hstack(norms(grads)), rtol=1e-6)


def test_the_state_holds_both():
    params, grads = problem()
    state = zoo.graft(MAGNITUDE, DIRECTION).init(params)
    assert isinstance(state, zoo.GraftState)
    _, state = call(zoo.graft(MAGNITUDE, DIRECTION), grads[0], params, state)
    assert_same(state.magnitude, call(MAGNITUDE, grads[0], params)[1])
    assert_same(state.direction, call(DIRECTION, grads[0], params)[1])


def test_grafts_nest():
    params, grads = problem()
    inner = zoo.graft(MAGNITUDE, DIRECTION)
    found = updates_of(zoo.graft(inner, optax.scale_by_sign()), params, grads)
    for grafted, size in zip(found, updates_of(inner, params, grads), strict=True):
        np.testing.assert_allclose(np.hstack(norms(grafted)), np.hstack(norms(size)), rtol=1e-5)


# --- dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_of_narrow_updates_are_taken_in_float32(dtype):
    # In bfloat16 itself a sum of 4096 ones stops at 256; in float16 it exceeds what is finite.
    grads = {"w": jnp.full(4096, 32.0, dtype)}
    updates, _ = call(zoo.graft(optax.identity(), optax.scale_by_sign()), grads)
    assert updates["w"].dtype == dtype
    np.testing.assert_array_equal(np.asarray(updates["w"], np.float32), 32.0)


@pytest.mark.slow
def test_bfloat16_updates_agree_with_float32_ones():
    params, grads = problem(jnp.bfloat16, shapes=SHAPES)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
    tx = zoo.graft(optax.identity(), optax.scale_by_sign())
    for narrow, exact in zip(
        updates_of(tx, params, grads), updates_of(tx, wide[0], wide), strict=True
    ):
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
        assert_close(narrow, rounded, rtol=1e-2)


@pytest.mark.slow
def test_double_precision_is_kept():
    with enable_x64():
        grads = random_tree(1, jnp.float64)
        updates, _ = call(zoo.graft(optax.identity(), optax.scale_by_sign()), grads)
        for u, n in zip(jax.tree.leaves(updates), norms(grads), strict=True):
            assert u.dtype == jnp.float64
            np.testing.assert_allclose(norms(u)[0], n, rtol=1e-14)


@pytest.mark.slow
def test_gradients_pass_through_also_where_the_direction_is_zero():
    tx = zoo.graft(optax.identity(), optax.scale_by_sign())

    def loss(g: Any) -> Any:
        updates: Any = tx.update(g, tx.init(g))[0]
        return (updates["w"] ** 3).sum()

    grads = {"w": jnp.array([3.0, 0.0, -4.0])}
    assert np.isfinite(jax.grad(loss)(grads)["w"]).all()
    assert np.isfinite(jax.grad(loss)(zeros(grads))["w"]).all()
