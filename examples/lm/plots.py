"""Learning curves as a picture."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, StrMethodFormatter
from matplotlib.typing import ColorType

from lm.run_folder import Row

SMOOTHING = 0.02  # the share of a curve over which the training loss is averaged
READABLE = 5  # more runs than this are drawn without their noisy training losses
TICKS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8)


def draw_curves(curves: Mapping[str, Sequence[Row]], title: str, path: Path) -> None:
    """Draws bits per byte over steps, one colour per run, the best run first in the legend."""
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="training step", yscale="log")
    axes.set_ylabel("bits per byte (log scale)")
    styles = product("os^", matplotlib.color_sequences["tab10"])
    ranked = sorted(curves, key=lambda name: final_bits(curves[name]))
    for name, (marker, colour) in zip(ranked, styles, strict=False):
        _draw_held_out(axes, name, curves[name], marker, colour)
        if len(curves) <= READABLE:
            _draw_training(axes, curves[name], colour)
    if len(curves) <= READABLE:
        axes.plot([], color="grey", linewidth=1, alpha=0.6, label="training, smoothed")
    axes.legend(title="held out, with the last value")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.set(xlim=(0, None), ylim=(None, 8.5))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def final_bits(rows: Sequence[Row]) -> float:
    """The last held-out result; before the first one infinity."""
    bits = [row["held_out_bits_per_byte"] for row in rows if row["held_out_loss"] is not None]
    return bits[-1] if bits else math.inf


def _draw_held_out(
    axes: Axes, name: str, rows: Sequence[Row], marker: str, colour: ColorType
) -> None:
    evaluated = [row for row in rows if row["held_out_loss"] is not None]
    axes.plot(
        [row["step"] for row in evaluated],
        [row["held_out_bits_per_byte"] for row in evaluated],
        label=f"{name}  {final_bits(rows):.3f}" if evaluated else f"{name}  not yet evaluated",
        markersize=5,
        marker=marker,
        color=colour,
    )


def _draw_training(axes: Axes, rows: Sequence[Row], colour: ColorType) -> None:
    bits = np.array([row["train_bits_per_byte"] for row in rows])
    axes.plot([row["step"] for row in rows], _smoothed(bits), color=colour, linewidth=1, alpha=0.4)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average, over fewer values near the ends."""
    half = min(max(1, int(len(values) * SMOOTHING / 2)), (len(values) - 1) // 2)
    window = np.ones(2 * half + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
