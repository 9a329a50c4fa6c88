"""First-order optimizers on a mesh: global norms, states placed like parameters, no gathers."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_zoo as zoo
from helpers import assert_close, one_step, parameter_leaves, problem, slow, some, train
from laws import TABLE
from optax_zoo import _lamb

SHAPES = {"layers": (8, 4, 8), "kernel": (8, 8), "bias": (8,)}
LAYER_AXES = {"layers": 1, "kernel": 0, "bias": 0}
OPTIMIZERS = {
    "link": zoo.scale_by_layerwise_trust_ratio(weight_decay=0.1, layer_axes=LAYER_AXES),
    "lars": zoo.lars(0.5, 0.1, trust_coefficient=1.0, layer_axes=LAYER_AXES),
    "lamb": zoo.lamb(0.1, weight_decay=0.1, layer_axes=LAYER_AXES),
}
# The mesh, over which of its axes x, y, z the first and the last axis of each matrix is divided,
# and how many numbers devices then sum up at a time: one for a norm, or for the mean ratio of
# layers on several devices; one for each layer of a device that has a part of them.
LAYOUTS = {
    "replicated": ((8,), None, None, set()),
    "fsdp": ((8,), "x", None, {1}),
    "tensor": ((8,), None, "x", {1, 8}),
    "both": ((4, 2), "x", "y", {1, 2}),
    "three_axes": ((2, 2, 2), ("x", "y"), "z", {1, 2}),
}
# Other than elementwise: norms of leaves, and Amos's means over the rows of four columns.
SUMS = {
    "scale_by_layerwise_trust_ratio": {1},
    "lars": {1},
    "lamb": {1},
    "amos": {4},
    "egdd": {1},
    "graft": {1},
}


def placed(tree, layout, kind=AxisType.Auto):
    """The tree on eight devices; vectors are everywhere."""
    sizes, first, last, _ = LAYOUTS[layout]
    axes = ("x", "y", "z")[: len(sizes)]
    mesh = jax.make_mesh(sizes, axes, (kind,) * len(sizes), devices=jax.devices()[:8])

    def put(x):
        spec = (first, *(None,) * (x.ndim - 2), last) if x.ndim > 1 else ()
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, tree)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def exchanged(program):
    """What goes between devices: each collective operation and the number of its entries."""
    kinds = "all-gather|all-reduce|all-to-all|collective-[a-z]+|ragged-all-to-all|reduce-scatter"
    return {
        (kind, math.prod(int(n) for n in shape.split(",") if n))
        for results, kind in re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", program.as_text())
        for shape in re.findall(r"[a-z]\w*\[([\d,]*)\]", results)
    }


def sums(counts):
    return {("all-reduce", count) for count in counts}


@pytest.mark.parametrize("kind", ["Auto", *slow("Explicit")])
@pytest.mark.parametrize("layout", some(LAYOUTS, "fsdp"))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_are_global_and_all_that_devices_exchange(name, layout, kind):
    tx = OPTIMIZERS[name]
    params, grads = problem(steps=2, shapes=SHAPES)
    desired = train(tx, params, grads)
    params, grads = placed((params, grads), layout, AxisType[kind])
    own = {p.shape: p.sharding for p in params.values()}
    state = tx.init(params)
    step = compiled(one_step(tx), params, state, grads[0])
    assert exchanged(step) == sums(LAYOUTS[layout][-1])
    for g in [None, *grads]:
        if g is not None:
            params, state = step(params, state, g)
        for leaf in [*params.values(), *parameter_leaves(tx, state)]:
            assert leaf.sharding.is_equivalent_to(own[leaf.shape], leaf.ndim)
    assert_close((params, state), desired, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["Auto", *slow("Explicit")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_devices_that_have_whole_layers_exchange_nothing_for_the_updates(name, kind, monkeypatch):
    monkeypatch.setattr(_lamb, "_LARGE_LEAF", 1)  # no order on a mesh
    tx = OPTIMIZERS[name]
    shapes = {"layers": [SHAPES["layers"]] * 2, "kernel": None, "bias": None}
    params = placed(problem(shapes=shapes)[0], "fsdp", AxisType[kind])
    updates = compiled(lambda *args: tx.update(*args)[0], params, tx.init(params), params)
    assert exchanged(updates) == set()


@pytest.mark.parametrize(
    "name", some((name for name in TABLE if name not in ("shampoo", "soap")), "lion", "lamb")
)
def test_updates_of_divided_parameters_gather_nothing(name):
    tx = TABLE[name].tx
    params = placed(problem(shapes=SHAPES)[0], "both")
    update = compiled(tx.update, params, tx.init(params), params)
    assert exchanged(update) == sums(SUMS.get(name, set()))


def test_a_gather_would_be_seen():
    params = placed(problem(shapes=SHAPES)[0], "fsdp")
    everywhere = params["bias"].sharding
    gather = compiled(lambda x: jax.lax.with_sharding_constraint(x, everywhere), params["kernel"])
    assert exchanged(gather) == {("all-gather", 64)}


def each_with_its_layers(run, tree, steps):
    """`run(params, gradients)` where each of eight devices has layers and all have the rest."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,), devices=jax.devices()[:8])
    spec = {n: PartitionSpec("x" if axes else None) for n, axes in LAYER_AXES.items() if n in tree}
    return jax.shard_map(run, mesh=mesh, in_specs=(spec, [spec] * steps), out_specs=spec)


def trained(tx):
    """Steps in a loop from the first state on."""

    def run(params, grads):
        def step(carry, g):
            p, state = carry
            return one_step(tx)(p, state, g), None

        stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
        return jax.lax.scan(step, (params, tx.init(params)), stacked)[0][0]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_inside_shard_map_a_loop_over_steps_trains_each_devices_layers(name, monkeypatch):
    monkeypatch.setattr(_lamb, "_LARGE_LEAF", 1)  # no order there either
    tx = OPTIMIZERS[name]
    params, grads = problem(steps=2, shapes=SHAPES)
    found = jax.jit(each_with_its_layers(trained(tx), params, len(grads)))(params, grads)
    assert_close(found, train(tx, params, grads)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_inside_shard_map_scales_of_gains_go_round_a_loop(scope):
    params, grads = problem(steps=2, shapes={"layers": SHAPES["layers"]})
    run = trained(zoo.egdd(0.1, scope=scope))
    assert jax.eval_shape(each_with_its_layers(run, params, 2), params, grads)
