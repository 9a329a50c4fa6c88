"""Amos on handwritten digits, nothing tuned: no decay, no schedule but a warm-up.

    python -m benchmarks.amos_digits
    python -m benchmarks.amos_digits --seeds 0 1 2 3 4 --warmup-epochs 0

Scikit-learn's 1,797 digits of 8 × 8 pixels, a fifth held out, and a small convolutional network in
Flax. What Amos asks for follows from data and model: the learning rate is 1/sqrt(N) for N batches,
beta 1 minus that, scales and slots are `zoo.flax_scales` and `zoo.flax_slots`. The warm-up is that
of the authors' own example. AdamW runs beside it at two constant learning rates.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_zoo as zoo

TRAINING = 1437  # digits, four fifths of all


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains the network once per optimizer and seed."""

    epochs: int = 20
    """Passes over the 1,437 training digits."""
    batch: int = 16
    """Digits in a batch."""
    warmup_epochs: int = 2
    """Epochs over which Amos's learning rate rises from 0."""
    rates: tuple[float, ...] = (1e-3, 3e-3)
    """Learning rates of AdamW."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the split, the weights and the batches."""


class Network(linen.Module):
    """Two convolutions and two dense layers."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(linen.Conv(16, (3, 3))(x))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        x = linen.relu(linen.Conv(32, (3, 3))(x))
        x = linen.relu(linen.Dense(64)(x.reshape(len(x), -1)))
        return linen.Dense(10, name="head")(x)


def logits_of(params: Any, images: jax.Array) -> Any:
    """The network's outputs, (images, 10)."""
    return Network().apply(params, images)


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    logits = logits_of(params, images)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def accuracy(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the digits that are recognised."""
    return jnp.mean(jnp.argmax(logits_of(params, images), -1) == labels)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(tx, params, state, images, labels):
    """One step on a batch; not in a scan, in which XLA's convolutions on CPU are slow."""
    grads = jax.grad(loss)(params, images, labels)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def digits(seed: int) -> tuple[jax.Array, ...]:
    """Training and test images of zero mean and unit size, training and test labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    parts = train_test_split(
        images.reshape(-1, 8, 8, 1).astype(np.float32),
        labels.astype(np.int32),
        test_size=0.2,
        random_state=seed,
        stratify=labels,
    )
    return tuple(map(jnp.asarray, parts))


def run(tx: optax.GradientTransformation, settings: Settings, seed: int) -> float:
    """Test accuracy after the last epoch."""
    train_images, test_images, train_labels, test_labels = digits(seed)
    params = Network().init(jax.random.key(seed), train_images[:1])
    state = tx.init(params)
    rng = np.random.default_rng(seed)
    batches = len(train_images) // settings.batch
    for _ in range(settings.epochs):
        order = rng.permutation(len(train_images))[: batches * settings.batch]
        for chosen in order.reshape(batches, settings.batch):
            params, state = step(tx, params, state, train_images[chosen], train_labels[chosen])
    return float(accuracy(params, test_images, test_labels))


def main(settings: Settings) -> None:
    """Prints the accuracies."""
    console = Console()
    batches = TRAINING // settings.batch
    rate = 1 / math.sqrt(batches)
    warmup = max(settings.warmup_epochs * batches, 1)

    def schedule(step):
        return rate * jnp.minimum(step / warmup, 1)

    amos = partial(zoo.amos, schedule, zoo.flax_scales, zoo.flax_slots, beta=1 - rate)
    contestants: dict[str, Callable[[], optax.GradientTransformation]] = {
        f"amos, {rate:.2g}": amos,
        f"amos, {rate:.2g}, momentum 0.9": partial(amos, momentum=0.9),
    }
    for adamw_rate in settings.rates:
        contestants[f"adamw, {adamw_rate:g}"] = partial(optax.adamw, adamw_rate)
    table = Table("optimizer, learning rate", "test accuracy, mean", "each seed")
    for name, make in track(contestants.items(), "training", console=console):
        tx = make()
        found = [100 * run(tx, settings, seed) for seed in settings.seeds]
        table.add_row(name, f"{np.mean(found):.2f} %", "  ".join(f"{x:.2f}" for x in found))
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
