"""A small network on scikit-learn's handwritten digits."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

WIDTHS = (64, 64, 64, 10)
HIDDEN = "layer_2"  # between the two hidden layers
BATCH = 64


def data() -> tuple[jax.Array, jax.Array]:
    """All 1797 digits, pixels in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels)


def initial() -> dict[str, dict[str, jax.Array]]:
    """Kernels N(0, 2/fan_in), biases 0."""
    rng = np.random.default_rng(0)
    return {
        f"layer_{number}": {
            "kernel": jnp.asarray(rng.normal(size=(i, o)) * (2 / i) ** 0.5, jnp.float32),
            "bias": jnp.zeros(o),
        }
        for number, (i, o) in enumerate(itertools.pairwise(WIDTHS), 1)
    }


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    for number in range(1, len(WIDTHS)):
        layer = params[f"layer_{number}"]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jax.nn.relu(x) if number < len(WIDTHS) - 1 else x
    return optax.losses.softmax_cross_entropy_with_integer_labels(x, y).mean()


class Training:
    """Steps on random batches, as many at once as wanted."""

    def __init__(self, optimizer: optax.GradientTransformation):
        digits = data()

        def gradient(params, step):
            rows = jax.random.randint(jax.random.key(step), (BATCH,), 0, len(digits[0]))
            return jax.grad(loss)(params, *(part[rows] for part in digits))

        def step(number, carry):
            params, state = carry
            updates, state = optimizer.update(gradient(params, number), state, params)
            return optax.apply_updates(params, updates), state

        @partial(jax.jit, donate_argnums=2)
        def advance(first, last, carry):
            return jax.lax.fori_loop(first, last, step, carry)

        self._advance, self.gradient = advance, jax.jit(gradient)
        self.steps, self.params = 0, initial()
        self.state = jax.jit(optimizer.init)(self.params)

    def until(self, steps: int) -> None:
        """Trains until that many steps are done in all."""
        carry = self.params, self.state
        self.params, self.state = self._advance(self.steps, steps, carry)
        self.steps = steps
