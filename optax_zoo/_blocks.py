"""Parameters cut into blocks, and equal blocks of the whole tree stacked.

All of it is static: rebuilt from shapes whenever a program is traced, stored nowhere.

A worked example, `Blocks(size=4, merge_below=1)` and two parameters::

    w (8, 6)  ->  axes of 4 + 4 and 3 + 3  ->  4 blocks (4, 3)
    k (4, 3)  ->  one block (4, 3)
                                       one stack (5, 4, 3): four of w, one of k
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _checks


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How parameters are cut into the blocks that are preconditioned.

    In this order: axes that count layers and axes of length 1 are dropped; a parameter with an
    axis longer than `skip_above`, or fewer than two axes left, is not preconditioned; an axis
    longer than `one_sided_above` gets no factor; neighbouring axes are merged, from the left,
    while their product is at most `merge_below`, but never to a vector; all axes,
    also those without a factor, are cut into equal parts, up to one, of at most `size`.

    Attributes:
      size: Longest side of a block. A factor costs size² of memory and size³ of root work.
      merge_below: Largest product of merged axes; None: `size`; 1: never merge. With the width d of
        a model Flax's attention kernels (d, heads, d / heads) become d × d.
      skip_above: Longest axis of a parameter that is preconditioned; embeddings are longer.
      one_sided_above: Longest axis that gets a factor; None: no limit.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> blocks = zoo.Blocks(size=128, one_sided_above=4096)  # the vocabulary's axis has no factor
      >>> tx = zoo.shampoo(1e-3, blocks=blocks)
      >>> params = {"embedding": jnp.zeros((8000, 64))}
      >>> zoo.state_bytes(tx, params) < zoo.state_bytes(zoo.shampoo(1e-3), params)
      True
    """

    size: int = 512
    merge_below: int | None = None
    skip_above: int = 8192
    one_sided_above: int | None = None

    def __post_init__(self) -> None:
        _checks.check_integer("size", self.size, at_least=2, remedy="pass e.g. 512")
        _checks.check_integer(
            "skip_above", self.skip_above, at_least=1, remedy="pass the longest axis, e.g. 8192"
        )
        for name in ("size", "skip_above"):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("merge_below", "one_sided_above"):
            if getattr(self, name) is not None:
                _checks.check_integer(
                    name, getattr(self, name), at_least=1, remedy="pass a length or None"
                )


class Region(NamedTuple):
    """Equal blocks of one parameter, adjacent in it.

    Attributes:
      leaf: The parameter's place in tree order.
      starts: Where the region starts, for each axis of the parameter's matrix or tensor.
      counts: How many blocks lie along each axis.
      length: Blocks in all, those of every layer slice counted.
    """

    leaf: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    length: int


class Group(NamedTuple):
    """All blocks of one kind: one stack.

    Attributes:
      sizes: The shape of each block.
      axes: The axes that get a factor.
      regions: Where the blocks come from, in the order of the stack.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    regions: tuple[Region, ...]

    @property
    def length(self) -> int:
        """The number of blocks."""
        return sum(region.length for region in self.regions)

    @property
    def starts(self) -> list[int]:
        """For each region, the number of its first block."""
        ends = itertools.accumulate(region.length for region in self.regions)
        return [end - region.length for end, region in zip(ends, self.regions, strict=True)]

    @property
    def leaf_of_block(self) -> list[int]:
        """For each block, its parameter's place in tree order."""
        return [region.leaf for region in self.regions for _ in range(region.length)]


class Plan(NamedTuple):
    """How a tree is cut.

    Attributes:
      cores: For each leaf (layers, *axes as merged), or None where it is not preconditioned.
      groups: The stacks.
    """

    cores: tuple[tuple[int, ...] | None, ...]
    groups: tuple[Group, ...]

    @property
    def layers(self) -> dict[int, slice]:
        """The layer slices of the preconditioned leaves, numbered through: leaf index -> its."""
        ends = list(itertools.accumulate(core[0] if core else 0 for core in self.cores))
        return {i: slice(ends[i] - core[0], ends[i]) for i, core in enumerate(self.cores) if core}

    @property
    def layer_of_block(self) -> np.ndarray:
        """For each block, the groups' one after the other, the number of its layer slice."""
        layers = self.layers
        numbers = [
            np.repeat(own := np.r_[layers[region.leaf]], region.length // len(own))
            for group in self.groups
            for region in group.regions
        ]
        return np.concatenate(numbers)


def plan(leaves: Sequence[Any], layer_axes: Sequence[int], blocks: Blocks) -> Plan:
    """Cuts a tree, given as leaves and their layer axes."""
    cores: list[tuple[int, ...] | None] = []
    kinds: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Region]] = {}
    for index, (leaf, layers) in enumerate(zip(leaves, layer_axes, strict=True)):
        shape = jnp.shape(leaf)
        core = _core(shape[layers:], blocks) if math.prod(shape) else None
        if core is None:
            cores.append(None)
            continue
        lengths, factored = core
        slices = math.prod(shape[:layers])
        cores.append((slices, *lengths))
        axes = tuple(axis for axis, has_factor in enumerate(factored) if has_factor)
        for runs in itertools.product(*(_runs(length, blocks.size) for length in lengths)):
            starts, counts, sizes = zip(*runs, strict=True)
            region = Region(index, starts, counts, slices * math.prod(counts))
            kinds.setdefault((sizes, axes), []).append(region)
    groups = tuple(Group(sizes, axes, tuple(r)) for (sizes, axes), r in kinds.items())
    return Plan(tuple(cores), groups)


def _core(shape: tuple[int, ...], blocks: Blocks) -> tuple[list[int], list[bool]] | None:
    """Axis lengths after merging and which axes get a factor; None: not preconditioned."""
    lengths = [length for length in shape if length != 1]
    if len(lengths) < 2 or max(lengths) > blocks.skip_above:
        return None
    limit = blocks.one_sided_above
    factored = [limit is None or length <= limit for length in lengths]
    if not any(factored):
        return None
    merge_below = blocks.size if blocks.merge_below is None else blocks.merge_below
    merged, has_factor = [lengths[0]], [factored[0]]
    left = len(lengths)
    for length, factor in zip(lengths[1:], factored[1:], strict=True):
        mergeable = factor and has_factor[-1] and merged[-1] * length <= merge_below
        if mergeable and left > 2:
            merged[-1] *= length
            left -= 1
        else:
            merged.append(length)
            has_factor.append(factor)
    return merged, has_factor


def first_axes(shape: Sequence[int], core: Sequence[int]) -> list[int | None]:
    """For each of (layers, *axes as merged), the first of the leaf's axes that is in it."""
    found: list[int | None] = []
    axis = 0
    for length in core:
        while axis < len(shape) and shape[axis] == 1:
            axis += 1
        found.append(axis if length > 1 else None)
        product = 1
        while product < length:
            product *= shape[axis]
            axis += 1
    return found


def _runs(length: int, size: int) -> list[tuple[int, int, int]]:
    """An axis cut into parts that differ by one at most: (start, count, size) of equal ones."""
    parts = -(-length // size)
    small, longer = divmod(length, parts)
    runs = [(0, longer, small + 1), (longer * (small + 1), parts - longer, small)]
    return [run for run in runs if run[1]]


def gather(plan: Plan, group: Group, leaves: Sequence[jax.Array]) -> jax.Array:
    """The stack of a group, (blocks, *sizes), from the leaves of the tree."""
    stacks = []
    for region in group.regions:
        x = everywhere(leaves[region.leaf]).reshape(plan.cores[region.leaf])
        stacks.append(cut(x, region.starts, region.counts, group.sizes))
    return stacked(stacks)


def cut(
    x: jax.Array, starts: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Equal blocks of (layers, *axes), layer by layer: (blocks, *sizes)."""
    ends = [s + c * z for s, c, z in zip(starts, counts, sizes, strict=True)]
    x = x[(slice(None), *map(slice, starts, ends))]
    interleaved = [n for pair in zip(counts, sizes, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *interleaved)  # (layers, count, size, count, size, ...)
    axes = len(sizes)
    x = x.transpose(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2))
    return x.reshape(-1, *sizes)


def uncut(x: jax.Array, layers: int, counts: Sequence[int]) -> jax.Array:
    """The inverse of `cut` for one region: (layers, *axes)."""
    sizes, axes = x.shape[1:], len(counts)
    order = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    x = x.reshape(layers, *counts, *sizes).transpose(0, *order)
    return x.reshape(layers, *(c * z for c, z in zip(counts, sizes, strict=True)))


def stacked(stacks: Sequence[jax.Array]) -> jax.Array:
    """Stacks of equal blocks as one."""
    if len(stacks) == 1:
        return stacks[0]
    # Written in place, each element once: `concatenate` copies what was computed first.
    length = sum(len(part) for part in stacks)
    dtype = max((part.dtype for part in stacks), key=lambda dtype: dtype.itemsize)
    stack, start = jnp.zeros((length, *stacks[0].shape[1:]), dtype), 0
    for part in stacks:
        part = part.astype(stack.dtype)
        stack = jax.lax.dynamic_update_slice_in_dim(stack, part, start, 0)
        start += len(part)
    return stack


def everywhere(x: jax.Array) -> jax.Array:
    """`x` on every device where the program names shardings itself, as blocks cross their edges."""
    if not names_shardings(x):
        return x
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def like(x: jax.Array, values: jax.Array) -> jax.Array:
    """`values` with the shape of `x`, and its sharding where the program names shardings itself."""
    values = values.reshape(x.shape)
    return jax.sharding.reshard(values, jax.typeof(x).sharding) if names_shardings(x) else values


def varying_like(x: jax.Array, others: Any) -> jax.Array:
    """`x`, typed as varying over all mesh axes over which `others` vary.

    Within `jax.shard_map` both branches, and what goes into a loop and out, must have one type.
    """
    first = [y[(0,) * y.ndim].astype(bool) for y in jax.tree.leaves(others)]
    # No version of JAX names these axes as the next one does; XLA takes the choice for `x`.
    return jnp.where(functools.reduce(jnp.logical_or, first), x, x)


def by_block(one: Callable[..., jax.Array], stack: jax.Array, others: Any) -> jax.Array:
    """`one(x, *rest)` in the place of each x in the stack; `rest`: its part of each of `others`."""

    # On a CPU every page of a temporary is new in every step: what one block needs stays in cache.
    def in_place(stack, others):
        def step(b, stack):
            rest = jax.tree.map(lambda x: x[b], others)
            return stack.at[b].set(one(stack[b], *rest))

        return jax.lax.fori_loop(0, len(stack), step, varying_like(stack, others))

    def batched(stack, others):
        return jax.vmap(one)(stack, *others)

    return jax.lax.platform_dependent(stack, others, cpu=in_place, default=batched)


def names_shardings(x: jax.Array) -> bool:
    """Whether the type of `x` says how it is sharded: its mesh has explicit axes."""
    return jax.sharding.AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def scatter(plan: Plan, stacks: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """The inverse of `gather`: leaf index -> its array, (layers, *axes as merged)."""
    found: dict[int, dict[tuple[int, ...], jax.Array]] = {}
    for group, stack in zip(plan.groups, stacks, strict=True):
        for start, region in zip(group.starts, group.regions, strict=True):
            core = plan.cores[region.leaf]
            assert core is not None
            x = uncut(stack[start : start + region.length], core[0], region.counts)
            found.setdefault(region.leaf, {})[region.starts] = x
    return {leaf: assemble(regions) for leaf, regions in found.items()}


def assemble(regions: dict[tuple[int, ...], jax.Array]) -> jax.Array:
    """One array from its regions by their starts, at most two along each axis."""
    while len(regions) > 1:
        axis = next(i for i in range(len(next(iter(regions)))) if len({s[i] for s in regions}) > 1)
        joined: dict[tuple[int, ...], list[jax.Array]] = {}
        for starts in sorted(regions):
            kept = (*starts[:axis], 0, *starts[axis + 1 :])
            joined.setdefault(kept, []).append(regions[starts])
        regions = {starts: jnp.concatenate(x, 1 + axis) for starts, x in joined.items()}
    return next(iter(regions.values()))


def spread(plan: Plan, values: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """One value for each block, (blocks,) per group -> leaf index: all over that leaf's blocks."""
    stacks = [
        jnp.broadcast_to(x.reshape(-1, *[1] * len(group.sizes)), (len(x), *group.sizes))
        for group, x in zip(plan.groups, values, strict=True)
    ]
    return scatter(plan, stacks)
