"""A small Transformer on the bytes of Python's standard library."""

import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from benchmarks.arena._workload import Workload

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 96, 4, 2, 64, 16
HELD_OUT_EVERY, HELD_OUT_WINDOWS = 20, 1024
_TESTS = {"site-packages", "test", "tests", "idle_test", "__pycache__"}


class Text(NamedTuple):
    """Training bytes, (bytes,), and held-out windows, (windows, 65), both uint8."""

    train: jax.Array
    held_out: jax.Array


def data() -> Text:
    """Every twentieth file is held out, and read in windows that cover it evenly."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path for path in root.rglob("*.py") if _TESTS.isdisjoint(path.relative_to(root).parts)
    )
    sides: tuple[list[bytes], list[bytes]] = [], []
    for number, path in enumerate(files, 1):
        sides[number % HELD_OUT_EVERY == 0].append(path.read_bytes())
    train, held_out = (np.frombuffer(b"\0".join(side), np.uint8) for side in sides)
    windows = np.lib.stride_tricks.sliding_window_view(held_out, CONTEXT + 1)
    chosen = np.linspace(0, len(windows) - 1, HELD_OUT_WINDOWS).astype(int)
    return Text(jnp.asarray(train), jnp.asarray(windows[chosen]))


class Block(linen.Module):
    """Attention and a network of one hidden layer, each normalised first and added."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = linen.make_causal_mask(x[..., 0])
        attention = linen.MultiHeadDotProductAttention(HEADS, use_bias=False, name="attention")
        x = x + attention(linen.LayerNorm(use_bias=False)(x), mask=mask)
        hidden = linen.Dense(4 * WIDTH, use_bias=False)(linen.LayerNorm(use_bias=False)(x))
        return x + linen.Dense(WIDTH, use_bias=False)(linen.gelu(hidden))


class Transformer(linen.Module):
    """Bytes (batch, time) -> logits of the next byte (batch, time, 256)."""

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        small = linen.initializers.normal(0.02)
        places = self.param("positions", small, (CONTEXT, WIDTH))
        x = linen.Embed(256, WIDTH, embedding_init=small)(tokens) + places[None]
        for _ in range(LAYERS):
            x = Block()(x)
        x = linen.LayerNorm(use_bias=False)(x)
        return linen.Dense(256, use_bias=False, name="head")(x)


def init(_: Text, seed: int) -> Any:
    """Flax's own initial values, embeddings N(0, 0.02²)."""
    return Transformer().init(jax.random.key(seed), jnp.zeros((1, CONTEXT), jnp.int32))["params"]


def batch(data: Text, key: jax.Array) -> jax.Array:
    """16 windows of 65 bytes."""
    starts = jax.random.randint(key, (BATCH, 1), 0, len(data.train) - CONTEXT)
    return data.train[starts + jnp.arange(CONTEXT + 1)[None]]


def loss(params: Any, windows: jax.Array) -> jax.Array:
    """Nats per byte, each byte predicted from those before it in its window."""
    tokens = windows.astype(jnp.int32)
    logits: Any = Transformer().apply({"params": params}, tokens[:, :-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def score(params: Any, data: Text) -> jax.Array:
    """The loss on the held-out windows."""
    parts = data.held_out.reshape(-1, 4 * BATCH, CONTEXT + 1)
    return jax.lax.map(lambda windows: loss(params, windows), parts).mean()


LANGUAGE_MODEL = Workload(
    title="language model over bytes",
    steps=400,
    warmup=0.2,
    decay=0.1,
    unit="nats per held-out byte",
    data=data,
    init=init,
    batch=batch,
    loss=loss,
    score=score,
)
