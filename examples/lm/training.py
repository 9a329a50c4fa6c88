"""The training loop: a pure step, evaluations, metrics, checkpoints and a clean stop."""

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import ArrayLike
from rich.console import Console

from lm import DivergedError
from lm.data import Corpus, even_windows, random_windows
from lm.model import ByteTransformer, next_byte_loss
from lm.optimizers import check_update, make_optimizer, root_status, warmup_cosine
from lm.progress import Reporter
from lm.run_folder import Row, RunFolder
from lm.settings import Settings

EVALUATION_BATCH = 16


class TrainState(NamedTuple):
    """All that a step reads and writes."""

    params: nnx.State
    opt_state: optax.OptState


class Training(NamedTuple):
    """A run's first state, its compiled functions and its learning rates."""

    state: TrainState
    step: Callable[[TrainState, ArrayLike], tuple[TrainState, jax.Array]]
    evaluate: Callable[[nnx.State, ArrayLike], jax.Array]
    learning_rates: np.ndarray  # (steps,)

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))


def prepare(settings: Settings) -> Training:
    """Builds model, optimizer and step for `settings`, which are resolved."""
    assert settings.learning_rate is not None
    assert settings.warmup is not None
    rngs = nnx.Rngs(settings.seed)
    model = ByteTransformer(settings.width, settings.layers, settings.heads, rngs=rngs)
    graph, params = nnx.split(model)
    schedule = warmup_cosine(settings.learning_rate, settings.warmup, settings.steps)
    optimizer = make_optimizer(
        settings.optimizer,
        schedule,
        peak=settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )
    check_update(settings.optimizer, optimizer, params)

    def loss(params: nnx.State, windows: jax.Array) -> jax.Array:
        return next_byte_loss(nnx.merge(graph, params), windows)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, windows: jax.Array) -> tuple[TrainState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state.params, windows)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = cast(nnx.State, optax.apply_updates(state.params, updates))
        return TrainState(params, opt_state), value

    @jax.jit
    def evaluate(params: nnx.State, windows: jax.Array) -> jax.Array:
        losses = jax.lax.map(
            lambda window: loss(params, window[None]), windows, batch_size=EVALUATION_BATCH
        )
        return losses.mean()

    learning_rates = np.asarray(jax.vmap(schedule)(np.arange(settings.steps)))
    return Training(TrainState(params, optimizer.init(params)), step, evaluate, learning_rates)


def train(
    settings: Settings,
    training: Training,
    corpus: Corpus,
    folder: RunFolder,
    console: Console,
    stop: threading.Event,
) -> None:
    """Goes on from the last checkpoint to the last step, or until `stop`; saves where it ends."""
    assert settings.eval_every is not None
    held_out_windows = even_windows(corpus.held_out, settings.eval_windows, settings.context)
    with folder.checkpoints() as checkpoints:
        done = checkpoints.latest_step() or 0
        state = training.state
        if done:
            restored = checkpoints.restore(done, args=ocp.args.StandardRestore(state))
            state = TrainState(*restored)
        rows = folder.keep_rows(done)
        begun = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
        with Reporter(console, settings.optimizer, settings.steps, done) as reporter:
            for step in range(done + 1, settings.steps + 1):
                windows = random_windows(
                    corpus.train, settings.seed, step, settings.batch, settings.context
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
                seconds = time.perf_counter() - begun
                row = metrics(training, step, train_loss, held_out_loss, rate, seconds)
                folder.append(row)
                reporter.show(row, root_status(state.opt_state))
                stopping = stop.is_set()
                if evaluating or stopping:
                    checkpoints.save(step, args=ocp.args.StandardSave(state))
                if stopping:
                    break


def metrics(
    training: Training,
    step: int,
    train_loss: float,
    held_out_loss: float | None,
    tokens_per_second: float,
    seconds: float,
) -> Row:
    """The row of one step."""
    return {
        "step": step,
        **_losses("train", train_loss),
        **_losses("held_out", held_out_loss),
        "learning_rate": float(training.learning_rates[step - 1]),
        "tokens_per_second": round(tokens_per_second, 1),
        "seconds": round(seconds, 3),
    }


def _losses(split: str, nats: float | None) -> Row:
    bits = None if nats is None else nats / math.log(2)
    return {f"{split}_loss": nats, f"{split}_bits_per_byte": bits}


def finite(loss: float, settings: Settings, step: int) -> float:
    """The loss; raises a DivergedError where it is none."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"--learning-rate {settings.learning_rate:g}: {settings.optimizer}'s loss is {loss} "
            f"at step {step}; use a lower one, or --clip-norm 1"
        )
    return loss
