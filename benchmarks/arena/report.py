"""Tables and pictures from the recorded runs.

    python -m benchmarks.arena.report

Reads the JSON lines of `python -m benchmarks.arena.run` and of the studies beside it, runs nothing,
and writes `REPORT.md` and `pictures/`.
"""

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import tyro

from benchmarks.arena import _pictures, _tables
from benchmarks.arena._verdicts import standing
from benchmarks.arena._workloads import WORKLOADS

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Settings:
    """Writes the report of the runs that are finished."""

    results: Path = HERE / "results"
    """Folder of the JSON lines."""
    out: Path = HERE
    """Folder for REPORT.md and pictures/."""
    quick: bool = False
    """Of what `run --quick` made; give its folder as --results, and another --out."""


def main(settings: Settings) -> None:
    """Writes what can be said so far."""
    standings = {
        name: found
        for name in WORKLOADS
        if (found := standing(name, settings.results, quick=settings.quick)) is not None
    }
    if not standings:
        raise SystemExit(
            f"{settings.results}: no finished baseline; run benchmarks.arena.run first"
        )
    pictures = settings.out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    _pictures.shares(standings, pictures / "shares.png")
    _pictures.curves(standings, settings.results, pictures / "curves.png")
    text = _tables.report(standings, settings.results, pictures)
    (settings.out / "REPORT.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Settings))
