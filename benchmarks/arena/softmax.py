"""Softmax regression on inputs of condition 300."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.arena._workload import Workload

INPUTS, CLASSES, CONDITION, EXAMPLES, BATCH = 128, 32, 300.0, 20_000, 256


class Examples(NamedTuple):
    """Inputs (20000, 128) and the teacher's logits (20000, 32)."""

    inputs: jax.Array
    logits: jax.Array


def data() -> Examples:
    """A linear teacher, to which every direction of the inputs matters alike."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(EXAMPLES, INPUTS))
    logits = z @ rng.normal(size=(INPUTS, CLASSES)) * (2 / INPUTS**0.5)
    rotation = np.linalg.qr(rng.normal(size=(INPUTS, INPUTS)))[0]
    inputs = (z * np.geomspace(1, 1 / CONDITION, INPUTS)) @ rotation
    return Examples(jnp.asarray(inputs, jnp.float32), jnp.asarray(logits, jnp.float32))


def init(_: Examples, seed: int) -> dict[str, jax.Array]:
    """Weights N(0, 1/128), biases 0."""
    kernel = np.random.default_rng(seed).normal(size=(INPUTS, CLASSES)) / INPUTS**0.5
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}


def batch(data: Examples, key: jax.Array) -> Examples:
    """256 examples drawn with replacement."""
    rows = jax.random.randint(key, (BATCH,), 0, EXAMPLES)
    return Examples(data.inputs[rows], data.logits[rows])


def loss(params: Any, examples: Examples) -> jax.Array:
    """The teacher's divergence from the model: cross-entropy above its floor."""
    logits = examples.inputs @ params["kernel"] + params["bias"][None]
    targets = jax.nn.softmax(examples.logits)
    return optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets).mean()


SOFTMAX = Workload(
    title="softmax regression, condition 300",
    steps=500,
    warmup=0.2,
    decay=0.0,
    unit="cross-entropy above its floor",
    data=data,
    init=init,
    batch=batch,
    loss=loss,
    score=loss,
)
