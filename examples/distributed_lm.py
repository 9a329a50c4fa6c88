"""Trains the language model of `train_lm.py` on the devices of many processes.

To try it on one machine, with two processes that share its CPU:

    python examples/distributed_lm.py --local 2 --steps 200

On a cluster, the same command on every host, with its own number in place of I; process 0 runs on
HOST and listens at PORT:

    python examples/distributed_lm.py --coordinator HOST:PORT --processes N --process I

Where JAX finds the cluster by itself (Cloud TPU, SLURM, Open MPI, Kubernetes), leave the three out.
All hosts see the same --out folder and have the same text.

Parameters, moments and batch are divided over all devices, along one mesh axis, and so are
Shampoo's blocks: each host computes the roots of the blocks that its devices own. Metrics and
messages come from process 0; every process writes its part of the checkpoints.

After Ctrl-C, or a SIGTERM to any of them, all processes end at the same step with a checkpoint.
When one dies, the others end with exit code 1: at once where the connection breaks under them,
after --heartbeat seconds where a host falls silent. Either way, start all again with --resume, with
as many processes as before or with others.
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

import optax_zoo as zoo
from lm import UsageError
from lm.cluster import Cluster
from lm.data import Corpus, check_length, even_windows, load_corpus, random_windows
from lm.model import ByteTransformer, next_byte_loss
from lm.optimizers import check_update, make_optimizer, root_status, warmup_cosine
from lm.processes import FAILED, STOPPED, USAGE, run_workers
from lm.progress import Reporter
from lm.run_folder import RunFolder
from lm.settings import Settings
from lm.training import Training, TrainState, finite, metrics

KIND = "distributed_lm"


@dataclasses.dataclass(frozen=True)
class DistributedSettings(Settings):
    """Trains a byte-level Transformer language model on the devices of many processes."""

    optimizer: str = "shampoo"
    """Name of the optimizer, looked up in optax_zoo first, then in optax."""
    batch: int = 8
    """Windows per step over all processes, a multiple of the number of devices."""
    compare: tyro.conf.Suppress[str] = ""
    out: Path = Path("runs/distributed_lm")
    """Folder for metrics and checkpoints, the same one for all processes."""
    cluster: tyro.conf.OmitArgPrefixes[Cluster] = dataclasses.field(default_factory=Cluster)

    def identity(self) -> dict[str, Any]:
        """What must be the same for one run to continue another, whoever computes it."""
        return {key: value for key, value in super().identity().items() if key != "cluster"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    settings = tyro.cli(DistributedSettings, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        settings.check()
        cluster = settings.cluster
        cluster.check()
        count = cluster.local or cluster.processes or 1
        check_shares(settings.batch, settings.eval_windows, count, "processes")
        settings = settings.resolved()
        folder = RunFolder(settings.out, KIND)
        if settings.resume:
            folder.resume(settings.identity())
        else:
            folder.check_free(overwrite=settings.overwrite)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    processes = {
        "this process" if one.process is None else f"process {one.process}": (settings, one)
        for one in cluster.workers()
    }
    code, message = run_workers(work, processes, patience=2 * cluster.heartbeat)
    if message:
        print(message, file=sys.stderr)
    if code in (STOPPED, FAILED):
        if folder.config() is not None:
            arguments = [a for a in arguments if a not in ("--overwrite", "--resume")]
            arguments.append("--resume")
        command = shlex.join([sys.executable, sys.argv[0], *arguments])
        everywhere = "" if cluster.local else ", and likewise on every other host"
        print(f"stopped; continue with: {command}{everywhere}", file=sys.stderr)
    return code


def work(settings: DistributedSettings, process: Cluster) -> int:
    """Trains in one of the processes; returns its exit code."""
    corpus = load_corpus(settings.text, without=settings.out)
    check_length(corpus, settings.context)
    process.connect()
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    finished = run(settings, corpus, mesh)
    jax.distributed.shutdown()
    return 0 if finished else STOPPED


def run(settings: DistributedSettings, corpus: Corpus, mesh: Mesh) -> bool:
    """Trains on a mesh, as all its processes do; tells whether the last step was reached."""
    held_out = even_windows(corpus.held_out, settings.eval_windows, settings.context)
    check_shares(settings.batch, len(held_out), mesh.size, "devices")
    training = prepare(settings, mesh)
    folder = open_folder(settings, corpus)
    console = Console(quiet=jax.process_index() > 0)
    console.print(
        f"{settings.optimizer}: {training.parameters():,} parameters on {mesh.size} devices of "
        f"{jax.process_count()} processes, {corpus.train.size:,} bytes of {corpus.source}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return train(settings, training, corpus.train, held_out, folder, mesh, console)


def check_shares(batch: int, eval_windows: int, count: int, what: str) -> None:
    """Raises a UsageError unless every device gets as much."""
    for name, windows in {"--batch": batch, "--eval-windows": eval_windows}.items():
        if windows % count:
            raise UsageError(f"{name} {windows}: must be a multiple of the {count} {what}")


def open_folder(settings: DistributedSettings, corpus: Corpus) -> RunFolder:
    """Process 0 begins or continues the run; the others see that it is theirs."""
    folder = RunFolder(settings.out, KIND)
    config = {**settings.identity(), "text": corpus.fingerprint()}
    if settings.resume:
        folder.resume(config)
    elif jax.process_index() == 0:
        folder.begin(config, overwrite=settings.overwrite)
    multihost_utils.sync_global_devices("the folder is there")
    if folder.config() is None:
        raise UsageError(
            f"--out {folder.name}: process {jax.process_index()} does not see the folder that "
            "process 0 has made; choose one on a file system that all hosts share"
        )
    folder.resume(config)
    return folder


def optimizer_on(settings: Settings, mesh: Any) -> tuple[optax.GradientTransformation, Any]:
    """The optimizer of a mesh's devices, and its schedule."""
    assert settings.learning_rate is not None
    assert settings.warmup is not None
    schedule = warmup_cosine(settings.learning_rate, settings.warmup, settings.steps)
    optimizer = make_optimizer(
        settings.optimizer,
        schedule,
        peak=settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        mesh=mesh,
    )
    return optimizer, schedule


def fully_sharded(x: Any, mesh: Mesh) -> NamedSharding:
    """Divides a matrix along the first axis that has a multiple of the devices, if there is one."""
    axes = (i for i, n in enumerate(x.shape) if x.ndim > 1 and n % mesh.size == 0)
    axis = next(axes, None)
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")
    return NamedSharding(mesh, spec)


def prepare(settings: Settings, mesh: Mesh) -> Training:
    """Builds model, optimizer and step, divided over the mesh's devices."""
    optimizer, schedule = optimizer_on(settings, mesh)

    def model() -> ByteTransformer:
        rngs = nnx.Rngs(settings.seed)
        return ByteTransformer(settings.width, settings.layers, settings.heads, rngs=rngs)

    graph, shapes = nnx.split(nnx.eval_shape(model))
    check_update(settings.optimizer, optimizer, shapes)

    def divided(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, fully_sharded(x, mesh))

    @jax.jit
    def first_state() -> TrainState:
        params = jax.tree.map(divided, nnx.state(model()))
        opt_state = optax.tree.map_params(optimizer, divided, optimizer.init(params))
        return TrainState(params, opt_state)

    def loss(params: nnx.State, windows: jax.Array) -> jax.Array:
        gathered = jax.lax.with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))
        return next_byte_loss(nnx.merge(graph, gathered), windows)

    state = first_state()
    shardings = jax.tree.map(lambda x: x.sharding, state)

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def step(state: TrainState, windows: jax.Array) -> tuple[TrainState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state.params, windows)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = cast(nnx.State, optax.apply_updates(state.params, updates))
        return TrainState(params, opt_state), value

    learning_rates = np.asarray(jax.vmap(schedule)(np.arange(settings.steps)))
    return Training(state, step, jax.jit(loss), learning_rates)


def save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, mesh: Mesh) -> None:
    """Every process writes its part."""
    devices = {"devices": mesh.size}
    checkpoints.save(step, args=ocp.args.StandardSave(state), custom_metadata=devices)


def restored(
    checkpoints: ocp.CheckpointManager, step: int, settings: Settings, state: TrainState, mesh: Mesh
) -> TrainState:
    """A checkpoint on this mesh's devices, whatever number of them has written it."""
    written_by: Any = checkpoints.metadata(step).custom_metadata
    then, saved = written_by["devices"], state
    if then != mesh.size:  # Shampoo's blocks lie otherwise in its state
        was, _ = optimizer_on(settings, jax.sharding.AbstractMesh((then,), ("data",)))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=fully_sharded(x, mesh)),
            jax.eval_shape(was.init, state.params),
        )
        saved = TrainState(state.params, shapes)
    params, opt_state = cast(
        TrainState, checkpoints.restore(step, args=ocp.args.StandardRestore(saved))
    )
    return TrainState(params, zoo.reshard(opt_state, state.opt_state))


def train(
    settings: Settings,
    training: Training,
    text: np.ndarray,
    held_out: np.ndarray,
    folder: RunFolder,
    mesh: Mesh,
    console: Console,
) -> bool:
    """Goes on from the last checkpoint; tells whether it came to the last step."""
    assert settings.eval_every is not None
    first = jax.process_index() == 0
    data = NamedSharding(mesh, PartitionSpec("data"))
    width = settings.context + 1

    def spread(count: int, read: Callable[[slice], np.ndarray]) -> jax.Array:
        """(count, width) over all devices; a process reads the rows of its own."""

        def shard(index: Any) -> np.ndarray:
            return read(index[0])

        return jax.make_array_from_callback((count, width), data, shard)

    held_out_windows = spread(len(held_out), held_out.__getitem__)
    with folder.checkpoints() as checkpoints:
        done = checkpoints.latest_step() or 0
        state = training.state
        if done:
            state = restored(checkpoints, done, settings, state, mesh)
        rows = folder.keep_rows(done) if first else []
        begun = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
        with Reporter(console, settings.optimizer, settings.steps, done) as reporter:
            for step in range(done + 1, settings.steps + 1):
                windows = spread(
                    settings.batch,
                    partial(random_windows, text, settings.seed, step, settings.batch, width - 1),
                )
                step_begun = time.perf_counter()
                state, loss = training.step(state, windows)
                train_loss = finite(float(loss), settings, step)
                rate = settings.batch * settings.context / (time.perf_counter() - step_begun)
                evaluating = step % settings.eval_every == 0 or step == settings.steps
                held_out_loss = None
                if evaluating:
                    loss = training.evaluate(state.params, held_out_windows)
                    held_out_loss = finite(float(loss), settings, step)
                if first:
                    seconds = time.perf_counter() - begun
                    row = metrics(training, step, train_loss, held_out_loss, rate, seconds)
                    folder.append(row)
                    reporter.show(row, root_status(state.opt_state))
                stopping = multihost_utils.reached_preemption_sync_point(step)
                if evaluating or stopping:
                    save(checkpoints, step, state, mesh)
                if stopping:
                    return step == settings.steps
    return True


if __name__ == "__main__":
    sys.exit(main())
