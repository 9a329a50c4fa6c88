"""Draws the gallery: paths over landscapes, rates between bounds, signs, spectra.

    python -m benchmarks.gallery
    python -m benchmarks.gallery --out runs/gallery

Every optimizer walks from the same start over the same four landscapes for 300 steps, at the one of
33 learning rates, a factor of 10^(1/4) apart, that brings it below a thousandth of the starting
height in the fewest steps without ever leaving the picture.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path as File

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.gallery import _bounds, _sheet, _signs, _spectrum
from benchmarks.gallery._landscapes import LANDSCAPES
from benchmarks.gallery._paths import FACTORIES, SGD, Path, tuned


@dataclasses.dataclass(frozen=True)
class Settings:
    """Draws the gallery."""

    out: File = File(__file__).parent / "pictures"
    """Folder of the four pictures; by default those committed."""


def main(settings: Settings) -> None:
    """Tunes, draws, and prints what was found."""
    console = Console()
    settings.out.mkdir(parents=True, exist_ok=True)
    paths = {
        name: tuned(make, LANDSCAPES)
        for name, make in track(FACTORIES.items(), "tuning", console=console, transient=True)
    }
    console.print(table(paths))
    _sheet.draw(paths, LANDSCAPES, settings.out / "paths.png")
    _signs.draw(paths[SGD][0], paths["lion"][0], settings.out / "signs.png")
    _bounds.draw(settings.out / "bounds.png")
    _spectrum.draw(settings.out / "spectrum.png")
    console.print(f"pictures: {settings.out}", markup=False, soft_wrap=True)


def table(paths: Mapping[str, Sequence[Path]]) -> Table:
    """Learning rates, and the steps they take."""
    titles = [landscape.title for landscape in LANDSCAPES]
    found = Table("optimizer", *titles, title="learning rate: steps to a thousandth of the height")
    for name, own in paths.items():
        cells = (f"{path.rate:.2g}: {path.arrived or 'not reached'}" for path in own)
        found.add_row(name, *cells)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
