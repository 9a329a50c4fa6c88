"""What stale roots and bases cost: final loss over interval and delay.

    python -m benchmarks.arena.staleness

Shampoo with and without drift correction, and SOAP, on the autoencoder (400 steps) and the
language model (200), each tuned like a contender, two seeds.
"""

import dataclasses
from pathlib import Path

import tyro
from rich.progress import track

from benchmarks.arena._contenders import Contender, shampoo, soap
from benchmarks.arena._markdown import table
from benchmarks.arena._protocol import KEY, Arena, Missing, Trials
from benchmarks.arena._results import Results
from benchmarks.arena._verdicts import spread
from benchmarks.arena._workloads import WORKLOADS
from benchmarks.arena.run import RESULTS, check_names

STEPS = {"autoencoder": 400, "language_model": 200}
SEEDS = (0, 1)
TIMES = ((1, 0), (10, 0), (10, 10), (50, 15), (50, 50), (200, 200))  # N and D
DRIFT = 5
KINDS = ("shampoo", "corrected", "soap")


def _contender(kind: str, every: int, delay: int) -> Contender:
    if kind == "soap":
        return soap(every, delay)
    return shampoo(every, delay, drift=DRIFT if kind == "corrected" else None)


VARIANTS = {
    f"{kind} N={every} D={delay}": _contender(kind, every, delay)
    for kind in KINDS
    for every, delay in TIMES
    if every > 1 or kind == "shampoo"  # where all is fresh, there is nothing to correct
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Runs every kind at every interval and delay."""

    workloads: tuple[str, ...] = tuple(STEPS)
    """Names of workloads."""
    out: Path = RESULTS
    """Folder of the results."""


def _arena(workload: str, results: Path, *, only_known: bool) -> Arena:
    return Arena(
        WORKLOADS[workload],
        Results(results / f"staleness_{workload}.jsonl", KEY),
        part=STEPS[workload] / WORKLOADS[workload].steps,
        seeds=SEEDS,
        contenders=VARIANTS,
        only_known=only_known,
    )


def _best(arena: Arena, variant: str) -> Trials:
    return arena.seeded(variant, arena.tune(variant))


def section(results: Path, _: Path) -> list[str]:
    """The report's part."""
    parts = []
    for workload, steps in STEPS.items():
        arena, found = _arena(workload, results, only_known=True), {}
        for variant in VARIANTS:
            try:
                found[variant] = _best(arena, variant)
            except Missing:
                continue
        if not found:
            continue
        rows = []
        for every, delay in TIMES:
            cells = [found.get(f"{kind} N={every} D={delay}") for kind in KINDS]
            texts = ["" if c is None else f"{c.mean:.4g} ± {spread(c.scores):.1g}" for c in cells]
            rows.append([every, delay, *texts])
        title, unit = WORKLOADS[workload].title, WORKLOADS[workload].unit
        parts.append(f"{title}, {steps} steps, {unit}:\n")
        parts.append(table(["N", "D", "Shampoo", f"corrected every {DRIFT}", "SOAP"], rows, 0))
    if not parts:
        return []
    return [
        "## What stale roots and bases cost\n",
        "Renewed every N steps, in use D steps after their snapshot; each tuned like a contender, "
        "means of two seeds and their spread; empty: not run.\n",
        *parts,
    ]


def main(settings: Settings) -> None:
    """Runs what is missing."""
    check_names("--workloads", settings.workloads, STEPS)
    for workload in settings.workloads:
        arena = _arena(workload, settings.out, only_known=False)
        with arena.results:
            for variant in track(VARIANTS, f"{workload}: training"):
                _best(arena, variant)


if __name__ == "__main__":
    main(tyro.cli(Settings))
