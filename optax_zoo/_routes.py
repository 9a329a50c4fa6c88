"""The ways of blocks to the devices that own them, and back.

A sharded leaf is spread evenly over the devices along one of its axes, a tile each; a tile is cut
into pieces, each of one block, and one `all_to_all` for each shape of piece brings them to the
owners, another one back: of a leaf a device sends and receives its share, never the whole. That
takes a program that names shardings (`AxisType.Explicit`): what is not known to be sharded, or has
no axis to be spread along, is whole on every device, and what the owners make of it is gathered.

A worked example, two devices, `Blocks(size=4, merge_below=1)` and a parameter (6, 8), sharded along
its second axis::

    blocks (3, 4):  0 1     tiles:  0 | 1     places:  0 1 | 2 3
                    2 3             2 | 3
    device 0 keeps 0, sends 2 to device 1 and gets 1
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from optax_zoo import _blocks, _exchange, _owners
from optax_zoo._exchange import Tables
from optax_zoo._owners import Owners


class _Kind(NamedTuple):
    """Pieces of one shape, exchanged together.

    Attributes:
      group: The group whose blocks they make up.
      axis: The axis along which leaves are spread, of (layers, *axes); None: they are whole.
      length: Along it, of a piece.
    """

    group: int
    axis: int | None
    length: int

    def parts(self, sizes: Sequence[int]) -> int:
        """Of how many pieces a block consists."""
        return sizes[self.axis - 1] // self.length if self.axis else 1

    def piece(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a piece of a block."""
        if not self.axis:
            return sizes
        return (*sizes[: self.axis - 1], self.length, *sizes[self.axis :])

    def grid(self, region: _blocks.Region, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many pieces lie along each axis of a region."""
        return tuple(
            n * self.parts(sizes) if self.axis == 1 + i else n for i, n in enumerate(region.counts)
        )


class _Tile(NamedTuple):
    """How a leaf is spread.

    Attributes:
      axis: Along which, of (layers, *axes); None: it is whole.
      own: Along which of the leaf's own.
      order: The mesh axes, the one that changes slowest first.
      kept: For each of the leaf's axes, the mesh axes that divide it in the program.
    """

    axis: int | None = None
    own: int = 0
    order: tuple[str, ...] = ()
    kept: tuple[tuple[str, ...], ...] = ()

    @property
    def spec(self) -> PartitionSpec:
        """What `over` takes."""
        return PartitionSpec(*[None] * self.own, self.order) if self.order else PartitionSpec()

    @property
    def between(self) -> PartitionSpec:
        """On the way there and back: then no axis moves while another is gathered."""
        moving = [name for i, names in enumerate(self.kept) if i != self.own for name in names]
        here = tuple(name for name in self.order if name not in moving)
        return PartitionSpec(
            *(here if i == self.own else names for i, names in enumerate(self.kept))
        )


class Routes:
    """The ways of a tree's blocks to their owners and back; static, equal by what it is made from.

    Attributes:
      owners: The devices.
      tables: For each group (devices, places), see `_owners.places`.
      specs: For each preconditioned leaf, how `Owners.over` takes it.
    """

    def __init__(
        self,
        plan: _blocks.Plan,
        shapes: Sequence[tuple[int, ...]],
        kept: Sequence[tuple[tuple[str, ...], ...]],
        owners: Owners,
    ):
        self.owners = owners
        self._plan, self._shapes = plan, shapes
        self.tables = _owners.places(plan, owners.count)
        self._regions: dict[_Kind, list[_blocks.Region]] = {}
        self._tiles = {i: self._found_tile(i, shapes[i], kept[i]) for i in plan.layers}
        self.specs = {i: tile.spec for i, tile in self._tiles.items()}
        for number, group in enumerate(plan.groups):
            for region in group.regions:
                axis = self._tiles[region.leaf].axis
                length = self._unit(region.leaf, axis, group.sizes) if axis else 0
                kind = _Kind(number, axis, length)
                self._regions.setdefault(kind, []).append(region)
        self._key = plan, tuple(shapes), tuple(kept), owners

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Routes) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @functools.cached_property
    def _tables(self) -> dict[_Kind, Tables]:
        return {kind: self._found(kind) for kind in self._regions}

    def _found_tile(
        self, leaf: int, shape: tuple[int, ...], kept: tuple[tuple[str, ...], ...]
    ) -> _Tile:
        core = self._plan.cores[leaf]
        assert core is not None
        used = [name for names in kept for name in names]
        if not used:
            return _Tile()
        firsts = list(enumerate(_blocks.first_axes(shape, core)))
        # Along an axis that is divided already, if there is one.
        for axis, own in sorted(firsts, key=lambda pair: pair[1] is None or not kept[pair[1]]):
            if own is None or shape[own] % self.owners.count:
                continue
            runs = {
                (region.starts[axis - 1], region.counts[axis - 1])
                for group in self._plan.groups
                for region in group.regions
                if region.leaf == leaf
            }
            if axis == 0 or len(runs) == 1:  # else its blocks differ in length along this axis
                unused = tuple(name for name in self.owners.axes if name not in used)
                moving = tuple(name for name in used if name not in kept[own])
                return _Tile(axis, own, kept[own] + unused + moving, kept)
        return _Tile()

    def _unit(self, leaf: int, axis: int, sizes: Sequence[int]) -> int:
        """The longest piece of a block that never crosses the edge of a tile."""
        core = self._plan.cores[leaf]
        assert core is not None
        return math.gcd(core[axis] // self.owners.count, sizes[axis - 1])

    def spread(self, leaves: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """The preconditioned leaves as `over` takes them by `specs`."""
        found = {}
        for i, tile in self._tiles.items():
            x = leaves[i]
            if tile.axis is not None:
                x = self.owners.spread(x, tile.between)
            found[i] = self.owners.spread(x, tile.spec)
        return found

    def back(self, tiles: Mapping[int, jax.Array]) -> dict[int, jax.Array]:
        """What `over` gives by `specs` as close to the program's leaves as `spread` went."""
        return {
            i: tiles[i] if tile.axis is None else self.owners.spread(tiles[i], tile.between)
            for i, tile in self._tiles.items()
        }

    def in_order(self, stacks: Sequence[jax.Array]) -> list[jax.Array]:
        """Small arrays (devices · places, ...) of each group in the blocks' order, everywhere."""
        return [
            self.owners.spread(x, PartitionSpec())[_owners.positions(table)]
            for x, table in zip(stacks, self.tables, strict=True)
        ]

    def own_stacks(self, stacks: Sequence[Any]) -> tuple[Any, ...]:
        """The stacks as each device has them."""
        return tuple(_owners.own_stack(stack, self.tables) for stack in stacks)

    def own(self, tables: Sequence[np.ndarray]) -> list[jax.Array]:
        """Within `over`, the device's row of each table."""
        return [self._own(table) for table in tables]

    def to_owners(self, tiles: Mapping[int, jax.Array]) -> list[jax.Array]:
        """Within `over`: the blocks that the device owns, (places, *sizes) for each group."""
        found: list[jax.Array | None] = [None] * len(self._plan.groups)
        for kind in self._regions:
            tables, sizes = self._tables[kind], self._plan.groups[kind.group].sizes
            pieces = self._cut(kind, tiles)
            if kind.axis is not None:
                pieces = self._exchanged(pieces, tables.sent)
            blocks = _taken(pieces, self._own(tables.kept))
            blocks = _whole(blocks, kind, sizes)
            if (before := found[kind.group]) is not None:
                here = self._own(tables.kept).reshape(len(blocks), -1)[:, 0] < len(pieces)
                blocks = jnp.where(here.reshape(-1, *[1] * len(sizes)), blocks, before)
            found[kind.group] = blocks
        return [x for x in found if x is not None]

    def from_owners(self, stacks: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """Within `over`, the inverse: each preconditioned leaf's tile."""
        found: dict[int, dict[tuple[int, ...], jax.Array]] = {}
        for kind in self._regions:
            tables, sizes = self._tables[kind], self._plan.groups[kind.group].sizes
            pieces = _pieces(stacks[kind.group], kind, sizes)
            if kind.axis is None:
                pieces = _taken(pieces, self._own(tables.returned))
                pieces = jax.lax.all_gather(pieces, self.owners.axes, tiled=True)
            else:
                pieces = self._exchanged(pieces, tables.returned)
            self._collect(kind, _taken(pieces, self._own(tables.back)), found)
        return self._joined(found)

    def masks(self, values: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """Each preconditioned leaf with its blocks' values, (blocks,) for each group, all over."""

        def on_each(values):
            found: dict[int, dict[tuple[int, ...], jax.Array]] = {}
            for kind in self._regions:
                sizes = self._plan.groups[kind.group].sizes
                own = values[kind.group][self._own(self._tables[kind].block)]
                pieces = own.reshape(-1, *[1] * len(sizes))
                pieces = jnp.broadcast_to(pieces, (len(pieces), *kind.piece(sizes)))
                self._collect(kind, pieces, found)
            return self._joined(found)

        return self.back(self.owners.over(on_each, PartitionSpec(), self.specs)(list(values)))

    def _collect(
        self, kind: _Kind, pieces: jax.Array, found: dict[int, dict[tuple[int, ...], jax.Array]]
    ) -> None:
        """Puts a device's pieces together to the regions of its tiles."""
        start = 0
        for region in self._regions[kind]:
            layers, grid = self._tile(kind, region)
            length = layers * math.prod(grid)
            tile = _blocks.uncut(pieces[start : start + length], layers, grid)
            found.setdefault(region.leaf, {})[region.starts] = tile
            start += length

    def _joined(
        self, found: Mapping[int, dict[tuple[int, ...], jax.Array]]
    ) -> dict[int, jax.Array]:
        return {
            i: _blocks.assemble(parts).reshape(self._tile_shape(i)) for i, parts in found.items()
        }

    def _own(self, table: np.ndarray) -> jax.Array:
        return jnp.asarray(table, jnp.int32)[self.owners.mine]

    def _exchanged(self, pieces: jax.Array, table: np.ndarray) -> jax.Array:
        sent = _taken(pieces, self._own(table))
        return jax.lax.all_to_all(sent, self.owners.axes, 0, 0, tiled=True)

    def _tile_shape(self, leaf: int) -> tuple[int, ...]:
        tile, shape = self._tiles[leaf], list(self._shapes[leaf])
        if tile.axis is not None:
            shape[tile.own] //= self.owners.count
        return tuple(shape)

    def _tile(self, kind: _Kind, region: _blocks.Region) -> tuple[int, tuple[int, ...]]:
        """Layers and pieces along each axis that a tile has of a region."""
        core = self._plan.cores[region.leaf]
        assert core is not None
        grid = kind.grid(region, self._plan.groups[kind.group].sizes)
        lengths = [core[0], *grid]
        if kind.axis is not None:
            lengths[kind.axis] //= self.owners.count
        return lengths[0], tuple(lengths[1:])

    def _cut(self, kind: _Kind, tiles: Mapping[int, jax.Array]) -> jax.Array:
        """A device's pieces."""
        piece = kind.piece(self._plan.groups[kind.group].sizes)
        stacks = []
        for region in self._regions[kind]:
            core = self._plan.cores[region.leaf]
            assert core is not None
            lengths = list(core)
            if kind.axis is not None:
                lengths[kind.axis] //= self.owners.count
            _, grid = self._tile(kind, region)
            x = tiles[region.leaf].reshape(lengths)
            stacks.append(_blocks.cut(x, region.starts, grid, piece))
        return _blocks.stacked(stacks)

    def _found(self, kind: _Kind) -> Tables:
        table, group = self.tables[kind.group], self._plan.groups[kind.group]
        parts, places = kind.parts(group.sizes), table.shape[1]
        starts = dict(zip(group.regions, group.starts, strict=True))
        ids = [self._ids(kind, region, starts[region]) for region in self._regions[kind]]
        block, part = np.concatenate(ids, -1)  # (devices, pieces) each
        owner, place = np.divmod(_owners.positions(table)[block], places)
        goal = place * parts + part  # at the owner
        if kind.axis is None:
            return _exchange.of_whole(block, owner, goal, places)
        return _exchange.of_tiles(block, owner, goal, places * parts)

    def _ids(self, kind: _Kind, region: _blocks.Region, start: int) -> np.ndarray:
        """(2, devices, pieces): which block each device's pieces belong to, and which part."""
        core = self._plan.cores[region.leaf]
        assert core is not None
        parts = kind.parts(self._plan.groups[kind.group].sizes)
        block = start + np.arange(region.length).reshape(core[0], *region.counts)
        if kind.axis is None:
            both = np.stack([block, np.zeros_like(block)])
            return np.repeat(both.reshape(2, 1, -1), self.owners.count, 1)
        block = np.repeat(block, parts, kind.axis)
        part = np.arange(block.shape[kind.axis]) % parts
        part = part.reshape(-1, *[1] * (block.ndim - 1 - kind.axis))
        both = np.stack([block, np.broadcast_to(part, block.shape)])
        tiles = np.split(both, self.owners.count, 1 + kind.axis)
        order = self.owners.numbers(self._tiles[region.leaf].order)
        return np.stack([tiles[i].reshape(2, -1) for i in order], 1)


def _taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of `x`, zeros where the index is past the end."""
    return jnp.take(x, index, 0, mode="fill", fill_value=0)


def _whole(pieces: jax.Array, kind: _Kind, sizes: tuple[int, ...]) -> jax.Array:
    """(blocks · parts, *piece) -> (blocks, *sizes)."""
    x = pieces.reshape(-1, kind.parts(sizes), *pieces.shape[1:])
    return jnp.moveaxis(x, 1, kind.axis or 1).reshape(-1, *sizes)


def _pieces(blocks: jax.Array, kind: _Kind, sizes: tuple[int, ...]) -> jax.Array:
    """The inverse of `_whole`."""
    axis, parts = kind.axis or 1, kind.parts(sizes)
    split = (*sizes[: axis - 1], parts, sizes[axis - 1] // parts, *sizes[axis:])
    x = jnp.moveaxis(blocks.reshape(-1, *split), axis, 1)
    return x.reshape(-1, *kind.piece(sizes))


# Compiled as one outside `jit` too.
@functools.partial(jax.jit, static_argnums=0)
def gather(routes: Routes, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The stacks of a tree's blocks, divided among their owners."""
    to_owners = routes.owners.over(routes.to_owners, (routes.specs,), routes.owners.spec)
    return to_owners(routes.spread(leaves))


def routes(plan: _blocks.Plan, leaves: Sequence[jax.Array], owners: Owners | None) -> Routes | None:
    """The ways of a tree's blocks; None: on one device."""
    if owners is None:
        return None
    kept = tuple(map(owners.sharded_by, leaves))
    return Routes(plan, tuple(map(jnp.shape, leaves)), kept, owners)
