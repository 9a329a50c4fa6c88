"""Blocks on a mesh: divided evenly, carried to their owners and back, every bit as it was."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_zoo import _blocks, _owners, _routes

# Sides that do and do not divide; stacked layers; axes that are merged; a vector.
SHAPES = [(16, 8), (24, 16), (8, 5, 8), (7, 3), (4, 6, 10), (16, 3, 3, 8), (1, 12, 1, 8), (5,)]
LAYERS = [0, 0, 1, 0, 0, 1, 0, 0]


def owners_of(shape: tuple[int, ...], axes: tuple[str, ...] | None = None) -> _owners.Owners:
    names = ("x", "y", "z")[: len(shape)]
    devices = jax.devices("cpu")[: math.prod(shape)]
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return _owners.Owners(jax.make_mesh(shape, names, auto, devices=devices), axes or names)


def plan_of(size: int, merge_below: int | None = 1) -> _blocks.Plan:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES]
    return _blocks.plan(shapes, LAYERS, _blocks.Blocks(size=size, merge_below=merge_below))


def kept_by(layout: str, axes: tuple[str, ...]) -> list[tuple[tuple[str, ...], ...]]:
    """How each leaf is sharded: its first axis, its last, both, the other way round, or not."""
    first, last = axes[:1], axes[1:]
    along = {
        "whole": ((), ()),
        "first": (axes, ()),
        "last": ((), axes),
        "both": (first, last),
        "turned": (last, first),
        "part": ((), last),
    }[layout]
    return [
        (along[0], *[()] * (len(shape) - 2), along[1])[: len(shape)] if len(shape) > 1 else ((),)
        for shape in SHAPES
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "layout", "size"),
    [
        *itertools.product([(8,)], ["whole", "first", "last"], [4]),
        *itertools.product([(4, 2)], ["both", "turned", "part"], [4]),
        ((2, 2, 2), "both", 3),
        ((3,), "last", 3),
        ((1,), "first", 8),
    ],
)
def test_blocks_reach_their_owners_and_return_bit_for_bit(mesh, layout, size):
    owners, plan = owners_of(mesh), plan_of(size)
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES]
    routes = _routes.Routes(plan, SHAPES, kept_by(layout, owners.axes), owners)

    def there_and_back(tiles):
        stacks = routes.to_owners(tiles)
        return stacks, routes.from_owners(stacks)

    specs = owners.spec, routes.specs
    stacks, back = owners.over(there_and_back, (routes.specs,), specs)(
        {i: leaves[i] for i in routes.specs}
    )
    assert back.keys() == plan.layers.keys()
    for i, leaf in back.items():
        np.testing.assert_array_equal(leaf, leaves[i])
    for group, stack, table in zip(plan.groups, stacks, routes.tables, strict=True):
        position = _owners.positions(table)
        np.testing.assert_array_equal(stack[position], _blocks.gather(plan, group, leaves))
        empty = np.setdiff1d(np.arange(len(stack)), position)
        assert not np.asarray(stack)[empty].any()
    if layout != "whole" and mesh != (3,):
        assert any(spec != jax.sharding.PartitionSpec() for spec in routes.specs.values())


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_devices_differ_by_one_block_of_a_kind_and_work_is_even(count):
    plan = plan_of(4)
    tables = _owners.places(plan, count)
    load = np.zeros(count)
    for group, table in zip(plan.groups, tables, strict=True):
        assert sorted(table[table >= 0]) == list(range(group.length))
        numbers = (table >= 0).sum(1)
        assert numbers.max() - numbers.min() <= 1
        assert table.shape == (count, numbers.max())
        load += numbers * sum(group.sizes[axis] ** 3 for axis in group.axes)
    # Each group adds one block at most to what lies between two devices, and to the least first.
    largest = max(sum(g.sizes[axis] ** 3 for axis in g.axes) for g in plan.groups)
    assert load.max() - load.min() <= largest


def test_work_is_balanced_by_cubes_and_not_by_number():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 8), (2, 2), (2, 2), (2, 2))]
    plan = _blocks.plan(shapes, [0] * 4, _blocks.Blocks(size=8, merge_below=1))
    large, small = _owners.places(plan, 2)
    assert (large >= 0).sum(1).tolist() == [1, 0]
    assert (small >= 0).sum(1).tolist() == [1, 2]


@pytest.mark.slow
def test_along_some_axes_of_a_mesh_blocks_are_divided_and_along_others_repeated():
    owners, plan = owners_of((4, 2), ("y",)), plan_of(4)
    assert owners.count == 2
    leaves = [jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape) for shape in SHAPES]
    routes = _routes.Routes(plan, SHAPES, kept_by("first", ("y",)), owners)
    stacks = owners.over(routes.to_owners, (routes.specs,), owners.spec)(
        {i: leaves[i] for i in routes.specs}
    )
    for group, stack, table in zip(plan.groups, stacks, routes.tables, strict=True):
        wanted = _blocks.gather(plan, group, leaves)
        np.testing.assert_array_equal(stack[_owners.positions(table)], wanted)
