"""What the studies on pictures share: runs that are kept, and searches for a learning rate."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.arena import images
from benchmarks.arena._contenders import Contender
from benchmarks.arena._results import Record, Results
from benchmarks.arena._search import FINE, lowest, widened
from benchmarks.arena._training import Trainer
from benchmarks.arena.run import RESULTS

KEY = ("contender", "version", "batch", "steps", "rate", "seed")
B2 = 0.999
EARLY = 0.1  # of a run, where its training loss is kept


class Study:
    """Asks for runs on pictures, which come from the file or are made and kept."""

    def __init__(
        self,
        results: Results,
        contenders: Mapping[str, Contender],
        *,
        share: float = 1.0,
        said: Callable[[str], None] = lambda _: None,
    ):
        self._results, self._contenders = results, contenders
        self._share, self._said = share, said
        self._trainer: tuple[tuple[str, int], Trainer] | None = None

    def run(self, name: str, rate: float, batch: int, seed: int) -> Record:
        """A finished run's record; its error is None if it diverged."""
        rate, steps = float(f"{rate:.3g}"), steps_of(batch, self._share)
        version = self._contenders[name].version
        asked = {"contender": name, "version": version, "batch": batch}
        asked |= {"steps": steps, "rate": rate, "seed": seed}
        if (known := self._results.get(asked)) is not None:
            return known
        self._said(f"{name}, batch {batch}, rate {rate:.3g}, seed {seed}")
        found = self._trained(name, batch).run(rate, steps, seed)
        early = next((loss for step, loss in found.curve if step >= EARLY * steps), None)
        came_out = {"error": found.score, "early": early, "seconds": round(found.seconds, 2)}
        return self._results.add(asked | came_out)

    def error(self, name: str, rate: float, batch: int, seed: int) -> float:
        """The held-out error in %, infinite if the run diverged."""
        found = self.run(name, rate, batch, seed)["error"]
        return math.inf if found is None else found

    def tuned(self, name: str, batch: int, seed: int, trials: int) -> tuple[float, bool]:
        """The best of so many learning rates, and whether rates on both sides were worse."""
        middle = self._contenders[name].rate

        def error(power: int) -> float:
            return self.error(name, middle * FINE**power, batch, seed)

        found = refined(error, widened(error, 2, trials), trials)
        best = lowest(found)
        return middle * FINE**best, min(found) < best < max(found)

    def _trained(self, name: str, batch: int) -> Trainer:
        """The compiled step of a contender at a batch; only the latest is kept."""
        if self._trainer is None or self._trainer[0] != (name, batch):
            trainer = Trainer(images.workload(batch), self._contenders[name], B2, images.data())
            self._trainer = (name, batch), trainer
        return self._trainer[1]


def steps_of(batch: int, share: float = 1.0) -> int:
    """The steps of a run over a share of the workload's epochs."""
    return max(1, round(share * images.workload(batch).steps))


def refined(
    error: Callable[[int], float], found: Mapping[int, float], trials: int
) -> dict[int, float]:
    """Adds the untried power nearest to the best until there are as many as `trials`."""
    found = dict(found)
    while len(found) < trials:
        best = lowest(found)
        untried = set(range(min(found) - 1, max(found) + 2)) - set(found)
        nearest = min(untried, key=lambda power: (abs(power - best), power))
        found[nearest] = error(nearest)
    return found


def picture_folder(out: Path) -> Path:
    """Beside the committed results, or with all others."""
    folder = RESULTS.parent / "pictures" if out == RESULTS else out
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def progress_bar(**options: Any) -> Progress:
    """Counts what is finished and says what runs."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.description}"), **options)
