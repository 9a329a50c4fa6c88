"""What `benchmarks.scaling` counts, on programs small enough to count by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import optax_zoo as zoo
from benchmarks import collectives, scaling

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="explicit axis types, as far as they are used here"
)
DIVIDED, WHOLE = PartitionSpec("d"), PartitionSpec()
# Of 4 devices with (8, 4) float32 numbers, 128 bytes, in all: what reaches one of them.
EXCHANGES = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "d", tiled=True), WHOLE, 96),
    "all-reduce": (lambda x: jax.lax.psum(x, "d"), WHOLE, 2 * 24),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "d", 1, 0, tiled=True), DIVIDED, 24),
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_an_exchange_is_read_from_the_program_and_from_its_trace(kind):
    exchange, out, wanted = EXCHANGES[kind]
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(exchange, mesh=mesh, in_specs=DIVIDED, out_specs=out, check_vma=False)
    traced = jax.jit(mapped).trace(jnp.ones((8, 4)))
    compiled = traced.lower().compile()
    assert collectives.of_program(compiled.as_text() or "") == [(kind, wanted)]
    assert collectives.of_jaxpr(traced.jaxpr) == [(kind, wanted)]


def test_resharding_is_counted_along_the_axes_that_are_gathered():
    mesh = AbstractMesh((4, 2), ("d", "e"), axis_types=(AxisType.Explicit,) * 2)

    def gathered(x):
        x = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec("d", None)))
        return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(("d", "e"), None)))

    sharding = NamedSharding(mesh, PartitionSpec("d", "e"))
    with jax.sharding.use_abstract_mesh(mesh):
        x = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)
        assert collectives.of_jaxpr(jax.jit(gathered).trace(x).jaxpr) == [("all-gather", 16)]


@pytest.mark.slow
def test_a_program_and_its_trace_move_the_same_and_no_device_has_more_than_its_share():
    size = scaling.Size(order=32, samples=1, refreshes=0, tokens=0)
    row = scaling.measure(size, scaling.LAYOUTS[1], 8, AxisType.Explicit)
    # 22 blocks are 24 places; what is like the parameters divides evenly.
    assert row["roots_largest"] == 6
    assert row["roots_mean"] == 44 / 8
    assert row["over_own_total"] < 1.05
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread)
        for name, shape in size.shapes().items()
    }
    tx = zoo.scale_by_shampoo(graft_to="adam", blocks=size.blocks, mesh=mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        traced = jax.jit(tx.update).trace(params, state)
    received = collectives.by_kind(collectives.of_jaxpr(traced.jaxpr))
    assert received["all-to-all"] == row["received_bytes"]["all-to-all"]
    # Pieces of 4 × 32, three to each other device: gradients, momenta, and back.
    assert received["all-to-all"] == 3 * 7 * 3 * 4 * 32 * 4


def test_root_work_counts_blocks_and_no_empty_places():
    def stack(order, axes, blocks):
        blocks = np.array(blocks)
        return SimpleNamespace(
            blocks=blocks,
            age=np.zeros((blocks.size, axes)),
            roots=np.zeros((1, order, order + 1)),
        )

    work = scaling.root_work([stack(2, 2, [[0, 1], [2, -1]]), stack(3, 1, [[-1], [0]])])
    assert work.tolist() == [2 * 2 * 8, 2 * 8 + 27]
