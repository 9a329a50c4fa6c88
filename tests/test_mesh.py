"""Shampoo and SOAP divided among the devices of a mesh: one device's trajectory, a part of the
state each."""

import contextlib
import math
import re
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_zoo as zoo
from helpers import assert_close
from optax_zoo import _owners
from optax_zoo._shampoo import _resharding, _roots

# Blocks of 8: of `w` and `layers` (stacked, spread by layers), and of `odd` smaller ones.
SHAPES = {"w": (16, 16), "layers": (8, 8, 8), "odd": (7, 9), "bias": (16,)}
BLOCKS = zoo.Blocks(size=8, merge_below=1)
OVERLAPPED = zoo.Refresh(every=5, delay=3, start=1)

on_the_host = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="callbacks with several results fail in its shard_map"
)


class Placed(NamedTuple):
    """A mesh, where parameters lie on it and the context in which programs run."""

    mesh: Any
    shardings: dict[str, NamedSharding]

    def context(self) -> Any:
        explicit = AxisType.Explicit in self.mesh.axis_types
        return jax.set_mesh(self.mesh) if explicit else contextlib.nullcontext()


def placed(shape: tuple[int, ...], axis_type: str, **specs: PartitionSpec) -> Placed:
    """Parameters everywhere but for those with a spec."""
    names = ("data", "model", "more")[: len(shape)]
    kinds = (getattr(AxisType, axis_type),) * len(shape)
    devices = jax.devices("cpu")[: math.prod(shape)]
    mesh = jax.make_mesh(shape, names, kinds, devices=devices)
    shardings = {}
    for k, of in SHAPES.items():
        spec = specs.get(k, ())
        if axis_type == "Explicit":  # spelled out, as JAX does in what programs give
            spec = (*spec, *[None] * (len(of) - len(spec)))
        shardings[k] = NamedSharding(mesh, PartitionSpec(*spec))
    return Placed(mesh, shardings)


def optimizer(name: str = "shampoo", mesh: Any = None, rate: Any = 0.05, **arguments: Any) -> Any:
    if name == "soap":
        # Eigenvectors that rounding decides would tell two programs apart: late, of full rank.
        late = {"refresh": zoo.Refresh(every=5, delay=3), "eps": 1e-2}
        arguments = late | {"roots": zoo.Roots(method="eigh")} | arguments
    arguments = {"blocks": BLOCKS, "refresh": OVERLAPPED, "layer_axes": layer_axes} | arguments
    return getattr(zoo, name)(rate, mesh=mesh, **arguments)


def layer_axes(path, leaf):
    del leaf
    return int(path[0] == "layers")


def random_params(seed: int, of: Placed | None = None) -> Any:
    rng = np.random.default_rng(seed)
    params = {k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()}
    return jax.device_put(params, of.shardings) if of else jax.tree.map(jnp.asarray, params)


def gradients(step: int, of: Placed | None = None) -> Any:
    return random_params(100 + step, of)


def trained(tx, params, state, steps, of=None, step_of=None):
    """Parameters and state after these steps of noisy descent to zero."""
    if step_of is None:
        step_of = training_step(tx)
    for number in steps:
        params, state = step_of(params, state, gradients(number, of))
        if number % 16 == 0:
            # Of more than 32 steps in flight XLA's CPU client may start one too early: it has a
            # thread for each device, and one that waits for its turn keeps a collective waiting.
            jax.block_until_ready(params)
    return params, state


def training_step(tx):
    @jax.jit
    def step(params, state, noise):
        grads = jax.tree.map(lambda p, n: p + 0.3 * n, params, noise)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def shardings_of(tree: Any) -> Any:
    return [
        (jax.tree_util.keystr(path), leaf.sharding, leaf.ndim)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def assert_placed_as(found: Any, wanted: Any) -> None:
    for (name, mine, ndim), (_, other, _) in zip(found, wanted, strict=True):
        assert mine.is_equivalent_to(other, ndim), (name, mine, other)


HOST, DEVICE = zoo.Roots(), zoo.Roots(on="device")
QUICK = zoo.Roots(on="device", tolerance=0.1)  # to compile
P = PartitionSpec
BY_LAYERS_AND_ROWS = {"w": P("data"), "layers": P("data")}
MESHES = {
    "fsdp": ((8,), "Explicit", BY_LAYERS_AND_ROWS, HOST),
    "replicated": ((8,), "Auto", {}, DEVICE),
    "fsdp, tensor": ((4, 2), "Explicit", {"w": P("data", "model"), "layers": P("data")}, DEVICE),
    "fsdp, tensor, unnamed": ((4, 2), "Auto", {"w": P("data", "model"), "odd": P()}, HOST),
    "three axes": ((2, 2, 2), "Explicit", {"w": P(None, "more"), "layers": P("model")}, HOST),
    "three axes, unnamed": ((2, 2, 2), "Auto", {"w": P("more", "data")}, DEVICE),
}


@pytest.fixture(scope="module")
def alone():
    """Parameters, state and inspection after a hundred steps on one device, by place of roots."""
    found = {}

    def of(roots):
        if roots not in found:
            tx, params = optimizer(roots=roots, refresh=refresh_of(roots)), random_params(0)
            found[roots] = trained(tx, params, tx.init(params), range(100))
        return found[roots]

    return of


def refresh_of(roots):
    # In float32 roots of statistics without full rank show how a program rounds: late.
    return OVERLAPPED if roots.on == "host" else zoo.Refresh(every=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_a_hundred_steps_are_those_of_one_device(name, alone, capfd):
    shape, axis_type, specs, roots = MESHES[name]
    if jax.__version_info__ < (0, 8) and (roots.on == "host" or axis_type == "Explicit"):
        pytest.skip("JAX 0.7 runs Shampoo on the device, with Auto axes only")
    of = placed(shape, axis_type, **specs)
    with of.context():
        tx = optimizer(mesh=of.mesh, roots=roots, refresh=refresh_of(roots))
        params = random_params(0, of)
        first = tx.init(params)
        step = training_step(tx)
        params, state = trained(tx, params, first, range(2), of, step)
        assert_placed_as(shardings_of(state), shardings_of(first))
        params, state = trained(tx, params, state, range(2, 100), of, step)
        assert_placed_as(shardings_of(state), shardings_of(first))
        assert_placed_as(shardings_of(params), shardings_of(random_params(0, of)))
        assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert "rematerialization" not in capfd.readouterr().err
    wanted, one = alone(roots)
    assert_close(params, wanted, rtol=1e-6, atol=1e-6)
    report, other = (zoo.inspect(s, wanted) for s in (state, one))
    for leaf, numbers in report.items():
        for quantity, number in numbers.items():
            assert number == pytest.approx(other[leaf][quantity], rel=1e-2, abs=1e-6), quantity
    # Nothing that belongs to blocks is anywhere twice.
    for x in jax.tree.leaves(state[0].factors):
        assert x.sharding.shard_shape(x.shape)[0] * of.mesh.size == x.shape[0]


@on_the_host
@pytest.mark.slow
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_soap_on_a_mesh_steps_as_on_one_device(axis_type):
    of = placed((4, 2), axis_type, w=P("data", "model"))
    tx, params = optimizer("soap"), random_params(0)
    wanted, _ = trained(tx, params, tx.init(params), range(12))
    with of.context():
        tx, params = optimizer("soap", of.mesh), random_params(0, of)
        first = tx.init(params)
        found, state = trained(tx, params, first, range(12), of)
    assert_placed_as(shardings_of(state), shardings_of(first))
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@on_the_host
def test_what_is_not_finite_counts_as_zero_on_a_mesh_too():
    of, results = placed((8,), "Auto"), []
    for where in (None, of):
        tx = optimizer(mesh=where and where.mesh, refresh=zoo.Refresh(2, 0, start=1))
        params = random_params(0, where)
        state, step = tx.init(params), jax.jit(tx.update)
        for number in range(2):
            grads = gradients(number)
            grads["w"] = grads["w"].at[3, 12].set(jnp.nan)
            if where:
                grads = jax.device_put(grads, where.shardings)
            updates, state = step(grads, state, params)
        results.append((updates, zoo.inspect(state, params)))
    (one, report), (many, other) = results
    assert_close(many, one, rtol=1e-5, atol=1e-6)
    assert report["w"]["skipped"] == other["w"]["skipped"] == 2


def collectives(program: str) -> dict[str, int]:
    """Kind -> the most numbers that one of that kind gives."""
    found: dict[str, int] = {}
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for shapes, kind in re.findall(rf" = (.*?) ({kinds})(?:-start)?\(", program):
        sizes = re.findall(r"\[([\d,]*)\]", shapes)
        numbers = sum(math.prod(int(n) for n in size.split(",") if n) for size in sizes)
        found[kind] = max(found.get(kind, 0), numbers)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis_type", "specs", "wanted", "small"),
    [
        # Pieces there and back; per-block norms and flags are gathered, reports reduced.
        ("Explicit", {"w": P("data"), "layers": P("data")}, {"all-to-all"}, {"all-gather"}),
        # The program has the whole gradients: only directions are gathered.
        ("Auto", {}, {"all-gather"}, set()),
    ],
)
def test_a_program_exchanges_what_a_reader_expects(axis_type, specs, wanted, small):
    if jax.__version_info__ < (0, 8) and axis_type == "Explicit":
        pytest.skip("JAX 0.7 has no context of explicit axes")
    of = placed((8,), axis_type, **specs)
    arguments = {"blocks": BLOCKS, "refresh": zoo.Refresh(4), "roots": QUICK}
    tx = zoo.scale_by_shampoo(mesh=of.mesh, graft_to=None, layer_axes=layer_axes, **arguments)
    with of.context():
        params = {k: x for k, x in random_params(0, of).items() if k in ("w", "layers")}
        program = jax.jit(tx.update).lower(params, tx.init(params)).compile().as_text()
    assert program is not None
    found = collectives(program)
    assert found.keys() == wanted | small | {"all-reduce"}
    largest = max(math.prod(SHAPES[k]) for k in params)
    for kind, numbers in found.items():
        if kind in wanted:
            assert numbers <= 2 * largest
        else:
            assert numbers <= 16  # one for each block or leaf


def test_the_state_is_divided_evenly():
    of = placed((8,), "Auto", w=P("data"), layers=P("data"))
    params = {k: x for k, x in random_params(0, of).items() if k in ("w", "layers")}
    tx = optimizer(mesh=of.mesh, roots=QUICK)
    state = tx.init(params)
    leaves = jax.tree.leaves(state)
    total = sum(x.nbytes for x in leaves)
    for device in of.mesh.devices.flat:
        own = sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == device)
        assert own <= 1.05 * total / 8
    assert total == zoo.state_bytes(tx, params)


@pytest.mark.slow
@on_the_host
def test_places_without_a_block_cost_no_root_work(monkeypatch):
    counted = []

    def counting(matrices, *args):
        counted.append(len(matrices))
        return original(matrices, *args)

    original = _roots.inverse_pth_roots
    monkeypatch.setattr(_roots, "inverse_pth_roots", counting)
    of = placed((8,), "Auto")
    # Nothing that another test may have asked of the host's cache.
    refresh = zoo.Refresh(every=2, delay=0, start=2)
    tx = optimizer(mesh=of.mesh, refresh=refresh, exponent=3, init_epsilon=1e-4)
    params = random_params(7, of)
    _, state = trained(tx, params, tx.init(params), range(2), of)
    jax.block_until_ready(state)
    # w: 4 blocks of two factors; layers: 8; odd: 7 x 9 in (7, 5) and (7, 4).
    assert sum(counted) == 2 * (4 + 8 + 2)


# Its count is nowhere in particular until it has met the mesh.
SCHEDULE = optax.constant_schedule(0.05)


def saved_in_flight(name: str, tmp_path) -> list[Any]:
    """Parameters and state on four devices, saved with a refresh in flight; parameters later."""
    of = placed((4,), "Auto", w=P("data"))
    tx, params = optimizer(name, of.mesh, SCHEDULE), random_params(0, of)
    params, state = trained(tx, params, tx.init(params), range(11), of)  # begun at step 10
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / name, (params, state))
    checkpointer.wait_until_finished()
    later, _ = trained(tx, params, state, range(11, 16), of)
    return [params, state, later]


@pytest.mark.slow
@on_the_host
@pytest.mark.parametrize(
    ("name", "counts"), [("shampoo", {8: "Explicit", 2: "Auto", None: ""}), ("soap", {8: "Auto"})]
)
def test_a_checkpoint_of_four_devices_goes_on_elsewhere(name, counts, tmp_path):
    params, _, wanted = saved_in_flight(name, tmp_path)
    everywhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    was = optimizer(name, jax.sharding.AbstractMesh((4,), ("data",)), SCHEDULE)
    shapes = everywhere, jax.eval_shape(was.init, everywhere)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
    params, saved = ocp.StandardCheckpointer().restore(tmp_path / name, shapes)
    params, saved, state = *jax.tree.map(np.asarray, (params, saved)), None
    for count, axis_type in counts.items():
        of = placed((count,), axis_type) if count else None
        with of.context() if of else contextlib.nullcontext():
            tx = optimizer(name, of and of.mesh, SCHEDULE)
            there = jax.device_put(params, of.shardings) if of else jax.tree.map(jnp.array, params)
            state = zoo.reshard(saved, tx.init(there))
            found, _ = trained(tx, there, state, range(11, 16), of)
        assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    # And back again, where every block is as it was.
    back = placed((4,), "Auto")
    tx = optimizer(name, back.mesh, SCHEDULE)
    again = zoo.reshard(state, tx.init(jax.device_put(params, back.shardings)))
    assert_blocks_equal(again[0], saved[0])


def assert_blocks_equal(found: Any, wanted: Any) -> None:
    """Equal but for places without a block."""
    for stacks in ("factors", "bases", "moments"):
        pairs = zip(getattr(found, stacks, ()), getattr(wanted, stacks, ()), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one.blocks, other.blocks)
            there = np.asarray(one.blocks).reshape(-1) >= 0
            for x, y in zip(matrices_apart(one), matrices_apart(other), strict=True):
                np.testing.assert_array_equal(np.asarray(x)[there], np.asarray(y)[there])


def matrices_apart(state: Any) -> list[Any]:
    """The arrays of a stack, each with an entry for each place."""
    arrays = state._replace(blocks=None)
    if hasattr(state, "roots"):
        roots = _resharding._unpaired(state, jnp.asarray(state.roots))
        arrays = arrays._replace(roots=roots, corrected=None)
    return jax.tree.leaves(arrays)


def test_mesh_axes_choose_along_which_the_state_is_divided():
    of = placed((4, 2), "Auto")
    tx = optimizer(mesh=of.mesh, mesh_axes="data", roots=QUICK)
    factors = tx.init(random_params(0, of))[0].factors
    for x in jax.tree.leaves(factors):
        assert x.sharding.spec[0] in ("data", ("data",))


def test_reshard_of_another_optimizers_state_says_so():
    params = random_params(0)
    state = optimizer().init(params)
    with pytest.raises(ValueError, match="opt_state must have the structure of like"):
        zoo.reshard(state, optax.adam(0.1).init(params))
    params["w"] = jnp.ones((16, 8))
    with pytest.raises(ValueError, match=r'opt_state must .*"w", \[16, 16\].*"w", \[16, 8\]'):
        zoo.reshard(state, optimizer().init(params))
    with pytest.raises(ValueError, match="opt_state has blocks of"):
        zoo.reshard(state, optimizer(roots=zoo.Roots(dtype=jnp.bfloat16)).init(random_params(0)))
    with pytest.raises(TypeError, match=r"like must be a state of arrays.* not jax\.eval_shape"):
        zoo.reshard(state, jax.eval_shape(optimizer().init, random_params(0)))


def test_parameters_on_another_mesh_raise_at_init():
    here, there = placed((4,), "Auto"), placed((8,), "Auto")
    tx = optimizer(mesh=there.mesh, roots=QUICK)
    with pytest.raises(
        ValueError, match=r"mesh is .* parameter bias lies elsewhere.*jax.device_put"
    ):
        tx.init(random_params(0, here))


def test_a_mesh_from_which_the_host_cannot_be_called_is_refused(monkeypatch):
    of = placed((4,), "Auto")
    monkeypatch.setattr("optax_zoo._shampoo._options._WITH_CALLBACKS", {"tpu"})
    with pytest.raises(ValueError, match=r"JAX (0.8|cannot call the host)[^;]*; .*on=\"device\""):
        optimizer(mesh=of.mesh)
    optimizer(mesh=of.mesh, roots=QUICK)


@pytest.mark.parametrize("axes", ["rows", ("data", "rows"), ("data", "data"), ()])
def test_mesh_axes_that_the_mesh_does_not_have_are_refused(axes):
    mesh = placed((4, 2), "Auto").mesh
    with pytest.raises(ValueError, match=r"mesh_axes must name axes of the mesh.*'data', 'model'"):
        optimizer(mesh=mesh, mesh_axes=axes)
    with pytest.raises(ValueError, match=r"mesh_axes is .* and mesh is None"):
        optimizer(mesh_axes=axes)


def test_shapes_of_many_devices_need_none():
    mesh = jax.sharding.AbstractMesh((512,), ("data",))
    shapes = {"w": jax.ShapeDtypeStruct((8192, 8192), jnp.float32)}
    tx = zoo.shampoo(1e-3, mesh=mesh, roots=QUICK)
    (factors,) = jax.eval_shape(tx.init, shapes)[0].factors
    assert factors.statistics.shape == (512, 2, 512, 513)
    assert _owners.Owners(mesh, ("data",)).count == 512


WITH_LARGE_BLOCKS = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import optax_zoo as zoo

mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
params = jax.device_put(jnp.eye(256), jax.NamedSharding(mesh, jax.P("data")))
refresh = zoo.Refresh(every=4, delay=2)
tx = zoo.shampoo(1e-2, refresh=refresh, blocks=zoo.Blocks(128), mesh=mesh)
state, step = tx.init(params), jax.jit(tx.update)
for _ in range(12):
    updates, state = step(params, state)
assert zoo.inspect(state, params)["()"]["age"] == 4
"""


@pytest.mark.slow
@on_the_host
def test_callbacks_of_all_devices_at_once_do_not_wait_for_each_other():
    # XLA's CPU client copies large arguments on the threads that wait for them.
    subprocess.run([sys.executable, "-c", WITH_LARGE_BLOCKS], check=True, timeout=300)


def test_shapes_on_an_abstract_mesh_in_the_context_of_another():
    of = placed((8,), "Auto")
    was = optimizer(mesh=jax.sharding.AbstractMesh((4,), ("data",)), roots=QUICK)
    params = random_params(0, of)
    with jax.set_mesh(of.mesh) if hasattr(jax, "set_mesh") else contextlib.nullcontext():
        shapes = jax.eval_shape(was.init, params)
    there = placed((4,), "Auto")
    state = optimizer(mesh=there.mesh, roots=QUICK).init(random_params(0, there))
    found, wanted = (jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (shapes, state))
    assert found == wanted
