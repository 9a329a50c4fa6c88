"""The contact sheet: a row of landscapes for each optimizer."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path as File

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.gallery._landscapes import Landscape
from benchmarks.gallery._paths import STEPS, Path

GROUND = LinearSegmentedColormap.from_list("ground", ["#a9c6d3", "#f6f9fa"])
PIXEL = 1e-2  # at most, in the landscapes' units
STEP_COLOURS = LinearSegmentedColormap.from_list(
    "steps", plt.get_cmap("plasma")(np.linspace(0, 0.8))
)


def ground(axes: Axes, landscape: Landscape, count: int = 150, shades: int = 9) -> None:
    """The landscape, darker where it is lower, in steps of the logarithm of its height."""
    x, y, heights = landscape.grid(count)
    top = np.log10(heights.max())
    levels = np.linspace(top - 4, top, shades)
    axes.contourf(x, y, np.log10(heights + 1e-9), [-10, *levels], cmap=GROUND, vmin=levels[0] - 0.5)
    axes.contour(
        x, y, np.log10(heights + 1e-9), levels, colors="#7fa3b3", linewidths=0.3, linestyles="solid"
    )
    axes.set(xlim=landscape.x, ylim=landscape.y, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def trail(axes: Axes, landscape: Landscape, path: Path, width: float = 1.2) -> None:
    """A path, coloured by its steps, from the start towards the minima."""
    steps = len(path.points) - 1
    segments = np.stack([path.points[:-1], path.points[1:]], axis=1)
    # The root, as the first steps are the longest.
    colours = np.sqrt(np.arange(steps) / steps)
    line = LineCollection(list(segments), array=colours, cmap=STEP_COLOURS, linewidths=width)
    line.set_capstyle("round")
    axes.add_collection(line)
    axes.plot(*landscape.start, "o", markersize=3.5, color="black", markerfacecolor="white")
    for minimum in landscape.minima:
        axes.plot(*minimum, "*", markersize=6.5, color="black", markeredgecolor="white", mew=0.5)


def alike(paths: Mapping[str, Sequence[Path]]) -> dict[str, Sequence[Path]]:
    """The same with optimizers together whose paths no eye could tell apart."""
    together: dict[str, list[str]] = {}
    for name, own in paths.items():
        points = np.stack([path.points for path in own])
        same = (
            first
            for first in together
            if np.abs(points - np.stack([path.points for path in paths[first]])).max() < PIXEL
        )
        together.setdefault(next(same, name), []).append(name)
    return {", ".join(names): paths[first] for first, names in together.items()}


def draw(paths: Mapping[str, Sequence[Path]], landscapes: Sequence[Landscape], file: File) -> None:
    """Two columns of optimizers."""
    shown = alike(paths)
    rows, panels = -(-len(shown) // 2), len(landscapes)
    widths = [*[1.0] * panels, 0.12, *[1.0] * panels]
    height = rows * 1.27 + 0.62
    figure, places = plt.subplots(
        rows, len(widths), figsize=(9, height), width_ratios=widths, squeeze=False
    )
    for axes in places.flat:
        axes.set_axis_off()
    for number, (name, own) in enumerate(shown.items()):
        row, first = number % rows, number // rows * (panels + 1)
        places[row, first].set_title(name, fontsize=9, loc="left", pad=3)
        for axes, landscape, path in zip(places[row, first:], landscapes, own, strict=False):
            axes.set_axis_on()
            ground(axes, landscape)
            trail(axes, landscape, path)
            steps = "–" if path.arrived is None else str(path.arrived)
            axes.text(
                0.96, 0.04, steps, fontsize=7.5, ha="right", va="bottom", transform=axes.transAxes
            )
    figure.subplots_adjust(0.008, 0.008, 0.992, 1 - 0.62 / height, 0.05, 0.19)
    for half in (0, panels + 1):
        for axes, landscape in zip(places[0, half:], landscapes, strict=False):
            box = axes.get_position()
            figure.text(
                (box.x0 + box.x1) / 2, 1 - 0.42 / height, landscape.title,
                fontsize=8, ha="center", va="bottom", color="0.35",
            )  # fmt: skip
    figure.text(
        0.5, 1 - 0.07 / height,
        f"○ start, ★ minima, {STEPS} steps from violet to orange; the number: steps until the "
        "height stays below 1/1000 of the start's (–: never)",
        fontsize=8.5, ha="center", va="top",
    )  # fmt: skip
    save(figure, file)


def save(figure: Figure, file: File) -> None:
    """With a palette, in a quarter of the bytes."""
    with io.BytesIO() as drawn:
        figure.savefig(drawn, dpi=100)
        plt.close(figure)
        picture = Image.open(drawn).convert("RGB")
    method = Image.Quantize.MAXCOVERAGE
    picture.quantize(256, method, kmeans=3, dither=Image.Dither.NONE).save(file, optimize=True)
