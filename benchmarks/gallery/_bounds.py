"""AdaBound's learning rates while their bounds close in."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes

import optax_zoo as zoo
from benchmarks.gallery._digits import Training

STEPS = 5000
LAYERS = {"layer_2/kernel": "hidden layer, 64 × 64", "layer_3/kernel": "output layer, 64 × 10"}
RATES, UPPER, LOWER = "#00798c", "#66618c", "#edae49"


def record(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Steps, evenly spaced in their logarithm; both bounds at each; what `inspect` says there."""
    training = Training(zoo.create("adabound", 1e-3))
    when = np.unique(np.geomspace(1, steps, 60).astype(int))
    bounds, reports = [], []
    for step in when:
        training.until(int(step))
        bounds.append(np.asarray(optax.tree.get(training.state, "clipping"))[2:])
        reports.append(zoo.inspect(training.state, training.params))
    return when, np.array(bounds).T, reports


def draw(file: Path) -> None:
    """Above the rates, below how many of them a bound decides."""
    when, bounds, reports = record()
    figure, places = plt.subplots(
        2, 2, sharex=True, sharey="row", figsize=(9, 4.6), height_ratios=(3, 1),
        layout="constrained",
    )  # fmt: skip
    for column, (layer, title) in zip(places.T, LAYERS.items(), strict=True):
        numbers = {key: [report[layer][key] for report in reports] for key in reports[0][layer]}
        _rates(column[0], when, bounds, numbers)
        _shares(column[1], when, numbers)
        column[0].set_title(title, fontsize=10)
        column[1].set_xlabel("step")
        for axes in column:
            axes.spines[["top", "right"]].set_visible(False)
    places[0, 0].set_ylabel("learning rate of a coordinate")
    places[1, 0].set_ylabel("coordinates, %")
    figure.suptitle(
        "AdaBound at its defaults, on handwritten digits: from Adam's rates to SGD's", fontsize=11
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _rates(axes: Axes, when: np.ndarray, bounds: np.ndarray, numbers: dict[str, Any]) -> None:
    lower, upper = bounds
    axes.loglog(when, upper, color=UPPER, linewidth=1.8)
    axes.loglog(when, lower, color=LOWER, linewidth=1.8)
    axes.fill_between(when, numbers["rate_p10"], numbers["rate_p90"], color=RATES, alpha=0.25, lw=0)
    axes.plot(when, numbers["rate_p50"], color=RATES, linewidth=2)
    # Labels stand beside what they name.
    early, later = len(when) // 20, len(when) // 4
    for text, step, y, below, colour in (
        ("upper bound", later, upper, 4, UPPER),
        ("lower bound", later, lower, -12, "#946200"),
        ("median and\nmiddle 80 %", early, numbers["rate_p10"], -40, "#005a68"),
    ):
        axes.annotate(
            text, (when[step], y[step]), xytext=(4, below), textcoords="offset points",
            color=colour, fontsize=9,
        )  # fmt: skip
    axes.grid(color="0.93")


def _shares(axes: Axes, when: np.ndarray, numbers: dict[str, Any]) -> None:
    below, above = (100 * np.array(numbers[key]) for key in ("at_lower", "at_upper"))
    colours = (LOWER, "#cfe3e7", UPPER)
    axes.stackplot(when, below, 100 - below - above, above, colors=colours)
    axes.set(xlim=(when[0], when[-1]), ylim=(0, 100), yticks=[0, 50, 100])
    place = {"xycoords": "axes fraction", "fontsize": 9, "ha": "center", "va": "center"}
    axes.annotate("at the\nupper", (0.945, 0.6), color="white", **place)
    axes.annotate("between the bounds", (0.35, 0.35), color="#005a68", **place)
