"""How far the batch can grow at fixed epochs: pictures at batches of ×1 to ×64.

    python -m benchmarks.arena.batches
    python -m benchmarks.arena.batches --optimizers lamb adamw --multiples 1 16 --out runs/batches

Learning rates are tuned at the smallest batch, each optimizer with the same number of trials. A
larger batch takes the scaled rate (linear for SGD and LARS, by the square root for the others) and,
for fairness, the best of rates a factor of four apart around it, more while an edge wins. Seed 0
chooses rates; the errors shown are means of all seeds.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import tyro
from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

import optax_zoo as zoo
from benchmarks.arena._contenders import CONTENDERS
from benchmarks.arena._results import Results
from benchmarks.arena._search import lowest, widened
from benchmarks.arena._study import B2, KEY, Study, picture_folder, progress_bar
from benchmarks.arena.images import BASE, EPOCHS, IMAGES, TRAINING
from benchmarks.arena.run import RESULTS, check_names

OPTIMIZERS = {
    "sgd": CONTENDERS["sgd"]._replace(rate=0.02),
    "lars": CONTENDERS["lars"],
    "lamb": CONTENDERS["lamb"],
    "adamw": CONTENDERS[f"adamw b2={B2}"],
    "adabound": CONTENDERS["adabound"],
}
LINEAR = ("sgd", "lars")
APART = 4.0  # between rates around the scaled one
MOST = 6  # of them
CHANCE = 99.0  # % of pairs that a guess gets wrong
HOPELESS = 98.0  # errors above it say nothing about where the best rate is


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tunes at the smallest batch and scales from there."""

    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Names of optimizers."""
    multiples: tuple[int, ...] = (1, 4, 16, 64)
    """Batches over the smallest one."""
    trials: int = 6
    """Learning rates tried at the smallest batch."""
    seeds: int = 2
    """Seeds of each error that is shown."""
    share: float = 1.0
    """The share of the steps to run, for a quick look."""
    out: Path = RESULTS
    """Folder of batches.jsonl and, unless it is the one committed, of batches.png."""


class Cell(NamedTuple):
    """One optimizer at one batch: the errors of all seeds, in %, infinite if diverged."""

    rate: float
    by_rule: list[float]
    best_rate: float
    best: list[float]


Found = dict[str, dict[int, Cell]]


def measure(study: Study, settings: Settings, advance=lambda: None) -> Found:
    """Optimizer -> multiple -> what became of it."""
    found: Found = {}
    for name in settings.optimizers:
        tuned, _ = study.tuned(name, BASE, 0, settings.trials)
        found[name] = {}
        for multiple in settings.multiples:
            found[name][multiple] = _cell(study, name, tuned, multiple, settings.seeds)
            advance()
    return found


def _cell(study: Study, name: str, tuned: float, multiple: int, seeds: int) -> Cell:
    batch = BASE * multiple
    rule = "linear" if name in LINEAR else "sqrt"
    rate = zoo.scale_learning_rate(tuned, BASE, batch, rule)

    def errors(rate: float) -> list[float]:
        return [study.error(name, rate, batch, seed) for seed in range(seeds)]

    if multiple == 1:
        return Cell(rate, errors(rate), rate, errors(rate))

    def error(power: int) -> float:
        found = study.error(name, rate * APART**power, batch, 0)
        return found if found < HOPELESS else math.inf

    best = rate * APART ** lowest(widened(error, 1, MOST))
    return Cell(rate, errors(rate), best, errors(best))


def shown(errors: list[float]) -> str:
    """Mean and half the range."""
    if not all(map(math.isfinite, errors)):
        return "diverged"
    spread = (max(errors) - min(errors)) / 2
    return f"{statistics.fmean(errors):.1f} ± {spread:.1f}"


def table(found: Found) -> Table:
    """A row for each optimizer and batch."""
    rows = Table("optimizer", "batch", "scaled rate", "error, %", "best rate", "error, %")
    for name, cells in found.items():
        for multiple, cell in cells.items():
            rates = f"{cell.rate:.2g}", f"{cell.best_rate:.2g}"
            rows.add_row(
                *(name, str(BASE * multiple)),
                *(rates[0], shown(cell.by_rule), rates[1], shown(cell.best)),
            )
    return rows


def draw(found: Found, path: Path) -> None:
    """Two panels, the scaled and the best rate; a colour for each optimizer."""
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")
    titles = {"by_rule": "scaled rate", "best": "best rate"}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        _panel(axes, found, kind)
        axes.set_title(title, loc="left", fontsize=11)
    panels[0].set_ylabel("held-out error, %")
    colours = zip(found, color_sequences["tab10"], strict=False)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=name)
        for name, colour in colours
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def _panel(axes, found: Mapping[str, Mapping[int, Cell]], kind: str) -> None:
    batches: list[int] = []
    for cells, colour in zip(found.values(), color_sequences["tab10"], strict=False):
        batches = [BASE * multiple for multiple in cells]
        runs = [[min(e, CHANCE) for e in getattr(cell, kind)] for cell in cells.values()]
        means = [statistics.fmean(errors) for errors in runs]
        axes.plot(batches, means, color=colour, marker="o", markersize=4)
        low, high = [min(errors) for errors in runs], [max(errors) for errors in runs]
        axes.fill_between(batches, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(CHANCE, color="grey", linewidth=1, linestyle="dotted")
    axes.annotate(
        "chance, or diverged", (batches[0], CHANCE), color="grey", va="top", fontsize=9,
        xytext=(0, -3), textcoords="offset points",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{b:,}" for b in batches])
    axes.minorticks_off()
    axes.set(xlabel="batch", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main(settings: Settings) -> None:
    """Runs what is missing, prints the table and draws the picture."""
    check_names("--optimizers", settings.optimizers, OPTIMIZERS)
    if max(settings.multiples) > TRAINING // BASE:
        raise SystemExit(
            f"--multiples {max(settings.multiples)}: a batch holds at most the {TRAINING} "
            f"training pictures, which is {TRAINING // BASE}"
        )
    console = Console()
    with (
        Results(settings.out / "batches.jsonl", KEY) as results,
        progress_bar(console=console) as bar,
    ):
        task = bar.add_task("", total=len(settings.optimizers) * len(settings.multiples))
        study = Study(
            results,
            OPTIMIZERS,
            share=settings.share,
            said=lambda line: bar.update(task, description=line),
        )
        found = measure(study, settings, lambda: bar.advance(task))
    console.print(f"{IMAGES.title.rpartition(',')[0]}, {EPOCHS * settings.share:g} epochs")
    console.print(table(found))
    path = picture_folder(settings.out) / "batches.png"
    draw(found, path)
    console.print(f"picture: {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Settings))
