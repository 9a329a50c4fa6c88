"""The protocol: equal tuning, a target fixed first, and the smallest budget that reaches it."""

import functools
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.arena._contenders import BASELINES, CONTENDERS, Contender
from benchmarks.arena._results import Record, Results
from benchmarks.arena._search import FINE, lowest, widened
from benchmarks.arena._training import Trainer
from benchmarks.arena._workload import Workload

KEY = ("contender", "version", "data", "b2", "rate", "steps", "seed")
COARSE = FINE**2
SHARES = (0.75, 0.6, 0.5, 0.4, 0.33, 0.25)
SEEDS = (0, 1, 2)
NEAR = 1.05  # times the target: who comes as close with one seed runs the others
DEFAULT_B2 = 0.95  # for the search of AdamW's own, and where there was none
MOST_TRIALS = 12
QUICK: dict[str, Any] = {"part": 0.25, "seeds": (0,)}


class Trials(NamedTuple):
    """Runs that differ in the seed alone."""

    rate: float
    scores: list[float | None]

    @property
    def mean(self) -> float:
        """Infinite if one diverged."""
        return mean(self.scores)


def mean(scores: Sequence[float | None]) -> float:
    """The mean of scores; infinite if a run diverged."""
    found = [s for s in scores if s is not None]
    return statistics.fmean(found) if found and len(found) == len(scores) else float("inf")


class Missing(Exception):
    """A run that is not finished, where none may be made."""


class Arena:
    """One workload: asks for runs, which come from the file or, unless `only_known`, are made."""

    def __init__(
        self,
        workload: Workload,
        results: Results,
        *,
        part: float = 1.0,
        seeds: Sequence[int] = SEEDS,
        contenders: Mapping[str, Contender] = CONTENDERS,
        only_known: bool = False,
        said: Callable[[str], None] = lambda _: None,
    ):
        self.workload, self.results, self.said = workload, results, said
        self.contenders, self.only_known = contenders, only_known
        self.steps, self.seeds = round(part * workload.steps), seeds
        self.b2 = DEFAULT_B2
        self._trainer: tuple[tuple[str, float], Trainer] | None = None

    def run(self, name: str, rate: float, share: float = 1.0, seed: int = 0) -> Record:
        """A finished run's record."""
        rate, steps = float(f"{rate:.3g}"), round(share * self.steps)
        asked = {
            "contender": name,
            "version": self.contenders[name].version,
            "data": self.digest,
            "b2": self.b2,
            "rate": rate,
            "steps": steps,
            "seed": seed,
        }
        if (known := self.results.get(asked)) is not None:
            return known
        if self.only_known:
            raise Missing(f"{name} at {rate:g}, {steps} steps, seed {seed}")
        self.said(f"{name}, rate {rate:g}, {steps} steps, seed {seed}")
        found = self.trainer(name).run(rate, steps, seed)
        return self.results.add(
            asked
            | {
                "score": found.score,
                "seconds": round(found.seconds, 2),
                "curve": found.curve,
            }
        )

    @functools.cached_property
    def data(self) -> Any:
        """The workload's data."""
        return self.workload.data()

    @functools.cached_property
    def digest(self) -> str:
        """Tells data apart: the standard library is another in another Python."""
        if self.only_known:
            return next((record["data"] for record in reversed(list(self.results))), "")
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.data):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:12]

    def trainer(self, name: str) -> Trainer:
        """The contender's compiled step; only the latest is kept."""
        if self._trainer is None or self._trainer[0] != (name, self.b2):
            trainer = Trainer(self.workload, self.contenders[name], self.b2, self.data)
            self._trainer = (name, self.b2), trainer
        return self._trainer[1]

    def score(self, name: str, rate: float, share: float = 1.0, seed: int = 0) -> float:
        """A run's score, infinite if it diverged."""
        return mean([self.run(name, rate, share, seed)["score"]])

    def tune(self, name: str, share: float = 1.0) -> float:
        """The best rate of three a factor √10 apart, more while an edge wins, then two between."""
        middle = self.contenders[name].rate

        def score(power: int) -> float:
            return self.score(name, middle * FINE**power, share)

        best = middle * FINE ** lowest(widened(score, 2, MOST_TRIALS))
        return self.best(name, [best, best / FINE, best * FINE], share)

    def best(self, name: str, rates: Sequence[float], share: float = 1.0) -> float:
        """The rate with the best score."""
        return min(rates, key=lambda rate: self.score(name, rate, share))

    def seeded(self, name: str, rate: float, share: float = 1.0) -> Trials:
        """The same run for every seed."""
        return Trials(rate, [self.run(name, rate, share, seed)["score"] for seed in self.seeds])

    def baseline(self) -> tuple[str, Trials]:
        """AdamW at the decay of its second moment that suits it best here: the target."""
        self.b2 = DEFAULT_B2
        found = {name: self.seeded(name, self.tune(name)) for name in BASELINES}
        best = min(found, key=lambda name: found[name].mean)
        self.b2 = float(best.partition("=")[2])
        return best, found[best]

    def full(self, name: str, target: float) -> Trials:
        """The tuned contender at the full budget, with every seed if it comes near the target."""
        rate = self.tune(name)
        return self.reaching(name, rate, 1.0, target)

    def ladder(self, name: str, full: Trials, target: float) -> dict[float, Trials]:
        """Smaller budgets at the same rate, at its neighbours where that misses, until all miss."""
        found, rate = {1.0: full}, full.rate
        for share in SHARES:
            if list(found.values())[-1].mean > target:
                break
            found[share] = self.reaching(name, rate, share, target)
            if found[share].mean > target:
                rate = self.best(name, [rate, rate / FINE, rate * FINE], share)
                found[share] = self.reaching(name, rate, share, target)
        return found

    def reaching(self, name: str, rate: float, share: float, target: float) -> Trials:
        """Runs of every seed, or one that shows that the target is out of reach."""
        if self.score(name, rate, share) > NEAR * target:
            return Trials(rate, [self.run(name, rate, share)["score"]])
        return self.seeded(name, rate, share)


def smallest_share(ladder: dict[float, Trials], target: float) -> float | None:
    """The smallest share of the budget in an unbroken row of those that reach the target."""
    reached = None
    for share, trials in ladder.items():
        if trials.mean > target:
            break
        reached = share
    return reached
