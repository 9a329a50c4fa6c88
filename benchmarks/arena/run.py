"""Runs the arena: tunes, fixes the target, finds each contender's smallest budget.

    python -m benchmarks.arena.run --quick
    python -m benchmarks.arena.run
    python -m benchmarks.arena.run --workloads matrix softmax --contenders lion shampoo

What is finished stays in JSON lines under `--out` and is never run again, so an interrupted run
goes on where it was. Different workloads may run at the same time in different processes.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.arena._contenders import BASELINES, CONTENDERS
from benchmarks.arena._protocol import KEY, QUICK, Arena, smallest_share
from benchmarks.arena._results import Results
from benchmarks.arena._workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
QUICK_WORKLOADS = ("matrix", "softmax", "autoencoder")
QUICK_CONTENDERS = ("nadamw", "muon", "lion", "lamb", "shampoo")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tunes and runs every contender on every workload."""

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    """Names of workloads."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """Names of contenders; AdamW always runs, as the target."""
    quick: bool = False
    """Fewer workloads and contenders unless named, a quarter of the steps, one seed."""
    out: Path | None = None
    """Folder of the results; by default those committed, with --quick runs/arena."""


def check_names(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Exits with the known names if one is not among them."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise SystemExit(f"{option} {name}: unknown; {hint}known are {', '.join(known)}")


def main(settings: Settings) -> None:
    """Runs what is missing."""
    workloads, contenders = settings.workloads, settings.contenders
    check_names("--workloads", workloads, WORKLOADS)
    check_names("--contenders", contenders, CONTENDERS)
    out = settings.out or (Path("runs/arena") if settings.quick else RESULTS)
    if settings.quick and workloads == Settings.workloads:
        workloads = QUICK_WORKLOADS
    if settings.quick and contenders == Settings.contenders:
        contenders = QUICK_CONTENDERS
    others = [name for name in contenders if name not in BASELINES]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=len(workloads) * (len(others) + len(BASELINES)))
        for name in workloads:
            workload = WORKLOADS[name]
            with Results(out / f"{name}.jsonl", KEY) as results:

                def said(line: str, name: str = name) -> None:
                    progress.update(task, description=f"{name}: {line}")

                arena = Arena(workload, results, said=said, **(QUICK if settings.quick else {}))
                best, at_best = arena.baseline()
                progress.advance(task, len(BASELINES))
                target = at_best.mean
                console.print(f"{name}: {best}, rate {at_best.rate:.3g}, target {target:.4g}")
                for contender in others:
                    full = arena.full(contender, target)
                    share = smallest_share(arena.ladder(contender, full, target), target)
                    reached = "not reached" if share is None else f"reached with {share:g}"
                    console.print(f"{name}: {contender}, {full.mean:.4g}, {reached}")
                    progress.advance(task)


if __name__ == "__main__":
    main(tyro.cli(Settings))
