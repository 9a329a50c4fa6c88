"""Parameters cut into blocks: what is dropped, merged and cut, and that nothing is lost."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import optax_zoo as zoo
from optax_zoo import _blocks


def abstract(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def cut(shape: tuple[int, ...], layer_axes: int = 0, **options: Any) -> _blocks.Plan:
    return _blocks.plan(abstract(shape), [layer_axes], zoo.Blocks(**options))


def kinds(plan: _blocks.Plan) -> dict[tuple[int, ...], int]:
    """Block shape -> how many."""
    return {group.sizes: group.length for group in plan.groups}


# --- what is preconditioned -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layer_axes"),
    [
        ((), 0),
        ((7,), 0),
        ((7, 1), 0),
        ((1, 1), 0),
        ((1, 7, 1), 0),
        ((3, 7), 1),
        ((3, 7), 2),
        ((3, 7, 1), 1),
        ((0, 3), 0),
        ((0, 3, 4), 1),
        ((3, 0), 0),
    ],
)
def test_fewer_than_two_axes_or_nothing_at_all_has_no_block(shape, layer_axes):
    assert cut(shape, layer_axes) == _blocks.Plan((None,), ())


@pytest.mark.parametrize(
    ("shape", "layer_axes", "core"),
    [
        ((4, 1, 5), 0, (1, 4, 5)),
        ((1, 4, 5, 1), 0, (1, 4, 5)),
        ((3, 4, 5), 1, (3, 4, 5)),
        ((3, 2, 4, 1, 5), 2, (6, 4, 5)),
        ((1, 4, 5), 1, (1, 4, 5)),
    ],
)
def test_layers_and_ones_are_dropped_first(shape, layer_axes, core):
    plan = cut(shape, layer_axes)
    assert plan.cores == (core,)
    assert kinds(plan) == {core[1:]: core[0]}


def test_a_longer_axis_than_skip_above_leaves_the_parameter_out():
    assert kinds(cut((9, 4), skip_above=8)) == {}
    assert kinds(cut((8, 4), skip_above=8)) == {(8, 4): 1}
    # An axis that counts layers does not, and merging comes later.
    assert kinds(cut((9, 8, 4), layer_axes=1, skip_above=8)) == {(8, 4): 9}
    assert kinds(cut((4, 4, 4), skip_above=8, merge_below=16)) == {(16, 4): 1}


def test_a_longer_axis_than_one_sided_above_gets_no_factor():
    (group,) = cut((9, 4), one_sided_above=8).groups
    assert (group.sizes, group.axes) == ((9, 4), (1,))
    (group,) = cut((8, 4), one_sided_above=8).groups
    assert group.axes == (0, 1)
    assert kinds(cut((9, 9), one_sided_above=8)) == {}  # no axis has one


def test_an_axis_without_a_factor_is_cut_and_not_merged():
    plan = cut((20, 2, 3), size=10, one_sided_above=12, merge_below=1000)
    assert plan.cores == ((1, 20, 6),)
    (group,) = plan.groups
    assert (group.sizes, group.axes, group.length) == ((10, 6), (1,), 2)


# --- merging ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "merge_below", "merged"),
    [
        ((3, 3, 5, 7), 1, (3, 3, 5, 7)),
        ((3, 3, 5, 7), 9, (9, 5, 7)),
        ((3, 3, 5, 7), 8, (3, 3, 5, 7)),
        ((3, 3, 5, 7), 35, (9, 35)),
        ((3, 3, 5, 7), 45, (45, 7)),
        ((3, 3, 5, 7), 10_000, (45, 7)),  # one axis of 315 would be a vector
        ((2, 2, 2, 2, 2), 4, (4, 4, 2)),  # greedy from the left
        ((2, 2, 2, 2, 2), 1000, (16, 2)),
        ((3, 4), 1000, (3, 4)),
        ((1, 3, 1, 4), 1000, (3, 4)),
    ],
)
def test_neighbours_are_merged_greedily_and_never_to_a_vector(shape, merge_below, merged):
    assert cut(shape, merge_below=merge_below).cores == ((1, *merged),)


@pytest.mark.parametrize("size", [5, 6, 12])
def test_merging_goes_up_to_the_size_by_default(size):
    assert cut((2, 3, 4), size=size) == cut((2, 3, 4), size=size, merge_below=size)


# --- cutting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "parts"),
    [(4, [4]), (5, [3, 2]), (8, [4, 4]), (9, [3, 3, 3]), (10, [4, 3, 3]), (13, [4, 3, 3, 3])],
)
def test_an_axis_is_cut_into_equal_parts_up_to_one(length, parts):
    plan = cut((length, 2), size=4, merge_below=1)
    found = [side for group in plan.groups for side in [group.sizes[0]] * group.length]
    assert sorted(found, reverse=True) == parts


def test_the_worked_example():
    w, k = jnp.arange(48.0).reshape(8, 6), -jnp.arange(12.0).reshape(4, 3)
    plan = _blocks.plan([w, k], [0, 0], zoo.Blocks(size=4, merge_below=1))
    (group,) = plan.groups
    assert group.leaf_of_block == [0, 0, 0, 0, 1]
    corners = [(0, 0), (0, 3), (4, 0), (4, 3)]
    expected = np.stack([*(w[i : i + 4, j : j + 3] for i, j in corners), k])
    np.testing.assert_array_equal(_blocks.gather(plan, group, [w, k]), expected)


def test_equal_blocks_of_the_whole_tree_make_one_stack():
    leaves = abstract((8, 8), (4, 4), (3, 4, 4), (4,), (8, 6), (4, 3), (4, 4, 4))
    layers = [0, 0, 1, 0, 0, 0, 0]
    plan = _blocks.plan(leaves, layers, zoo.Blocks(size=4, merge_below=1))
    assert kinds(plan) == {(4, 4): 4 + 1 + 3, (4, 3): 4 + 1, (4, 4, 4): 1}
    assert plan.groups[0].leaf_of_block == [0] * 4 + [1] + [2] * 3
    assert plan.cores[3] is None


def test_blocks_with_other_factors_make_another_stack():
    plan = _blocks.plan(
        abstract((8, 4), (4, 4)), [0, 0], zoo.Blocks(size=4, merge_below=1, one_sided_above=4)
    )
    assert [(g.sizes, g.axes, g.length) for g in plan.groups] == [
        ((4, 4), (1,), 2),
        ((4, 4), (0, 1), 1),
    ]


@pytest.mark.parametrize("layers", [12, 48])
def test_depth_makes_no_further_stacks(layers):
    leaves = abstract(*[(512, 512), (512,), (512, 2048)] * layers)
    plan = _blocks.plan(leaves, [0] * len(leaves), zoo.Blocks())
    assert kinds(plan) == {(512, 512): 5 * layers}


# --- for any shapes ---------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)
options = st.builds(
    zoo.Blocks,
    size=st.integers(2, 5),
    merge_below=st.sampled_from([None, 1, 4, 12, 50]),
    skip_above=st.sampled_from([5, 8192]),
    one_sided_above=st.sampled_from([None, 5]),
)


@st.composite
def trees(draw):
    leaves = draw(st.lists(shapes, min_size=1, max_size=3))
    return leaves, [draw(st.integers(0, min(2, len(shape)))) for shape in leaves]


@given(trees(), options)
@settings(max_examples=200)
def test_blocks_cover_each_parameter_once(tree, blocks):
    leaves, layers = tree
    plan = _blocks.plan(abstract(*leaves), layers, blocks)
    volumes, sides = [0] * len(leaves), {}
    for group in plan.groups:
        assert all(0 < side <= blocks.size for side in group.sizes)
        assert group.axes
        assert len(group.leaf_of_block) == group.length
        for leaf in group.leaf_of_block:
            volumes[leaf] += math.prod(group.sizes)
        for region in group.regions:
            for axis, side in enumerate(group.sizes):
                sides.setdefault((region.leaf, axis), set()).add(side)
    for shape, core, volume in zip(leaves, plan.cores, volumes, strict=True):
        assert core is None or (math.prod(core) == math.prod(shape) and len(core) >= 3)
        assert volume == (math.prod(shape) if core else 0)
    assert all(max(found) - min(found) <= 1 for found in sides.values())
    assert len({(group.sizes, group.axes) for group in plan.groups}) == len(plan.groups)


@pytest.mark.slow
@given(trees(), options)
@settings(max_examples=20)
def test_scattering_is_the_inverse_of_gathering(tree, blocks):
    leaves, layers = tree
    plan = _blocks.plan(abstract(*leaves), layers, blocks)
    arrays = [
        jnp.asarray(np.arange(math.prod(s)).reshape(s) + 1e3 * i) for i, s in enumerate(leaves)
    ]

    @jax.jit
    def there_and_back(arrays):
        stacks = [_blocks.gather(plan, group, arrays) for group in plan.groups]
        return stacks, _blocks.scatter(plan, stacks)

    stacks, found = there_and_back(arrays)
    assert [s.shape for s in stacks] == [(g.length, *g.sizes) for g in plan.groups]
    assert set(found) == {i for i, core in enumerate(plan.cores) if core}
    for index, x in found.items():
        assert x.shape == plan.cores[index]
        np.testing.assert_array_equal(x.reshape(leaves[index]), arrays[index])
    # Each block is of the leaf and, where several are counted, of the layer it is said to be.
    for group, stack in zip(plan.groups, stacks, strict=True):
        for leaf, block in zip(group.leaf_of_block, np.asarray(stack), strict=True):
            inside = np.isin(block, np.asarray(arrays[leaf]))
            assert inside.all()
            per_layer = math.prod(leaves[leaf][layers[leaf] :])
            numbers = np.searchsorted(np.asarray(arrays[leaf]).ravel(), block.ravel())
            assert len(set(numbers // per_layer)) == 1


@pytest.mark.slow
def test_values_of_blocks_are_spread_over_their_leaves():
    plan = _blocks.plan(
        abstract((2, 5, 4), (3,), (4, 4)), [1, 0, 0], zoo.Blocks(size=4, merge_below=1)
    )
    assert kinds(plan) == {(3, 4): 2, (2, 4): 2, (4, 4): 1}
    values: Any = {(3, 4): [1.0, 2.0], (2, 4): [3.0, 4.0], (4, 4): [5.0]}
    found = _blocks.spread(plan, [jnp.array(values[g.sizes]) for g in plan.groups])
    assert set(found) == {0, 2}
    np.testing.assert_array_equal(found[0][..., 0], [[1, 1, 1, 3, 3], [2, 2, 2, 4, 4]])
    assert found[0].shape == (2, 5, 4)
    np.testing.assert_array_equal(found[2], np.full((1, 4, 4), 5.0))


@pytest.mark.slow
@given(trees(), options)
@settings(max_examples=10)
def test_every_block_knows_its_layer(tree, blocks):
    leaves, layers = tree
    plan = _blocks.plan(abstract(*leaves), layers, blocks)
    assume(plan.groups)
    owners = [index for group in plan.groups for index in group.leaf_of_block]
    for leaf, layer in zip(owners, plan.layer_of_block, strict=True):
        assert layer in range(plan.layers[leaf].start, plan.layers[leaf].stop)
    # Spread over the leaves, a layer's number covers that layer slice, all of it and nothing else.
    ends = np.cumsum([group.length for group in plan.groups])[:-1]
    numbers = [jnp.asarray(x) for x in np.split(plan.layer_of_block, ends)]
    for leaf, found in _blocks.spread(plan, numbers).items():
        expected = np.r_[plan.layers[leaf]].reshape(-1, *[1] * (found.ndim - 1))
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_groups_are_frozen_and_hashable():
    assert hash(zoo.Blocks(size=4)) == hash(zoo.Blocks(4))
    assert zoo.Blocks() == zoo.Blocks(512, None, 8192, None)
    with pytest.raises(AttributeError):
        zoo.Blocks().size = 3  # pyright: ignore[reportAttributeAccessIssue]
