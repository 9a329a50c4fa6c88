"""The report's tables, in Markdown."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.arena import defaults, sensitivity, staleness, timing
from benchmarks.arena._contenders import CONTENDERS
from benchmarks.arena._markdown import table
from benchmarks.arena._protocol import Trials
from benchmarks.arena._verdicts import Standing, Verdict, spread
from benchmarks.arena._workloads import WORKLOADS

INTRODUCTION = """# The arena

How many of AdamW's steps another optimizer needs to reach AdamW's best, on four small problems.

**What is tuned.** Every contender's learning rate is tuned by one rule on every workload, with
one seed: three rates a factor √10 apart, more while the best lies on the grid's edge, then two
between. AdamW's b2 is tuned besides. It is the best of 0.9, 0.95, 0.99 and 0.999, each at a tuned
rate of its own and over three seeds. Other optimizers that have Adam's b2 take AdamW's.

**What is not tuned yet.** All other memories are at their defaults: b1, Lion's b2, momentum, γ.
So a dash in the tables is no verdict. With b1 = 0.7 and b2 = 0.8, for example, Lion ends at 1.96
nats on the language model, below AdamW's 2.047 (the rate is 2.25e-3, three seeds); at its defaults,
0.9 and 0.99, it ends at 2.545.

**The target** is AdamW's mean score over three seeds, after all of the workload's steps. Whoever
comes within 5 % of it with one seed runs all three. Those that reach it try ever smaller budgets,
with the schedule shortened, until one is too small. They try the same learning rate and, where
that misses, the best of it and its two neighbours.

**The schedule** rises linearly over a fifth of the steps and falls to zero by a cosine.
Schedule-Free and Amos stay at the peak, as their papers ask.

**Weight decay** applies to matrices. It is AdamW's: 0.1 on the language model, 0 elsewhere.
Lion's is ten times that, SGD's and LARS's a thousandth. Adafactor, AdaBound, AMSBound, EGDD and
exponentiated gradients have none, and Amos has its own.

**Names.** "shampoo" and "soap" renew their roots and bases every 10 steps and use them at once. N
and D are other intervals and delays. "corrected" is `Refresh(drift_every=5)`. "on the device" is
`Roots(on="device", tolerance=0.1)`. "heads merged" is `Blocks(merge_below=96)`, which makes the
language model's attention kernels (96, 4, 24) into matrices of 96 × 96 and not of 384 × 24. The
first refresh is at step 1 (`start=1`). `lion` and `lamb` are Optax's as well: the tests hold them
equal.

`python -m benchmarks.arena.report` makes this page from the results of `benchmarks.arena.run`,
`.timing`, `.sensitivity`, `.staleness` and `.defaults`.
"""

# What a contender's cell says where it stays above the target with all of AdamW's steps.
ABOVE = "–"
LEGEND = (
    f"{ABOVE}: not within AdamW's steps at the default b1, b2, momentum or γ; to be measured with "
    "these tuned. *: by a margin within the spread over seeds. Empty: not tried."
)


def report(standings: Mapping[str, Standing], results: Path, pictures: Path) -> str:
    """The whole report."""
    costs = timing.known(results)
    parts = [INTRODUCTION, "## The smallest share of AdamW's steps that reaches AdamW's best\n"]
    parts += [summary(standings), _pictured("shares", "Each contender's share on each workload")]
    for name, standing in standings.items():
        parts += [f"## {WORKLOADS[name].title}\n", of_workload(name, standing, costs)]
    parts += [_pictured("curves", "Training loss over steps at tuned rates and the default b1")]
    for study in (sensitivity, staleness, defaults):
        parts += study.section(results, pictures)
    return "\n".join(parts)


def _pictured(name: str, text: str) -> str:
    return f"![{text}](pictures/{name}.png)\n"


def share_text(verdict: Verdict | None) -> str:
    """A share, a dash above the target, nothing if it was not tried; * if it is close."""
    if verdict is None:
        return ""
    return (ABOVE if verdict.share is None else f"{verdict.share:g}") + "*" * verdict.close


def summary(standings: Mapping[str, Standing]) -> str:
    """Contenders and workloads; the best first."""

    def merit(name: str) -> float:
        verdicts = [s.verdicts[name] for s in standings.values() if name in s.verdicts]
        return statistics.fmean(v.share or 1.5 for v in verdicts)

    names = {name for standing in standings.values() for name in standing.verdicts}
    rows = [
        [f"`{name}`", CONTENDERS[name].family]
        + [share_text(standing.verdicts.get(name)) for standing in standings.values()]
        for name in sorted(names, key=lambda name: (merit(name), name))
    ]
    head = ["optimizer", "from", *(name.replace("_", " ") for name in standings)]
    return table(head, rows, words=2) + f"\n{LEGEND}\n"


def scores_text(trials: Trials) -> str:
    """The mean of scores, and their standard deviation if there are several."""
    if trials.mean == float("inf"):
        return "diverged"
    deviation = spread(trials.scores)
    return f"{trials.mean:.4g}" + (f" ± {deviation:.1g}" if len(trials.scores) > 1 else "")


def of_workload(name: str, standing: Standing, costs: Mapping[tuple[str, str], float]) -> str:
    """One workload's table: rate, score, share, seconds."""
    workload = WORKLOADS[name]
    base = costs.get((name, standing.baseline))
    rows = [[f"`{standing.baseline}`", f"{standing.target.rate:.2g}", scores_text(standing.target)]]
    rows[0] += ["1", "1", "1"] if base else ["1", "", ""]
    ranked = sorted(standing.verdicts.items(), key=lambda item: item[1].full.mean)
    for contender, verdict in ranked:
        cost = costs.get((name, contender))
        step = cost / base if cost and base else None
        seconds = step * verdict.share if step and verdict.share else None
        rows.append(
            [
                f"`{contender}`",
                f"{verdict.full.rate:.2g}",
                scores_text(verdict.full),
                share_text(verdict),
                "" if step is None else f"{step:.2f}",
                "" if seconds is None else f"{seconds:.2f}",
            ]
        )
    head = ["optimizer", "rate", workload.unit, "share of steps", "step, × AdamW's", "seconds, ×"]
    return f"{workload.steps} steps.\n\n" + table(head, rows)
