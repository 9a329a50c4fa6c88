"""What stale roots cost: an autoencoder's final loss against interval, delay and first refresh.

    python -m benchmarks.staleness
    python -m benchmarks.staleness --steps 600 --intervals 1 10 50 200 --markdown staleness.md

The network is 256-200-100-50-25-6 and back, tanh with a linear code, on 16 × 16 pictures of random
Bézier curves; the loss is the cross-entropy of a pixel above its floor, summed over the picture.
Every cell is the best of the given learning rates, a cosine with a tenth of warm-up. AdamW gets
more: its own rates, also a fifth of warm-up, with and without Nesterov. Refreshes do not depend on
how fast the host is, so neither do these numbers.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import optax_zoo as zoo
from benchmarks.arena.autoencoder import BATCH, init, loss, pictures


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains the autoencoder once per cell and learning rate."""

    steps: int = 600
    """Training steps, at least three times the longest interval."""
    intervals: tuple[int, ...] = (1, 10, 50, 200)
    """Values of N."""
    starts: tuple[int, ...] = (1, 10)
    """Values of S."""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Peak learning rates, of which each cell takes the best."""
    adamw_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3)
    """Peak learning rates of AdamW."""
    drift_every: int | None = None
    """Steps from one drift correction to the next, in every cell; None: there is none."""
    seed: int = 0
    """Seed of pictures, weights and batches."""
    markdown: Path | None = None
    """File for the table."""


def final_loss(tx: optax.GradientTransformation, data: jax.Array, settings: Settings) -> float:
    """The loss over all pictures after the last step; infinite for a run that diverged."""
    params = init(data, settings.seed)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows):
        gradients = jax.grad(loss)(params, data[rows])
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.steps):
        params, state = step(params, state, rng.integers(0, len(data), BATCH))
    found = float(jax.jit(loss)(params, data))
    return found if math.isfinite(found) else math.inf


def best(
    makers: Sequence[Any],
    rates: Sequence[float],
    warmups: Sequence[float],
    data: Any,
    settings: Any,
) -> tuple[float, float]:
    """The lowest final loss and its learning rate."""
    found = []
    for make, rate, warmup in itertools.product(makers, rates, warmups):
        steps = int(warmup * settings.steps)
        schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, rate, steps, settings.steps)
        found.append((final_loss(make(schedule), data, settings), rate))
    return min(found)


def adoptions(refresh: zoo.Refresh, delay: int, steps: int) -> int:
    """How many refreshes are adopted within a run."""
    start, every = refresh.start or 1, refresh.every
    ramp = [start * 2**i for i in range(64) if start * 2**i < every]
    begins = [*ramp, *range(every, steps + every + 1, every)]
    due = [min(b + delay, after) for b, after in itertools.pairwise(begins)]
    return sum(step <= steps for step in due)


def main(settings: Settings) -> None:
    console = Console()
    if settings.steps < 3 * max(settings.intervals):
        raise SystemExit(f"--steps {settings.steps}: at least {3 * max(settings.intervals)} needed")
    data = jnp.asarray(pictures(settings.seed))
    cells = [
        (every, delay, start)
        for every in settings.intervals
        for delay in (0, every)
        for start in settings.starts
        if start <= every
    ]
    table = Table("N", "D", "S", "adoptions", "final loss", "learning rate")
    lines = ["| N | D | S | adoptions | final loss | learning rate |", "|--:|--:|--:|--:|--:|--:|"]

    def say(*entries: Any) -> None:
        table.add_row(*map(str, entries))
        lines.append("| " + " | ".join(map(str, entries)) + " |")

    for every, delay, start in track(cells, "training", console=console):
        refresh = zoo.Refresh(
            every=every, delay=delay, start=start, drift_every=settings.drift_every
        )
        make = partial(zoo.shampoo, refresh=refresh)
        value, rate = best([make], settings.rates, [0.1], data, settings)
        say(every, delay, start, adoptions(refresh, delay, settings.steps), f"{value:.2f}", rate)
    adamw = [partial(optax.adamw, b2=0.95, weight_decay=0.0, nesterov=n) for n in (True, False)]
    value, rate = best(adamw, settings.adamw_rates, [0.1, 0.2], data, settings)
    say("AdamW", "", "", "", f"{value:.2f}", f"{rate:g}")
    console.print(table)
    if settings.markdown:
        settings.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
