"""The report's pictures."""

import statistics
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.arena._contenders import BASELINES
from benchmarks.arena._protocol import KEY, SHARES
from benchmarks.arena._results import Results
from benchmarks.arena._verdicts import Standing
from benchmarks.arena._workloads import WORKLOADS

COLOURS = ("#d1495b", "#00798c", "#edae49", "#66618c", "#6a994e")
SHOWN = ("nadamw", "lion", "lamb", "muon", "soap", "shampoo")
ABOVE = 1.15  # where a contender stands that is above the target after all of AdamW's steps


def shares(standings: Mapping[str, Standing], path: Path) -> None:
    """The share of AdamW's steps that is enough: a line for each contender that gets there once.

    Those that ran on some workloads alone are left to the tables.
    """
    verdicts = {
        (name, workload): verdict.share or ABOVE
        for workload, standing in standings.items()
        for name, verdict in standing.verdicts.items()
    }
    names = {
        name
        for (name, _), place in verdicts.items()
        if place < ABOVE and all((name, workload) in verdicts for workload in standings)
    }

    def merit(name: str) -> float:
        return statistics.fmean(verdicts.get((name, w), ABOVE) for w in standings)

    ranked = sorted(names, key=lambda name: (merit(name), name), reverse=True)
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(ranked) + 1.5), layout="constrained")
    axes.axvspan(0.2, 1.0, color="#eef4ee", zorder=0)
    axes.axvline(1.0, color="0.4", linewidth=1)
    offsets = np.linspace(0.24, -0.24, len(standings))
    for workload, offset, colour in zip(standings, offsets, COLOURS, strict=False):
        tried = [(i, name) for i, name in enumerate(ranked) if (name, workload) in verdicts]
        x = [verdicts[name, workload] for _, name in tried]
        y = [i + offset for i, _ in tried]
        close = [standings[workload].verdicts[name].close for _, name in tried]
        fill = ["white" if hollow else colour for hollow in close]
        label = WORKLOADS[workload].title
        axes.scatter(x, y, s=36, c=fill, edgecolors=colour, linewidths=1.5, zorder=3)
        axes.scatter([], [], s=36, color=colour, label=label)
    axes.set_yticks(range(len(ranked)), ranked)
    ticks = [*reversed(SHARES), 1.0]
    axes.set_xticks([*ticks, ABOVE], [*(f"{t:g}" for t in ticks), "open: b1\nnot tuned"])
    axes.set_xlim(0.2, 1.22)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlabel(
        "share of AdamW's steps that reaches AdamW's best (hollow: by less than the seeds' spread)",
        fontsize=9,
    )
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def curves(standings: Mapping[str, Standing], results: Path, path: Path) -> None:
    """Training loss of tuned runs at the full budget, one panel for each workload."""
    columns = 2
    figure, panels = plt.subplots(
        -(-len(standings) // columns),
        columns,
        figsize=(9, 6.5),
        layout="constrained",
        squeeze=False,
    )
    for axes, (workload, standing) in zip(panels.flat, standings.items(), strict=False):
        records = list(Results(results / f"{workload}.jsonl", KEY))
        full = max(r["steps"] for r in records)
        b2 = float(standing.baseline.partition("=")[2])
        runs = {
            (r["contender"], r["rate"]): r["curve"]
            for r in records
            if (r["steps"], r["seed"]) == (full, 0)
            and (r["contender"] in BASELINES or r["b2"] == b2)
        }
        tuned = {standing.baseline: standing.target.rate}
        tuned |= {n: standing.verdicts[n].full.rate for n in SHOWN if n in standing.verdicts}
        for number, (name, rate) in enumerate(tuned.items()):
            steps, losses = zip(*runs[name, float(f"{rate:.3g}")], strict=True)
            style = {"color": "black", "linewidth": 2} if number == 0 else {"color": f"C{number}"}
            axes.plot(steps, losses, label=name, **style)
        axes.set_yscale("log")
        axes.set_title(WORKLOADS[workload].title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(f"training loss, {WORKLOADS[workload].unit}", fontsize=8)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
