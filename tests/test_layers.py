"""Readable paths and the counting of layer axes."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optax_zoo as zoo
from optax_zoo import _layers


def test_a_prefix_covers_subtrees():
    params = {"block": {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}, "head": jnp.ones(3)}
    assert _layers.leading_axes({"block": 1, "head": 0}, params) == [1, 1, 0]


@pytest.mark.parametrize(
    "layer_axes", [2, {"w": 2}, lambda path, leaf: 2], ids=["int", "prefix", "callable"]
)
def test_more_layer_axes_than_axes_are_refused_at_init(layer_axes):
    with pytest.raises(ValueError, match=r"layer_axes is 2 for the parameter w of shape \(3,\)"):
        zoo.lamb(1e-3, layer_axes=layer_axes).init({"w": jnp.ones(3)})


@pytest.mark.slow
def test_the_callable_sees_the_same_paths_in_init_and_update_of_nnx():
    seen: list[set] = [set()]

    def layer_axes(path, leaf):
        seen[-1].add(path)
        assert leaf.ndim in (1, 2)
        return 0

    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, zoo.lamb(1e-3, layer_axes=layer_axes), wrt=nnx.Param)
    seen.append(set())
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert seen[0] == seen[1] == {("layers", "0", "kernel"), ("layers", "0", "bias")}


def test_a_path_names_keys_attributes_and_indices():
    layer = nnx.statelib.State({"value": jnp.ones(2)})
    tree = {"value": [jnp.ones(2), (jnp.ones(2),)], "layer": layer}
    paths = [_layers.path_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    assert paths == [("layer", "value"), ("value", "0"), ("value", "1", "0")]


def test_the_path_of_a_bare_array_is_empty():
    seen = []
    zoo.lamb(1e-3, layer_axes=lambda path, leaf: seen.append(path) or 0).init(jnp.ones((2, 2)))
    assert set(seen) == {()}
