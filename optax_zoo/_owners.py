"""Stacks of blocks divided among the devices of a mesh: who owns which.

Every device has as many places in each stack, the last of them perhaps empty. How blocks get there
and back is told in `_routes`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optax_zoo import _blocks


@dataclasses.dataclass(frozen=True)
class Owners:
    """The devices among which stacks are divided.

    Attributes:
      mesh: Their mesh, or an abstract one, for shapes alone.
      axes: The mesh axes along which stacks are divided; along others everything is repeated.
    """

    mesh: Any
    axes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Into how many parts stacks are divided."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def spec(self) -> PartitionSpec:
        """Of an array divided along its leading axis."""
        return PartitionSpec(self.axes)

    @property
    def mine(self) -> jax.Array:
        """The number of the part at hand, within `over`."""
        return jax.lax.axis_index(self.axes)

    @property
    def in_process(self) -> int:
        """How many of the parts this process has."""
        if isinstance(self.mesh, jax.sharding.AbstractMesh):
            return self.count
        own = np.vectorize(lambda device: device.process_index == jax.process_index())
        return min(self.count, int(own(self.mesh.devices).sum()))

    def numbers(self, order: tuple[str, ...]) -> np.ndarray:
        """For each part its number if the mesh axes come in this order."""
        number = np.arange(self.count).reshape([self.mesh.shape[axis] for axis in order])
        return number.transpose([order.index(axis) for axis in self.axes]).reshape(-1)

    def sharded_by(self, leaf: jax.Array) -> tuple[tuple[str, ...], ...]:
        """For each axis of a leaf those of `axes` that divide it, as far as that is known."""
        if not _blocks.names_shardings(leaf):
            return ((),) * jnp.ndim(leaf)
        spec = jax.typeof(leaf).sharding.spec
        found = [(names,) if isinstance(names, str) else names or () for names in spec]
        return tuple(tuple(name for name in names if name in self.axes) for names in found)

    def over(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """The function on every device's parts."""
        # Unchecked: branches and loops would have to vary alike, and every version of JAX names
        # that differently.
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(mapped)

    def spread(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """`x` over the mesh as `spec` says."""
        sharding = NamedSharding(self.mesh, spec)
        if _blocks.names_shardings(x):
            return jax.sharding.reshard(x, sharding)
        return jax.lax.with_sharding_constraint(x, sharding)


def places(plan: _blocks.Plan, count: int) -> tuple[np.ndarray, ...]:
    """For each group, (devices, places), the number of the block in it; −1: none.

    Devices differ by one block of a group at most. Those with one more are the ones with the least
    work so far, Σn³ over the factors, counted from the group with the largest blocks on.
    """
    work = [sum(group.sizes[axis] ** 3 for axis in group.axes) for group in plan.groups]
    load, found = np.zeros(count), {}
    for index in sorted(range(len(work)), key=lambda i: -work[i]):
        fewest, more = divmod(plan.groups[index].length, count)
        numbers = np.full(count, fewest)
        numbers[np.argsort(load, kind="stable")[:more]] += 1
        load += work[index] * numbers
        taken = np.arange(fewest + (more > 0)) < numbers[:, None]
        table = np.full(taken.shape, -1)
        table.T[taken.T] = _order(plan, plan.groups[index])  # one to each device, then the next
        found[index] = table
    return tuple(found[index] for index in range(len(work)))


def _order(plan: _blocks.Plan, group: _blocks.Group) -> np.ndarray:
    """The blocks of a group as they are dealt out to the devices.

    Equal places of all layers are neighbours, so that the pieces of a tile, which are a row or a
    column of blocks in every layer, go to all devices alike; a row starts one block after the one
    above, or the blocks of a column would meet the same devices again and again.
    """
    alike: dict[Any, list[np.ndarray]] = {}
    for start, region in zip(group.starts, group.regions, strict=True):
        core = plan.cores[region.leaf]
        assert core is not None
        numbers = start + np.arange(region.length).reshape(core[0], *region.counts)
        alike.setdefault((region.starts, region.counts), []).append(numbers)
    found = []
    for layers in alike.values():
        rows = np.moveaxis(np.concatenate(layers), 0, -1)
        turned = [np.roll(row, i, 0) if row.ndim > 1 else row for i, row in enumerate(rows)]
        found.append(np.stack(turned).reshape(-1))
    return np.concatenate(found)


def positions(table: np.ndarray) -> np.ndarray:
    """Where each block is in the stack as the devices have it, one after the other."""
    flat = table.reshape(-1)
    found = np.zeros(int(flat.max()) + 1, int)
    found[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return found


def placed(
    first: Any, plan: _blocks.Plan, stacks: Sequence[Any], owners: Owners | None, argument: Any
) -> Any:
    """`first(stacks, blocks, argument)`: what is divided, and what is the same everywhere.

    Among owners each makes its own part, from the stacks as it has them and, for each group,
    `blocks`, (1, places): which block is where. Without owners these are None.
    """
    if owners is None:
        return first(stacks, [None] * len(plan.groups), argument)
    tables = places(plan, owners.count)
    own_stacks = [own_stack(stack, tables) for stack in stacks]

    def on_each(argument, mine=None):
        mine = owners.mine if mine is None else mine
        blocks = [jnp.asarray(table, jnp.int32)[mine][None] for table in tables]
        return first(own_stacks, blocks, argument)

    context = jax.sharding.get_abstract_mesh()
    if isinstance(owners.mesh, jax.sharding.AbstractMesh) and context not in (
        owners.mesh,
        jax.sharding.AbstractMesh((), ()),
    ):
        # In the context of another mesh only the shapes can be told.
        divided, same = on_each(argument, mine=0)
        return jax.tree.map(lambda x: jnp.concatenate([x] * owners.count), divided), same
    specs = owners.spec, PartitionSpec()
    return owners.over(on_each, PartitionSpec(), specs)(jnp.asarray(argument))


def own_stack(stack: Any, tables: Sequence[np.ndarray]) -> Any:
    """A stack with the length that each device has of it."""
    return stack._replace(length=tables[stack.group].shape[1])
