"""The field of Lion's steps beside the gradient's."""

from pathlib import Path as File
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optax_zoo as zoo
from benchmarks.gallery._landscapes import LANDSCAPES
from benchmarks.gallery._paths import Path
from benchmarks.gallery._sheet import ground, save, trail

ARROWS = 19  # a side
ROSENBROCK = LANDSCAPES[0]


def slopes(points: np.ndarray) -> jax.Array:
    """The gradients at points, (n, 2)."""
    return jax.vmap(jax.grad(ROSENBROCK.height))(jnp.asarray(points))


def steps(points: np.ndarray) -> Any:
    """Lion's first steps at the rate 1 from points, when there is no momentum yet."""
    lion = zoo.lion(1.0, weight_decay=0.0)
    return jax.vmap(lambda g: lion.update(g, lion.init(g))[0])(slopes(points))


def draw(sgd: Path, lion: Path, file: File) -> None:
    """Both fields, each with the tuned path of the optimizer that follows it."""
    points = _grid(ARROWS)
    downhill = -slopes(points)
    downhill /= jnp.linalg.norm(downhill, axis=1, keepdims=True)
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.85))
    figure.subplots_adjust(0.008, 0.01, 0.992, 0.93, 0.025)
    titles = ("downhill, and momentum SGD's path", "Lion without momentum, and Lion's path")
    fields, paths = (downhill, steps(points) / 2**0.5), (sgd, lion)
    for axes, title, field, path in zip(panels, titles, fields, paths, strict=True):
        ground(axes, ROSENBROCK, count=300)
        axes.quiver(
            *points.T, *np.asarray(field).T, angles="xy", pivot="mid", scale=25, width=0.004,
            color="#2b5d70",
        )  # fmt: skip
        trail(axes, ROSENBROCK, path, width=2.4)
        axes.set_title(title, fontsize=10.5)
    x, y, _ = ROSENBROCK.grid(200)
    for slope in np.asarray(slopes(_grid(200))).T:
        # Where it is 0, a coordinate of Lion's step flips.
        line = panels[1].contour(x, y, slope.reshape(x.shape), [0], colors="black", zorder=1.5)
        line.set(linewidth=1.0, linestyle="--")
    panels[1].text(0.06, 2.72, "a sign flips", fontsize=9, backgroundcolor="#f1f6f8")
    save(figure, file)


def _grid(count: int) -> np.ndarray:
    x, y, _ = ROSENBROCK.grid(count)
    return np.stack([x.ravel(), y.ravel()], axis=1)
