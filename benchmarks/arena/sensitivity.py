"""How much a learning rate may be off: final loss at 0.01 to 100 times the best.

    python -m benchmarks.arena.sensitivity

At a quarter of each budget; the best is that of the full one.
"""

import dataclasses
import math
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro
from rich.progress import track

from benchmarks.arena._contenders import CONTENDERS
from benchmarks.arena._markdown import table
from benchmarks.arena._protocol import COARSE, KEY, Arena, Missing
from benchmarks.arena._results import Results
from benchmarks.arena._verdicts import Standing, standing
from benchmarks.arena._workloads import WORKLOADS
from benchmarks.arena.run import RESULTS, check_names

SHARE = 0.25
POWERS = range(-4, 5)  # of the square root of 10
SHOWN = ("sgd", "adagrad", "adabound", "lion", "lamb", "muon", "soap", "shampoo")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Runs every contender at nine learning rates."""

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    """Names of workloads whose contenders are tuned."""
    contenders: tuple[str, ...] = SHOWN
    """Names of contenders; AdamW is always there."""
    out: Path = RESULTS
    """Folder of the results."""


def lines(workload: str, found: Standing, arena: Arena) -> dict[str, list[float]]:
    """Contender -> the scores at each power, infinite where a run diverged."""
    tuned = {found.baseline: found.target.rate}
    tuned |= {name: verdict.full.rate for name, verdict in found.verdicts.items()}
    scores = {}
    for name, rate in tuned.items():
        try:
            scores[name] = [arena.score(name, rate * COARSE**k, SHARE) for k in POWERS]
        except Missing:
            continue
    return scores


def known(results: Path) -> dict[str, dict[str, list[float]]]:
    """Workload -> contender -> scores, as far as runs are finished."""
    found = {}
    for workload in WORKLOADS:
        if (place := standing(workload, results)) is not None:
            arena = _arena(workload, results, place, only_known=True)
            if scores := lines(workload, place, arena):
                found[workload] = scores
    return found


def _arena(workload: str, results: Path, place: Standing, *, only_known: bool) -> Arena:
    store = Results(results / f"sensitivity_{workload}.jsonl", KEY)
    arena = Arena(WORKLOADS[workload], store, only_known=only_known)
    arena.b2 = float(place.baseline.partition("=")[2])
    return arena


def tolerance(scores: list[float], start: float) -> float:
    """By what factor the rate may vary around its best and keep nine tenths of what that gains."""
    best = min(range(len(scores)), key=scores.__getitem__)
    limit = scores[best] + 0.1 * max(start - scores[best], 0.0)
    if not math.isfinite(limit):
        return 1.0
    low = high = best
    while low > 0 and scores[low - 1] <= limit:
        low -= 1
    while high < len(scores) - 1 and scores[high + 1] <= limit:
        high += 1
    return COARSE ** (high - low)


def section(results: Path, pictures: Path) -> list[str]:
    """The report's part."""
    found = known(results)
    if not found:
        return []
    draw(found, pictures / "sensitivity.png")
    names = sorted({name for scores in found.values() for name in scores})
    starts = {w: max(filter(math.isfinite, (x[0] for x in s.values()))) for w, s in found.items()}
    rows = []
    for name in names:
        cells = [tolerance(s[name], starts[w]) if name in s else math.nan for w, s in found.items()]
        rows.append((statistics.geometric_mean([c for c in cells if c == c]), name, cells))
    rows.sort(reverse=True)
    head = ["optimizer", *(w.replace("_", " ") for w in found)]
    texts = [[f"`{n}`", *("" if c != c else f"{c:.3g}" for c in cells)] for _, n, cells in rows]
    return [
        "## How much the learning rate may be off\n",
        "By what factor it may vary around its best, at a quarter of the budget, and still keep "
        "nine tenths of what the best rate gains (rates a factor √10 apart, 0.01 to 100 times the "
        "one tuned at the full budget; gained is what lies below the worst score at the "
        "smallest).\n",
        table(head, texts),
        "![Final score over the learning rate](pictures/sensitivity.png)\n",
    ]


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel for each workload, a line for each contender."""
    figure, panels = plt.subplots(
        -(-len(found) // 2),
        2,
        figsize=(9, 3.4 * -(-len(found) // 2)),
        layout="constrained",
        squeeze=False,
    )
    factors = [COARSE**k for k in POWERS]
    for axes, (workload, scores) in zip(panels.flat, found.items(), strict=False):
        shown = [n for n in scores if n.startswith("adamw ") or n in SHOWN]
        for number, name in enumerate(shown):
            y = [s if math.isfinite(s) else math.nan for s in scores[name]]
            style = {"color": "black", "linewidth": 2} if number == 0 else {"color": f"C{number}"}
            axes.plot(factors, y, marker=".", label=name, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        least = min(min(s) for s in scores.values())
        first = max(s[len(s) // 2] for s in scores.values())
        axes.set_ylim(0.8 * least, 30 * first)
        axes.set_title(WORKLOADS[workload].title, fontsize=10)
        axes.set_xlabel("learning rate, × the tuned one")
        axes.set_ylabel(WORKLOADS[workload].unit, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(panels.flat)[len(found) :]:
        axes.remove()
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(settings: Settings) -> None:
    """Runs what is missing."""
    check_names("--workloads", settings.workloads, WORKLOADS)
    check_names("--contenders", settings.contenders, CONTENDERS)
    for workload in settings.workloads:
        place = standing(workload, settings.out)
        if place is None:
            raise SystemExit(f"{workload}: AdamW is not tuned yet; run benchmarks.arena.run first")
        arena = _arena(workload, settings.out, place, only_known=False)
        verdicts = {n: v for n, v in place.verdicts.items() if n in settings.contenders}
        with arena.results:
            tuned = {place.baseline: place.target.rate}
            tuned |= {name: verdict.full.rate for name, verdict in verdicts.items()}
            for name, rate in track(tuned.items(), f"{workload}: training"):
                for power in POWERS:
                    arena.run(name, rate * COARSE**power, SHARE)


if __name__ == "__main__":
    main(tyro.cli(Settings))
