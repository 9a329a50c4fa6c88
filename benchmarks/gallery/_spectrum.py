"""What Shampoo does to the spectrum of a layer's step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes

import optax_zoo as zoo
from benchmarks.gallery._digits import HIDDEN, Training

STEPS, RATE = 100, 1e-2
DEFAULTS = zoo.info("shampoo").defaults
B2, RIDGE, EPS = DEFAULTS["b2"], DEFAULTS["roots"].ridge, DEFAULTS["eps"]
COLOURS = ("0.35", "#edae49", "#d1495b")


def shampoo() -> optax.GradientTransformation:
    """With fresh roots, and without Nesterov's look ahead, so that its momentum is in its state."""
    return zoo.shampoo(RATE, nesterov=False, refresh=zoo.Refresh(every=10, delay=0, start=1))


def moments(state: Any) -> tuple[jax.Array, jax.Array]:
    """The hidden layer's momentum and Adam's second moment."""
    first, second = (optax.tree.get(state, name)[HIDDEN]["kernel"] for name in ("mu", "graft"))
    return first, second


def spectra() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Eigenvalues of the hidden layer's two statistics, singular values of three of its steps.

    The statistics are gathered beside the training, which does not give them out: the same
    average of the same gradients. All spectra fall from 1.
    """
    training = Training(shampoo())
    before, left, right = training.params, jnp.zeros((64, 64)), jnp.zeros((64, 64))
    for step in range(STEPS):
        before = jax.tree.map(jnp.copy, training.params)
        g = training.gradient(before, step)[HIDDEN]["kernel"]
        left, right = B2 * left + (1 - B2) * g @ g.T, B2 * right + (1 - B2) * g.T @ g
        training.until(step + 1)
    momentum, second_moment = moments(training.state)
    weight = 1 - B2**STEPS
    statistics = {"left, 64 inputs": left, "right, 64 outputs": right}
    directions = {
        "momentum": momentum,
        "Adam's step": momentum / (jnp.sqrt(second_moment / weight) + EPS),
        "Shampoo's step": training.params[HIDDEN]["kernel"] - before[HIDDEN]["kernel"],
    }
    return _relative(statistics), _relative(directions)


def _relative(matrices: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Singular values, which of a statistic are its eigenvalues, over the largest."""
    found = {
        name: np.linalg.svd(np.asarray(x, float), compute_uv=False) for name, x in matrices.items()
    }
    return {name: values / values[0] for name, values in found.items()}


def draw(file: Path) -> None:
    """Statistics beside steps."""
    statistics, directions = spectra()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
    _lines(left, statistics, ("#00798c", "#66618c"))
    left.axhline(RIDGE, color="0.5", linewidth=1, linestyle=":")
    left.annotate(
        "ridge", (1, RIDGE), xytext=(0, 4), textcoords="offset points", fontsize=9, color="0.35"
    )
    left.set_title("eigenvalues of the statistics", fontsize=10)
    left.set_ylim(1e-7, 2)
    _lines(right, directions, COLOURS)
    right.set_title("singular values of the step", fontsize=10)
    right.set_ylim(1e-3, 1.5)
    figure.suptitle(
        f"Shampoo on a hidden layer of 64 × 64, handwritten digits, step {STEPS}", fontsize=11
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _lines(axes: Axes, spectra: Mapping[str, np.ndarray], colours: tuple[str, ...]) -> None:
    for (name, values), colour in zip(spectra.items(), colours, strict=True):
        axes.semilogy(np.arange(1, len(values) + 1), values, color=colour, linewidth=2, label=name)
    axes.set_xlabel("number, by size")
    axes.set_ylabel("over the largest")
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
