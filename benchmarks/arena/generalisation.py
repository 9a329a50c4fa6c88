"""AdaBound's claim, as fast as Adam early and as good as SGD at the end, on held-out pictures.

    python -m benchmarks.arena.generalisation
    python -m benchmarks.arena.generalisation --trials 3 --share 0.1 --out runs/generalisation

As in the paper the learning rate is constant and a tenth of it in the last quarter (there from
epoch 150 of 200). Every optimizer is tuned with the same number of trials, on a seed that is not
among those shown; what is tuned is the first rate, and the bounds end at SGD's. There is no weight
decay. "No slower" and "no worse" mean: by less than two standard errors of the difference.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import optax
import tyro
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import optax_zoo as zoo
from benchmarks.arena._contenders import Contender, Setting
from benchmarks.arena._results import Results
from benchmarks.arena._study import (
    EARLY,
    KEY,
    Study,
    picture_folder,
    progress_bar,
    steps_of,
)
from benchmarks.arena.images import BASE, IMAGES
from benchmarks.arena.run import RESULTS

DROP_AT, DROP = 0.75, 0.1
SGD = 0.01  # the best rate that the search below finds for it
TUNING_SEED = 100


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tunes four optimizers and compares them early and at the end."""

    trials: int = 5
    """Learning rates tried for each optimizer."""
    seeds: int = 3
    """Runs at the best of them, two or more."""
    share: float = 1.0
    """The share of the steps to run, for a quick look."""
    out: Path = RESULTS
    """Folder of generalisation.jsonl and, unless it is the one committed, of the picture."""


class Outcome(NamedTuple):
    """An optimizer at its best learning rate, an entry for each seed; infinite if it diverged."""

    rate: float
    inside: bool  # whether rates on both sides were worse
    early: list[float]
    error: list[float]


def contenders(share: float) -> dict[str, Contender]:
    """The four, with the learning rate dropped where the paper drops it."""
    drop = DROP_AT * steps_of(BASE, share)

    def schedule(peak):
        return lambda count: peak * jnp.where(count < drop, 1.0, DROP)

    def bound(make: Callable[..., optax.GradientTransformation]) -> Contender:
        def made(s: Setting) -> optax.GradientTransformation:
            # Its momentum averages, SGD's adds up: a tenth of the rate, at 0.9.
            return make(schedule(s.peak), 10 * SGD, base_lr=s.peak, b2=s.b2)

        return Contender(made, 3e-3)

    return {
        "sgd": Contender(lambda s: optax.sgd(schedule(s.peak), momentum=0.9), SGD),
        "adam": Contender(lambda s: optax.adam(schedule(s.peak), b2=s.b2), 3e-3),
        "adabound": bound(zoo.adabound),
        "amsbound": bound(zoo.amsbound),
    }


def measure(study: Study, settings: Settings, advance=lambda: None) -> dict[str, Outcome]:
    """Optimizer -> what it came to."""
    found = {}
    for name in contenders(settings.share):
        rate, inside = study.tuned(name, BASE, TUNING_SEED, settings.trials)
        runs = [study.run(name, rate, BASE, seed) for seed in range(settings.seeds)]
        early, error = (
            [math.inf if run[what] is None else run[what] for run in runs]
            for what in ("early", "error")
        )
        found[name] = Outcome(rate, inside, early, error)
        advance()
    return found


def lower(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether a's mean is below b's by more than two standard errors of the difference."""
    if not all(map(math.isfinite, (*a, *b))):
        return all(map(math.isfinite, a))
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return statistics.fmean(b) - statistics.fmean(a) > 2 * error


def verdict(found: dict[str, Outcome], name: str) -> tuple[str, str]:
    """What becomes of the claim with AdaBound or AMSBound, and why.

    There is something to reproduce only where Adam is the faster and SGD the better of the two.
    """
    sgd, adam, bound = found["sgd"], found["adam"], found[name]
    faster, better = lower(adam.early, sgd.early), lower(sgd.error, adam.error)
    fast, good = not lower(adam.early, bound.early), not lower(sgd.error, bound.error)
    reasons = [
        f"Adam is {'' if faster else 'not '}faster than SGD early",
        f"SGD is {'' if better else 'not '}better than Adam at the end",
        f"{name} is {'no slower' if fast else 'slower'} than Adam early",
        f"{name} is {'no worse' if good else 'worse'} than SGD at the end",
    ]
    if not (faster and better):
        outcome = "not at this size"
    else:
        outcome = "reproduced" if fast and good else "no"
    return outcome, ", ".join(reasons)


def shown(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(found: dict[str, Outcome]) -> Table:
    """A row for each optimizer; * marks a rate at the edge of what was tried."""
    rows = Table("optimizer", "rate", f"training loss at {EARLY:.0%}", "held-out error, %")
    for name, outcome in found.items():
        rate = f"{outcome.rate:.2g}" + ("" if outcome.inside else "*")
        rows.add_row(name, rate, shown(outcome.early, 3), shown(outcome.error, 1))
    return rows


def draw(found: dict[str, Outcome], path: Path) -> None:
    """Every seed as a dot, the mean as a line: early on the left, the end on the right."""
    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    _dots(left, {name: outcome.early for name, outcome in found.items()})
    left.set_title(f"training loss after {EARLY:.0%} of the run", loc="left", fontsize=11)
    left.set_ylabel("nats per pair")
    _dots(right, {name: outcome.error for name, outcome in found.items()})
    right.set_title("held-out error at the end", loc="left", fontsize=11)
    right.set_ylabel("% of pairs")
    figure.savefig(path)


def _dots(axes: Axes, values: dict[str, list[float]]) -> None:
    colours = color_sequences["tab10"]
    for place, (each, colour) in enumerate(zip(values.values(), colours, strict=False)):
        finite = [value for value in each if math.isfinite(value)]
        axes.plot([place] * len(finite), finite, "o", color=colour, alpha=0.6, markersize=6)
        if len(finite) < len(each):
            axes.annotate("diverged", (place, 0.5), xycoords=("data", "axes fraction"), ha="center")
        else:
            axes.hlines(statistics.fmean(each), place - 0.25, place + 0.25, color=colour)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main(settings: Settings) -> None:
    """Runs what is missing, prints table and verdicts and draws the picture."""
    if settings.seeds < 2:
        raise SystemExit(f"--seeds {settings.seeds}: a spread needs two or more")
    console = Console()
    four = contenders(settings.share)
    with (
        Results(settings.out / "generalisation.jsonl", KEY) as results,
        progress_bar(console=console) as bar,
    ):
        task = bar.add_task("", total=len(four))
        study = Study(
            results,
            four,
            share=settings.share,
            said=lambda line: bar.update(task, description=line),
        )
        found = measure(study, settings, lambda: bar.advance(task))
    console.print(f"{IMAGES.title}, {steps_of(BASE, settings.share)} steps")
    console.print(table(found))
    for name in ("adabound", "amsbound"):
        outcome, reasons = verdict(found, name)
        console.print(f"{name}: {outcome}: {reasons}", soft_wrap=True, highlight=False)
    path = picture_folder(settings.out) / "generalisation.png"
    draw(found, path)
    console.print(f"picture: {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Settings))
