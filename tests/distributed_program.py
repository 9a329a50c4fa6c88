"""One process of several that train together; `test_distributed.py` starts them.

python tests/distributed_program.py ADDRESS PROCESSES PROCESS DEVICES FILE
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optax_zoo as zoo
from optax_zoo._shampoo._roots import HostRoots

STEPS = 24  # roots begun at 5, 10, 15 and 20 are adopted three steps later
SHAPES = {"in": (32, 48), "out": (48, 32), "bias": (48,)}


def data_mesh(devices) -> Mesh:
    """All devices along one axis."""
    return jax.make_mesh((len(devices),), ("data",), (jax.sharding.AxisType.Auto,), devices=devices)


def train(mesh: Mesh) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses of a small network's steps, and its parameters after the last."""
    tx = zoo.shampoo(
        3e-2,
        blocks=zoo.Blocks(size=16),
        refresh=zoo.Refresh(every=5, delay=3),
        mesh=mesh,
    )
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=shape).astype(np.float32) / np.sqrt(shape[0])
        for name, shape in SHAPES.items()
    }
    inputs = rng.normal(size=(STEPS, 16, 32)).astype(np.float32)
    goals = np.sin(inputs)

    def loss(params, x, y):
        hidden = jax.nn.relu(x @ params["in"] + params["bias"][None])
        return jnp.mean((hidden @ params["out"] - y) ** 2)

    @jax.jit
    def step(params, state, x, y):
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    def spread(batch):
        return jax.make_array_from_callback(batch.shape, rows, batch.__getitem__)

    params = jax.jit(lambda: params, out_shardings=whole)()
    state = jax.jit(tx.init)(params)
    values = []
    for x, y in zip(inputs, goals, strict=True):
        params, state, value = step(params, state, spread(x), spread(y))
        values.append(float(value))
    gathered = jax.jit(lambda p: p, out_shardings=whole)(params)
    return values, jax.tree.map(np.asarray, gathered)


def main(address: str, processes: str, process: str, devices: str, file: str) -> None:
    """Trains, and saves what came out and how many roots were computed here."""
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        int(processes),
        int(process),
        initialization_timeout=100,
        cluster_detection_method="deactivate",
    )
    roots, run = [], HostRoots.run

    def counted(task, item):
        found = run(task, item)
        roots.append(len(item[1]))
        return found

    HostRoots.run = counted
    losses, params = train(data_mesh(jax.devices()))
    np.savez(file, losses=losses, roots=sum(roots), **params)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
