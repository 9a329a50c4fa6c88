"""What Shampoo's steps, refreshes, state and compilation cost, held against the bars of the design.

Parameters are 6 × (512², 512) and 4 × 512×2048: 22 blocks with 44 factors of 512, so 88 products a
step. A step is donated and includes `optax.apply_updates`. All of it runs in one process, what is
compared interleaved; a ratio is one of fastest samples unless it says median.

    python -m benchmarks.refresh
    python -m benchmarks.refresh --quick --picture refresh.png
    python -m benchmarks.refresh --rows plain,begin --json refresh.json
"""

import dataclasses
import json
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.refresh import _certified, _footprint, _overlap, _picture, _plain
from benchmarks.refresh._common import Row, Size
from benchmarks.update_speed import machine
from optax_zoo import _host

GROUPS = ("plain", "begin", "certified", "state", "compile")
HEADINGS = ("figure", "measured", "bar", "met", "")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times Shampoo's steps and refreshes."""

    rows: str = ",".join(GROUPS)
    """Which groups of rows, separated by commas; empty: none."""
    quick: bool = False
    """Tiny matrices and few samples, to see that it runs: the figures mean nothing."""
    samples: int = 30
    """Interleaved samples of each step, and begin and adopt steps to see."""
    tokens: int | None = None
    """Tokens per training step of a stand-in model, in the rows of `begin` and the picture; 0:
    gradients are given and a step is the optimizer's alone. None: 0 on a CPU, else 65536."""
    picture: Path | None = None
    """Where to draw the timeline of two intervals (needs matplotlib)."""
    json: Path | None = None
    """Where to write the figures as JSON."""
    markdown: Path | None = None
    """Where to write the table as Markdown."""

    def __post_init__(self):
        unknown = set(self.groups) - set(GROUPS)
        if unknown:
            raise ValueError(
                f"rows has {sorted(unknown)}, got none of that name; choose from "
                f"{', '.join(GROUPS)}"
            )
        if self.samples < 2:
            raise ValueError(f"samples must be >= 2, got {self.samples}; 30 is the default")
        if self.tokens is not None and self.tokens < 0:
            raise ValueError(f"tokens must be >= 0, got {self.tokens}; 65536 fills an accelerator")

    @property
    def groups(self) -> list[str]:
        """The chosen groups."""
        return [name.strip() for name in self.rows.split(",") if name.strip()]

    @property
    def size(self) -> Size:
        """What that means in numbers."""
        tokens = self.tokens
        if tokens is None:
            tokens = 0 if jax.default_backend() == "cpu" else 512 if self.quick else 65536
        samples = min(3, self.samples) if self.quick else self.samples
        return Size(32 if self.quick else 512, samples, samples, tokens)


def measure(settings: Settings) -> list[Row]:
    """The rows that were asked for, and the picture."""
    size, repeats = settings.size, 1 if settings.quick else 5
    rows = []
    if "state" in settings.groups:
        rows += _footprint.state_rows(size)
    if "plain" in settings.groups:
        rows += _plain.rows(size)
    if "begin" in settings.groups or settings.picture is not None:
        contest = _overlap.Contest(size)
        if "begin" in settings.groups:
            rows += _overlap.rows(size, contest)
        if settings.picture is not None:
            steps, host = contest.timeline()
            _picture.draw(steps, host, contest.title, settings.picture)
    if "certified" in settings.groups:
        rows += _certified.rows(size, repeats)
    if "compile" in settings.groups:
        rows += _footprint.compile_rows(size, min(repeats, 3))  # last: it empties JAX's caches
    return rows


def _cells(row: Row) -> list[str]:
    bar = "–" if row.bar is None else f"≤ {row.bar:g} {row.unit}"
    return [row.what, f"{row.value:.2f} {row.unit}", bar, row.met, row.note]


def _markdown(rows: list[Row], caption: str) -> str:
    lines = [caption, "", "| " + " | ".join(HEADINGS) + " |", "|---|---:|---:|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in rows), ""])


def main(settings: Settings) -> None:
    """Measures, prints the table and writes what was asked for."""
    console = Console()
    rows = measure(settings)
    caption = f"Measured on {machine()}; {_host.workers()} worker(s) for the roots."
    table = Table(*HEADINGS, title="What Shampoo costs" + " (quick)" * settings.quick)
    for column in table.columns[1:3]:
        column.justify = "right"
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.group != row.group:
            table.add_section()
        table.add_row(*_cells(row))
    console.print(table)
    console.print(caption, highlight=False)
    if settings.json is not None:
        figures = [{**row._asdict(), "met": row.met} for row in rows]
        text = json.dumps({"machine": machine(), "rows": figures}, indent=2)
        settings.json.write_text(text, encoding="utf-8")
    if settings.markdown is not None:
        settings.markdown.write_text(_markdown(rows, caption), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
