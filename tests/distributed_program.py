"""One process of several that train with Shampoo; `test_distributed.py` starts them.

    python tests/distributed_program.py ADDRESS PROCESSES PROCESS DEVICES RESULT [FOLDER DIES]

FOLDER is for checkpoints; process 1 kills itself before step DIES.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optax_zoo as zoo
from optax_zoo._shampoo._roots import HostRoots

STEPS = 24  # roots begun at steps 5, 10, 15 and 20 are adopted three steps later
SAVED = 17
SHAPES = {"in": (32, 48), "out": (48, 32), "bias": (48,)}
ROOTS = 24  # of 12 blocks, two each


def data_mesh(devices: Any) -> Mesh:
    """Devices along one axis."""
    return jax.make_mesh((len(devices),), ("data",), (jax.sharding.AxisType.Auto,), devices=devices)


class Training:
    """A small network and its optimizer on a mesh."""

    def __init__(self, mesh: Mesh):
        refresh = zoo.Refresh(every=5, delay=3)
        tx = zoo.shampoo(3e-2, blocks=zoo.Blocks(size=16), refresh=refresh, mesh=mesh)
        rng = np.random.default_rng(0)
        params = {n: rng.normal(size=s).astype(np.float32) / 6 for n, s in SHAPES.items()}
        self._inputs = rng.normal(size=(STEPS, 16, 32)).astype(np.float32)
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        whole = NamedSharding(mesh, PartitionSpec())

        def loss(params, x):
            hidden = jax.nn.relu(x @ params["in"] + params["bias"][None])
            return jnp.mean((hidden @ params["out"] - jnp.sin(x)) ** 2)

        @jax.jit
        def step(state, x):
            params, opt_state = state
            value, gradients = jax.value_and_grad(loss)(params, x)
            updates, opt_state = tx.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        self._step = step
        params = jax.jit(lambda: params, out_shardings=whole)()
        self.state = params, jax.jit(tx.init)(params)
        self.done = 0

    def losses(self) -> Iterator[float]:
        """Goes on, step by step."""
        for x in self._inputs[self.done :]:
            batch = jax.make_array_from_callback(x.shape, self._rows, x.__getitem__)
            self.state, value = self._step(self.state, batch)
            self.done += 1
            yield float(value)

    def params(self) -> dict[str, Any]:
        """They are the same everywhere."""
        return jax.tree.map(np.asarray, self.state[0])


def kept(training: Training, folder: str, dies: int) -> Iterator[float]:
    """The losses from the checkpoint on, or of the steps until it dies, with a checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder) / "checkpoint"
        if path.exists():
            training.state = tuple(checkpointer.restore(path, training.state))
            training.done = SAVED
        for value in training.losses():
            yield value
            if training.done == SAVED:
                checkpointer.save(path, training.state)
                checkpointer.wait_until_finished()
            if training.done + 1 == dies and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGKILL)


def count_roots() -> Callable[[], int]:
    """From now on counts the roots that this process computes."""
    numbers, run = [], HostRoots.run

    def counted(self, item):
        numbers.append(len(item[1]))
        return run(self, item)

    HostRoots.run = counted
    return lambda: sum(numbers)


def main(
    address: str, processes: str, process: str, devices: str, result: str, *checkpoints: str
) -> None:
    """Trains, and saves what came out and how many roots were computed here."""
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        int(processes),
        int(process),
        initialization_timeout=100,
        heartbeat_timeout_seconds=20,
        cluster_detection_method="deactivate",
    )
    computed = count_roots()
    training = Training(data_mesh(jax.devices()))
    losses = training.losses()
    if checkpoints:
        losses = kept(training, checkpoints[0], int(checkpoints[1]))
    np.savez(result, losses=list(losses), roots=computed(), **training.params())
    jax.distributed.shutdown()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception:
        traceback.print_exc()
        os._exit(1)  # a regular exit would wait for the others
