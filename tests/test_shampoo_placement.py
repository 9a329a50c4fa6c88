"""Shampoo and SOAP where CPU tests do not go: inside shard_map, and an accelerator's form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import optax_zoo as zoo
from helpers import assert_close, jitted_step, one_step, random_tree

BLOCKS = zoo.Blocks(size=4, merge_below=1)
REFRESH = zoo.Refresh(every=2, start=1)


OPTIMIZERS = {
    "shampoo": zoo.shampoo(0.1, blocks=BLOCKS, refresh=REFRESH),
    "corrected": zoo.shampoo(
        0.1, blocks=BLOCKS, refresh=dataclasses.replace(REFRESH, delay=1, drift_every=1)
    ),
    # eps is to cover rounding errors where a gradient's rank leaves nothing else.
    "soap": zoo.soap(0.1, eps=1e-2, blocks=BLOCKS, refresh=REFRESH),
}
SHAPES = {"square": (8, 4), "tall": (7, 3), "bias": (5,)}


def steps(tx, params, state, grads, step_of=one_step):
    for g in grads:
        params, state = step_of(tx)(params, state, g)
    return params, state


def problem(seed: int = 0):
    params, *grads = (random_tree(seed + i, shapes=SHAPES) for i in range(3))
    return params, grads


@pytest.mark.slow
@pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="callbacks with several results fail in its shard_map"
)
@pytest.mark.parametrize(
    ("name", "varying", "state_given"),
    [
        ("shampoo", SHAPES, False),
        ("corrected", SHAPES, True),
        ("soap", {"bias"}, False),
    ],
)
def test_inside_shard_map_each_device_steps_as_alone(name, varying, state_given):
    tx = OPTIMIZERS[name]
    first, second = problem(), problem(10)
    # The second device has leaves of its own where they vary.
    second = [
        {name: y[name] if name in varying else x[name] for name in SHAPES}
        for x, y in zip([first[0], *first[1]], [second[0], *second[1]], strict=True)
    ]
    trees = [(first[0], first[1]), (second[0], second[1:])]

    def packed(x, y):
        return {n: jnp.stack([x[n], y[n]]) if n in varying else x[n] for n in SHAPES}

    def unpacked(tree):
        return {n: x[0] if n in varying else x for n, x in tree.items()}

    def run(params, grads, state):
        params, grads = unpacked(params), [unpacked(g) for g in grads]
        state = jax.tree.map(lambda x: x[0], state) if state_given else tx.init(params)
        params, _ = steps(tx, params, state, grads)
        return jax.tree.map(lambda x: _varying(x)[None], params)

    params = packed(trees[0][0], trees[1][0])
    grads = [packed(x, y) for x, y in zip(trees[0][1], trees[1][1], strict=True)]
    states = jax.tree.map(lambda *x: jnp.stack(x), *(tx.init(tree[0]) for tree in trees))
    over = PartitionSpec("d")
    spec = {n: over if n in varying else PartitionSpec() for n in SHAPES}
    mesh = jax.make_mesh((2,), ("d",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(spec, [spec] * 2, over), out_specs=over)
    found = jax.jit(mapped)(params, grads, states)
    for i, (alone, own_grads) in enumerate(trees):
        wanted, _ = steps(tx, alone, tx.init(alone), own_grads, jitted_step)
        mine = jax.tree.map(lambda x, i=i: x[i], found)
        assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def _varying(x):
    """`x`, taken for different on each device, as the result of all leaves is written out."""
    return x + 0 * jax.lax.axis_index("d").astype(x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "factory", "arguments"),
    [
        ("host", zoo.shampoo, {"roots": zoo.Roots()}),
        ("device", zoo.shampoo, {"roots": zoo.Roots()}),
        ("host", zoo.soap, {"roots": zoo.Roots(method="eigh"), "eps": 1e-2}),
    ],
)
def test_all_blocks_at_once_step_as_one_after_the_other(on, factory, arguments, monkeypatch):
    make = functools.partial(factory, 0.1, blocks=BLOCKS, **arguments)
    roots = dataclasses.replace(arguments["roots"], on=on)
    tx = make(refresh=REFRESH, roots=roots)
    # The same schedule in other words, for which nothing has been traced yet.
    refresh = dataclasses.replace(REFRESH, delay=2 if on == "host" else 0)
    other_tx = make(refresh=refresh, roots=roots)
    params, grads = problem()
    grads[1]["tall"] = grads[1]["tall"].at[6, 0].set(jnp.nan)
    found = steps(tx, params, tx.init(params), grads, jitted_step)
    chosen = []

    def as_on_an_accelerator(*args, default, cpu):
        del cpu
        chosen.append(default)
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_an_accelerator)
    other = steps(other_tx, params, tx.init(params), grads, jitted_step)
    assert chosen
    assert_close(other, found, rtol=1e-5, atol=1e-6)
