"""A deep autoencoder of drawn curves: narrow, badly conditioned, no noise but the batches'."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.arena._workload import Workload

SIZES = (256, 200, 100, 50, 25, 6, 25, 50, 100, 200, 256)
CODE = 5  # the layer whose output is linear, as the last one's
BATCH = 500


def pictures(seed: int = 0, count: int = 10_000, side: int = 16) -> np.ndarray:
    """Quadratic Bézier curves drawn softly into squares, (count, side²) in [0, 1]."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.15, 0.85, (count, 3, 2))
    t = np.linspace(0, 1, 24)[:, None]
    curve = (
        (1 - t) ** 2 * points[:, None, 0]
        + 2 * t * (1 - t) * points[:, None, 1]
        + t**2 * points[:, None, 2]
    )  # (count, 24, 2)
    grid = (np.arange(side) + 0.5) / side
    squares = [np.exp(-(((curve[..., axis, None] - grid) * side) ** 2) / 2) for axis in (0, 1)]
    drawn = np.einsum("nti,ntj->nij", *squares) / 3
    return np.clip(drawn, 0, 1).reshape(count, side * side).astype(np.float32)


def data() -> jax.Array:
    """10,000 pictures."""
    return jnp.asarray(pictures())


def init(_: jax.Array, seed: int) -> dict[str, dict[str, jax.Array]]:
    """Weights N(0, 1/fan_in), biases 0."""
    rng = np.random.default_rng(seed)
    return {
        f"layer_{number}": {
            "kernel": jnp.asarray(rng.normal(size=(i, o)) / i**0.5, jnp.float32),
            "bias": jnp.zeros(o),
        }
        for number, (i, o) in enumerate(itertools.pairwise(SIZES), 1)
    }


def batch(data: jax.Array, key: jax.Array) -> jax.Array:
    """500 pictures drawn with replacement."""
    return data[jax.random.randint(key, (BATCH,), 0, len(data))]


def loss(params: Any, x: jax.Array) -> jax.Array:
    """Cross-entropy above its floor, summed over pixels, averaged over the batch."""
    h = x
    for number in range(1, len(SIZES)):
        layer = params[f"layer_{number}"]
        h = h @ layer["kernel"] + layer["bias"][None]
        h = h if number in (CODE, len(SIZES) - 1) else jnp.tanh(h)
    entropy = jax.scipy.special.xlogy(x, x) + jax.scipy.special.xlogy(1 - x, 1 - x)
    return (optax.losses.sigmoid_binary_cross_entropy(h, x) + entropy).sum(-1).mean()


AUTOENCODER = Workload(
    title="autoencoder of 16 × 16 curves",
    steps=1000,
    warmup=0.2,
    decay=0.0,
    unit="cross-entropy above its floor",
    data=data,
    init=init,
    batch=batch,
    loss=loss,
    score=loss,
)
