"""Pairs of digits: a small convolutional network on composed pictures.

Scikit-learn's digits are too easy and too few to tell optimizers apart. Here two of them lie at
random places in one picture, overlapping at times and under noise, and the label is the pair from
left to right. Held-out pictures are composed from digits that no training picture contains.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from benchmarks.arena._workload import Workload

HEIGHT, WIDTH, SIDE = 12, 20, 8  # of a picture, of a digit
CLASSES = 10
APART = 6  # columns between the digits' corners, so that two of eight may overlap
NOISE = 0.1  # of pixels whose range is 1
TRAINING, HELD_OUT = 8192, 4096  # pictures
EPOCHS = 8
BASE = 16  # examples in the smallest batch
FEATURES = (16, 32, 64)

Params = Mapping[str, Mapping[str, jax.Array]]


class Digits(NamedTuple):
    """Single digits."""

    images: np.ndarray  # (digits, 8, 8) in [0, 1]
    labels: np.ndarray  # (digits,)


class Pictures(NamedTuple):
    """Composed pictures and what they were made of."""

    images: np.ndarray  # (pictures, 12, 20)
    labels: np.ndarray  # (pictures, 2), of the left and the right digit
    chosen: np.ndarray  # (pictures, 2), rows of the digits
    corners: np.ndarray  # (pictures, 2, 2), top and left


class Data(NamedTuple):
    """What training and scoring see."""

    images: jax.Array
    labels: jax.Array
    held_out_images: jax.Array
    held_out_labels: jax.Array


def split_digits() -> tuple[Digits, Digits]:
    """Four fifths of scikit-learn's digits for training pictures, a fifth for held-out ones."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).reshape(-1, SIDE, SIDE)
    held_out = np.arange(len(labels)) % 5 == 0
    return (
        Digits(images[~held_out], labels[~held_out]),
        Digits(images[held_out], labels[held_out]),
    )


def compose(digits: Digits, count: int, seed: int, *, noise: float = NOISE) -> Pictures:
    """Draws pairs of digits, their places and the noise; where digits overlap, ink wins."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(digits.labels), size=(count, 2))
    tops = rng.integers(HEIGHT - SIDE + 1, size=(count, 2))
    free = range(WIDTH - SIDE + 1)
    pairs = np.array([(a, b) for a in free for b in free if b - a >= APART])
    lefts = pairs[rng.integers(len(pairs), size=count)]
    corners = np.stack([tops, lefts], -1)
    images = np.zeros((count, HEIGHT, WIDTH))
    for which in range(2):
        where = _squares(corners[:, which])
        images[where] = np.maximum(images[where], digits.images[chosen[:, which]])
    images += noise * rng.normal(size=images.shape)
    return Pictures(images, digits.labels[chosen], chosen, corners)


def _squares(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of a digit's square in each picture, (pictures, 8, 8) when broadcast."""
    side = np.arange(SIDE)
    tops, lefts = corners[:, 0, None, None], corners[:, 1, None, None]
    return np.arange(len(corners))[:, None, None], tops + side[:, None], lefts + side


@cache
def data() -> Data:
    """Training and held-out pictures, centred and scaled by the training pictures' moments."""
    train, held_out = split_digits()
    seen, unseen = compose(train, TRAINING, 0), compose(held_out, HELD_OUT, 1)
    mean, deviation = seen.images.mean(), seen.images.std()

    def scaled(images: np.ndarray) -> jax.Array:
        return jnp.asarray((images - mean) / deviation, jnp.float32)

    return Data(
        scaled(seen.images),
        jnp.asarray(seen.labels, jnp.int32),
        scaled(unseen.images),
        jnp.asarray(unseen.labels, jnp.int32),
    )


def init(data: Data, seed: int) -> Params:
    """He's normal weights and zeros."""
    first, second, hidden = FEATURES
    flat = HEIGHT // 4 * (WIDTH // 4) * second
    shapes = {
        "conv1": (3, 3, 1, first),
        "conv2": (3, 3, first, second),
        "hidden": (flat, hidden),
        "head": (hidden, 2 * CLASSES),
    }
    params: dict[str, dict[str, jax.Array]] = {}
    for key, (name, shape) in zip(
        jax.random.split(jax.random.key(seed), len(shapes)), shapes.items(), strict=True
    ):
        deviation = (2 / np.prod(shape[:-1])) ** 0.5
        kernel = jax.random.normal(key, shape) * np.float32(deviation)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return params


def logits(params: Params, images: jax.Array) -> jax.Array:
    """Two convolutions of stride 2, which on a CPU cost a third of pooled ones, and two layers.

    The logits of the left and of the right digit, (pictures, 2, 10).
    """
    conv1, conv2, hidden, head = (params[name] for name in ("conv1", "conv2", "hidden", "head"))
    x = images[..., None]
    for layer in (conv1, conv2):
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["bias"][None, None, None])
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(x @ hidden["kernel"] + hidden["bias"][None])
    x = x @ head["kernel"] + head["bias"][None]
    return x.reshape(-1, 2, CLASSES)


def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy of a pair, in nats."""
    images, labels = batch
    found = logits(params, images)
    each = optax.losses.softmax_cross_entropy_with_integer_labels(found, labels)
    return each.sum(-1).mean()


def score(params: Params, data: Data) -> jax.Array:
    """Held-out pictures with a digit or two wrong, in %."""
    found = logits(params, data.held_out_images).argmax(-1)
    return 100 * jnp.mean(jnp.any(found != data.held_out_labels, -1))


def workload(batch: int, *, epochs: int = EPOCHS) -> Workload:
    """The workload at a batch size; a run sees as many examples at each.

    Args:
      batch: Examples in a batch, at most `TRAINING`.
      epochs: Passes' worth of examples, drawn with replacement.

    Returns:
      The workload, of epochs · TRAINING / batch steps.

    Raises:
      ValueError: If the batch is empty or larger than the training set, or there is no epoch.
    """
    if not 1 <= batch <= TRAINING:
        raise ValueError(f"batch is {batch}; pass 1 to {TRAINING} examples")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; pass 1 or more")

    def draw(data: Data, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.randint(key, (batch,), 0, len(data.labels))
        return data.images[rows], data.labels[rows]

    return Workload(
        title=f"CNN, pairs of digits, batch {batch}",
        steps=epochs * TRAINING // batch,
        warmup=0.1,
        decay=0.01,
        unit="held-out error, %",
        data=data,
        init=init,
        batch=draw,
        loss=loss,
        score=score,
    )


IMAGES = workload(BASE)
