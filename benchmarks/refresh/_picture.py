"""The timeline of two intervals: steps above, the host's work below."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.refresh._overlap import Span

_COLOURS = {"plain": "#b8c4d2", "begin": "#e08214", "adopt": "#1b7837"}
_WORK = "#7b6ba8"


def _lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Work that overlaps in time, in different lanes: as many as there were workers at once."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: s.start):
        for lane in lanes:
            if lane[-1].end <= span.start:
                lane.append(span)
                break
        else:
            lanes.append([span])
    return lanes


def draw(steps: Sequence[Span], host: Sequence[Span], title: str, path: Path) -> None:
    """Writes the picture, 1000 pixels wide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    zero = steps[0].start
    scale, unit = (1, "s") if steps[-1].end - zero > 2 else (1e3, "ms")
    lanes = _lanes([span for span in host if span.kind == "run"])
    heights = (2.0, max(0.5, 0.22 * len(lanes)))
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(10, 1.4 + sum(heights)), height_ratios=heights, dpi=100
    )
    above.bar(
        [(s.start - zero) * scale for s in steps],
        [s.seconds * 1e3 for s in steps],
        [s.seconds * scale for s in steps],
        align="edge",
        color=[_COLOURS[s.kind] for s in steps],
        edgecolor="white",
        linewidth=0.6 if len(steps) < 150 else 0,
    )
    above.set_ylabel("step, ms")
    above.set_title(title, loc="left", fontsize=11)
    names = {"plain": "plain step", "begin": "begins roots", "adopt": "adopts roots"}
    handles = [Patch(color=_COLOURS[kind], label=name) for kind, name in names.items()]
    handles.append(Patch(color=_WORK, label="root work on the host"))
    above.legend(
        handles=handles, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), frameon=False,
        fontsize=9, handlelength=1, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
    for place, lane in enumerate(lanes):
        bars = [((s.start - zero) * scale, s.seconds * scale) for s in lane]
        below.broken_barh(bars, (place + 0.1, 0.8), color=_WORK, edgecolor="white", linewidth=0.4)
    below.set_ylim(max(len(lanes), 1), 0)
    below.set_yticks([i + 0.5 for i in range(len(lanes))], [str(i + 1) for i in range(len(lanes))])
    below.set_ylabel("worker")
    below.set_xlabel(f"time, {unit}")
    below.set_xlim(0, (steps[-1].end - zero) * scale)
    for step in steps:
        if step.kind != "plain":
            x = (step.start - zero) * scale
            below.axvline(x, color=_COLOURS[step.kind], linewidth=1, zorder=0)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
