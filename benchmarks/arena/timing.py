"""What a step of each contender costs, all interleaved in one process.

    python -m benchmarks.arena.timing

A round runs every contender for as many steps as its longest refresh interval, one after the
other, so that what else the machine does meets all of them; the cost is the median over rounds of
a round's mean step, roots and waiting included. Before each turn the roots that the one before has
begun come to an end, and some steps without a clock begin one's own.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.arena._contenders import BASELINES, CONTENDERS
from benchmarks.arena._protocol import DEFAULT_B2
from benchmarks.arena._results import Results
from benchmarks.arena._training import Trainer
from benchmarks.arena._workloads import WORKLOADS
from benchmarks.arena.run import RESULTS, check_names

FILE, KEY = "timing.jsonl", ("workload", "contender")
WARM = 60  # steps before the first round: past the ramp of refreshes
LEAD, REST = 10, 0.5  # steps and seconds before each turn


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times steps, compiled and warm."""

    workloads: tuple[str, ...] = ("autoencoder", "language_model")
    """Names of workloads."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """Names of contenders."""
    rounds: int = 5
    """Rounds through all contenders."""
    steps: int = 50
    """Steps of each in a round."""
    out: Path = RESULTS
    """Folder of the results."""


def known(results: Path) -> dict[tuple[str, str], float]:
    """(workload, contender) -> milliseconds of a step."""
    return {(r["workload"], r["contender"]): r["ms"] for r in Results(results / FILE, KEY)}


class _Runner:
    """A training that can be continued for some steps."""

    def __init__(self, workload: str, contender: str, data: object):
        trainer = Trainer(WORKLOADS[workload], CONTENDERS[contender], DEFAULT_B2, data)
        self._step, self._data, self._number = trainer.step, data, 0
        self._carry = trainer.start(CONTENDERS[contender].rate, 10**6, 0)
        self._key = jax.random.key(0)

    def run(self, steps: int) -> None:
        """Goes on for some steps."""
        for _ in range(steps):
            number, rate, total = jnp.int32(self._number), jnp.float32(1e-4), jnp.int32(10**6)
            *carry, _ = self._step(*self._carry, self._key, number, rate, total, self._data)
            self._carry, self._number = tuple(carry), self._number + 1
        jax.block_until_ready(self._carry)

    def milliseconds(self, steps: int) -> float:
        """The mean time of the next steps."""
        time.sleep(REST)
        self.run(LEAD)
        start = time.perf_counter()
        self.run(steps)
        return 1000 * (time.perf_counter() - start) / steps


def main(settings: Settings) -> None:
    """Times and prints; the newest figures replace older ones."""
    check_names("--workloads", settings.workloads, WORKLOADS)
    check_names("--contenders", settings.contenders, CONTENDERS)
    console = Console()
    names = list(dict.fromkeys([next(iter(BASELINES)), *settings.contenders]))
    names = [n for n in names if n not in BASELINES or n == names[0]]
    with Results(settings.out / FILE, KEY) as results:
        for workload in settings.workloads:
            data = WORKLOADS[workload].data()
            runners = {name: _Runner(workload, name, data) for name in names}
            for runner in track(runners.values(), f"{workload}: warm-up", console=console):
                runner.run(WARM)
            found: dict[str, list[float]] = {name: [] for name in names}
            for _ in track(range(settings.rounds), f"{workload}: timing", console=console):
                for name, runner in runners.items():
                    found[name].append(runner.milliseconds(settings.steps))
            base = statistics.median(found[names[0]])
            for name, times in found.items():
                ms = statistics.median(times)
                console.print(f"{workload}: {name}, {ms:.2f} ms, {ms / base:.2f} x AdamW's")
                same = BASELINES if name == names[0] else (name,)  # b2 costs nothing
                for contender in same:
                    results.add({"workload": workload, "contender": contender, "ms": round(ms, 3)})


if __name__ == "__main__":
    main(tyro.cli(Settings))
