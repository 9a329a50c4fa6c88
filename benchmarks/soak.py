"""Ten thousand steps with a refresh in every fifth: memory, threads and tickets stay bounded.

    python -m benchmarks.soak

Exits with 1 if resident memory at the end is more than 5 % from that after a tenth of the steps.
"""

import dataclasses
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.progress import track

import optax_zoo as zoo
from optax_zoo import _host


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains on a noisy quadratic and watches the process (Linux)."""

    steps: int = 10_000
    """Training steps."""
    every: int = 5
    """Interval N between refreshes, and their delay."""
    size: int = 64
    """Side of the matrix."""


def resident_megabytes() -> float:
    """What the process holds in memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main(settings: Settings) -> int:
    """Prints a line at every tenth of the way; returns the exit code."""
    console = Console()
    refresh = zoo.Refresh(every=settings.every, delay=settings.every)
    tx = zoo.shampoo(1e-3, refresh=refresh)
    params = {"w": jnp.ones((settings.size, settings.size)), "b": jnp.ones(settings.size)}

    @jax.jit
    def step(params, state, key):
        noise = jax.random.normal(key, (settings.size, settings.size))
        gradients = {"w": params["w"] + noise, "b": params["b"]}
        updates, state = tx.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state, key = tx.init(params), jax.random.key(0)
    found = []
    for number in track(range(1, settings.steps + 1), "soaking", console=console):
        params, state = step(params, state, jax.random.fold_in(key, number))
        if number % max(1, settings.steps // 10) == 0:
            jax.block_until_ready(params)
            tickets = sum(map(len, _host._host.cache.values()))
            found.append(resident_megabytes())
            console.print(
                f"step {number}: {found[-1]:.1f} MB, {threading.active_count()} Python threads, "
                f"{tickets} tickets, {zoo.inspect(state, params)['w']['failures']:.0f} failures",
                highlight=False,
            )
    change = found[-1] / found[0] - 1
    console.print(f"resident memory from a tenth of the way to the end: {change:+.1%}")
    return int(abs(change) > 0.05)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
