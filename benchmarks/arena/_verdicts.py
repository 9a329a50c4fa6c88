"""What the recorded runs say, without making any: the numbers behind tables and pictures."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.arena._contenders import BASELINES, CONTENDERS
from benchmarks.arena._protocol import KEY, QUICK, Arena, Missing, Trials, smallest_share
from benchmarks.arena._results import Results
from benchmarks.arena._workloads import WORKLOADS


class Verdict(NamedTuple):
    """How a contender did on a workload.

    Attributes:
      full: Its tuned runs at the full budget.
      share: The smallest share of the budget that reached the target; None if not even all did.
      close: Whether there, or at the full budget, the mean is no farther from the target than the
        seeds lie apart.
      ladder: Its runs at each share.
    """

    full: Trials
    share: float | None
    close: bool
    ladder: dict[float, Trials]


class Standing(NamedTuple):
    """A workload's baseline and everyone's verdict.

    Attributes:
      baseline: The best AdamW by name.
      target: Its runs; their mean is the target.
      verdicts: Contender -> verdict, as far as runs are finished.
    """

    baseline: str
    target: Trials
    verdicts: dict[str, Verdict]


def spread(scores: Iterable[float | None]) -> float:
    """The standard deviation over seeds; 0 for one."""
    found = [s for s in scores if s is not None]
    return statistics.stdev(found) if len(found) > 1 else 0.0


def standing(name: str, out: Path, *, quick: bool = False) -> Standing | None:
    """What is known of a workload; None before the baseline is finished."""
    results = Results(out / f"{name}.jsonl", KEY)
    arena = Arena(WORKLOADS[name], results, only_known=True, **(QUICK if quick else {}))
    try:
        baseline, target = arena.baseline()
    except Missing:
        return None
    verdicts = {}
    for contender in CONTENDERS:
        if contender in BASELINES:
            continue
        try:
            full = arena.full(contender, target.mean)
            ladder = arena.ladder(contender, full, target.mean)
        except Missing:
            continue
        share = smallest_share(ladder, target.mean)
        decisive = ladder[share or 1.0]
        noise = max(spread(decisive.scores), spread(target.scores))
        close = abs(decisive.mean - target.mean) <= noise
        verdicts[contender] = Verdict(full, share, close, ladder)
    return Standing(baseline, target, verdicts)
