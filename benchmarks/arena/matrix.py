"""A matrix between two badly conditioned ones: curvature alone, no noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.arena._workload import Workload

ORDER, CONDITION = 64, 100.0


class Problem(NamedTuple):
    """The matrices of ‖AWB − C‖², each (64, 64)."""

    a: jax.Array
    b: jax.Array
    c: jax.Array


def conditioned(rng: np.random.Generator, n: int, condition: float) -> np.ndarray:
    """A random matrix whose singular values from 1 down to 1/condition are log-spaced."""
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return (left * np.geomspace(1, 1 / condition, n)) @ right


def data() -> Problem:
    """C = A X B for a random X, so that the least loss is 0."""
    rng = np.random.default_rng(0)
    a, b = conditioned(rng, ORDER, CONDITION), conditioned(rng, ORDER, CONDITION)
    c = a @ rng.normal(size=(ORDER, ORDER)) @ b
    return Problem(*(jnp.asarray(x, jnp.float32) for x in (a, b, c)))


def init(_: Problem, seed: int) -> dict[str, jax.Array]:
    """W ~ N(0, 1/64)."""
    w = np.random.default_rng(seed).normal(size=(ORDER, ORDER)) / ORDER**0.5
    return {"w": jnp.asarray(w, jnp.float32)}


def batch(data: Problem, _: jax.Array) -> Problem:
    """All of it."""
    return data


def loss(params: Any, problem: Problem) -> jax.Array:
    """‖AWB − C‖²/‖C‖²."""
    residual = problem.a @ params["w"] @ problem.b - problem.c
    return (residual**2).sum() / (problem.c**2).sum()


MATRIX = Workload(
    title="matrix least squares, condition 100 a side",
    steps=500,
    warmup=0.2,
    decay=0.0,
    unit="share of ‖C‖² left",
    data=data,
    init=init,
    batch=batch,
    loss=loss,
    score=loss,
)
