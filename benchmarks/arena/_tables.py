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

Every contender is tuned alike on every workload: three learning rates a factor √10 apart, more
while the best lies on the grid's edge, then two between, with one seed, at the same schedule (a
linear rise over a fifth of the steps, a cosine to zero; Schedule-Free and Amos stay at the peak, as
their papers ask). Matrices decay as AdamW's do (0.1 on the language model, 0 elsewhere), Lion's ten
times as much, SGD's and LARS's a thousandth; Adafactor, AdaBound, AMSBound, EGDD and exponentiated
gradients have no decay, Amos its own. AdamW gets more: its b2 is the best of 0.9, 0.95, 0.99 and
0.999, each tuned so and run with three seeds, and the others that have an Adam's b2 take it. Its
mean over the seeds at the full budget is the target.
Whoever comes within 5 % of the target runs three seeds, and those that reach it try ever smaller
budgets, the schedule shortened, at the same rate and, where that misses, at the best of it and its
two neighbours, until one budget is too small.

`lion` and `lamb` are Optax's as well (the tests hold them equal). "shampoo" and "soap" renew roots
and bases every 10 steps and use them at once; N and D are other intervals and delays; "corrected"
is `Refresh(drift_every=5)`, "on the device" `Roots(on="device", tolerance=0.1)`, "heads merged"
`Blocks(merge_below=96)`, with which the language model's attention kernels (96, 4, 24) are 96 × 96
and not 384 × 24; the first refresh is at step 1 (`start=1`).

Made by `python -m benchmarks.arena.report` from the results of `benchmarks.arena.run`, `.timing`,
`.sensitivity`, `.staleness`, `.defaults`, `.batches` and `.generalisation`.
"""


def report(standings: Mapping[str, Standing], results: Path, pictures: Path) -> str:
    """The whole report."""
    costs = timing.known(results)
    parts = [INTRODUCTION, "## The smallest share of AdamW's steps that reaches AdamW's best\n"]
    parts += [summary(standings), _pictured("shares", "Each contender's share on each workload")]
    for name, standing in standings.items():
        parts += [f"## {WORKLOADS[name].title}\n", of_workload(name, standing, costs)]
    parts += [_pictured("curves", "Training loss over steps at the full budget")]
    for study in (sensitivity, staleness, defaults):
        parts += study.section(results, pictures)
    return "\n".join(parts)


def _pictured(name: str, text: str) -> str:
    return f"![{text}](pictures/{name}.png)\n"


def share_text(verdict: Verdict | None) -> str:
    """A share, "no" if the target is not reached, nothing if it was not tried; * if it is close."""
    if verdict is None:
        return ""
    return ("no" if verdict.share is None else f"{verdict.share:g}") + "*" * verdict.close


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
    return table(head, rows, words=2) + (
        '\n"no": AdamW\'s best is not reached with all of its steps; *: by a margin within the '
        "spread over seeds; empty: not tried.\n"
    )


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
