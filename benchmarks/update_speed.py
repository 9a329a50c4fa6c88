"""What one update costs, against Optax and against the memory that it must move.

The unit is the part of a training step that belongs to the optimizer, compiled as one program:
(parameters, state, gradients) -> (parameters, state), parameters and state donated,
`optax.apply_updates` included. All optimizers of a case run in one process, interleaved, and each
is judged by its fastest sample.

    python -m benchmarks.update_speed
    python -m benchmarks.update_speed --optimizers lion lamb --markdown table.md --json speed.json
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import optax_zoo as zoo

CASES: dict[str, list[tuple[int, ...]]] = {
    "16 matrices of 1024²": [(1024, 1024)] * 16,
    "300 small leaves": [(64,), (32, 16), (16, 16)] * 100,
}


class Contest(NamedTuple):
    """An optimizer and the one of Optax that it is held against.

    Attributes:
      ours: The optimizer.
      peer: Optax's of the same name or, with `relative`, the nearest that moves the same bytes.
      peer_name: What the table calls the peer.
    """

    ours: optax.GradientTransformation
    peer: optax.GradientTransformation
    peer_name: str


def _contest(
    name: str,
    rate: float,
    peer: optax.GradientTransformation,
    peer_name: str,
    **arguments: float,
) -> tuple[str, Contest]:
    return name, Contest(zoo.create(name, rate, **arguments), peer, peer_name)


_ADAM_L2 = optax.chain(optax.add_decayed_weights(5e-4), optax.adam(1e-3))
# By the zoo's names.
CONTESTS: dict[str, Contest] = dict(
    [
        _contest("lion", 1e-4, optax.lion(1e-4), "lion"),
        _contest("lars", 1.0, optax.lars(1.0, 1e-4), "lars", weight_decay=1e-4),
        _contest("lamb", 1e-3, optax.lamb(1e-3, weight_decay=0.01), "lamb", weight_decay=0.01),
        _contest("adabound", 1e-3, optax.adam(1e-3), "adam*"),
        _contest("adaboundw", 1e-3, optax.adamw(1e-3), "adamw*", weight_decay=1e-5),
        _contest("amsbound", 1e-3, optax.amsgrad(1e-3), "amsgrad*"),
        _contest("adax", 1.5e-3, _ADAM_L2, "adam with L2*"),
        _contest("adaxw", 5e-3, optax.adamw(1e-3, weight_decay=5e-2), "adamw*"),
    ]
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times one update of each optimizer."""

    optimizers: tuple[str, ...] = tuple(CONTESTS)
    """Which optimizers to time."""
    samples: int = 30
    """Interleaved samples of each; the fastest counts."""
    sample_seconds: float = 0.02
    """Calls are repeated within a sample until it lasts about as long as this."""
    json: Path | None = None
    """Where to write the figures as JSON."""
    markdown: Path | None = None
    """Where to write the tables as Markdown."""

    def __post_init__(self):
        unknown = set(self.optimizers) - set(CONTESTS)
        if unknown:
            raise ValueError(
                f"optimizers has {sorted(unknown)}, got none of that name; choose from "
                f"{', '.join(CONTESTS)}"
            )
        if self.samples < 1:
            raise ValueError(f"samples must be >= 1, got {self.samples}; 30 is the default")


class Runner:
    """A compiled, donated update with its own parameters and state, called over and over."""

    def __init__(self, step: Callable[..., Any], params: Any, state: Any, *extra: Any):
        self.bytes_to_move = _bytes(params) * 2 + _bytes(state) * 2 + _bytes(extra)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *extra)
        self.compiled = lowered.compile()
        self.carry, self.extra = (params, state), extra
        self.calls = 1
        self.best = float("inf")

    def sample(self) -> float:
        """Seconds of one call, averaged over `calls`."""
        start = time.perf_counter()
        for _ in range(self.calls):
            self.carry = self.compiled(*self.carry, *self.extra)
        jax.block_until_ready(self.carry)
        seconds = (time.perf_counter() - start) / self.calls
        self.best = min(self.best, seconds)
        return seconds

    def prepare(self, sample_seconds: float) -> None:
        """Warms up and sets how many calls make a sample."""
        self.sample()
        self.calls = max(1, round(sample_seconds / self.sample()))
        self.best = float("inf")

    @property
    def bytes_moved(self) -> float:
        """What the compiled program reads and writes, each kernel's operands counted."""
        analysis = self.compiled.cost_analysis()
        return float((analysis or {}).get("bytes accessed", float("nan")))


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _parameters(shapes: list[tuple[int, ...]], seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        f"w{i}": jnp.asarray(rng.normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)
    }


def _update(tx: optax.GradientTransformation, shapes: list[tuple[int, ...]]) -> Runner:
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = _parameters(shapes, seed=0)
    return Runner(step, params, tx.init(params), _parameters(shapes, seed=1))


def _scaled_copy(shapes: list[tuple[int, ...]]) -> Runner:
    """The streaming limit: every array read once and written in place once."""
    return Runner(
        lambda params, state: (jax.tree.map(lambda x: 0.999 * x, params), state),
        _parameters(shapes, seed=0),
        (),
    )


def measure(settings: Settings, shapes: list[tuple[int, ...]], title: str) -> list[dict[str, Any]]:
    """Times the optimizers of one case, with their peers and the scaled copy."""
    copy = _scaled_copy(CASES["16 matrices of 1024²"])
    ours = {name: _update(CONTESTS[name].ours, shapes) for name in settings.optimizers}
    peers: dict[str, Runner] = {}
    for name in settings.optimizers:
        peer_name = CONTESTS[name].peer_name
        if peer_name not in peers:
            peers[peer_name] = _update(CONTESTS[name].peer, shapes)
    runners = [copy, *ours.values(), *peers.values()]
    for runner in runners:
        runner.prepare(settings.sample_seconds)
    for _ in track(range(settings.samples), description=title, transient=True):
        for runner in runners:
            runner.sample()
    bandwidth = copy.bytes_to_move / copy.best
    size = sum(int(np.prod(shape)) for shape in shapes)
    return [
        {
            "optimizer": name,
            "milliseconds": runner.best * 1e3,
            "peer": CONTESTS[name].peer_name,
            "ratio_to_peer": runner.best / peers[CONTESTS[name].peer_name].best,
            "ratio_to_floor": runner.best * bandwidth / runner.bytes_to_move,
            "passes": runner.bytes_moved / runner.bytes_to_move,
            "state_bytes_per_parameter": _bytes(runner.carry[1]) / size,
            "gigabytes_per_second": bandwidth / 1e9,
        }
        for name, runner in ours.items()
    ]


COLUMNS: Mapping[str, str] = {
    "optimizer": "{}",
    "milliseconds": "{:.2f}",
    "peer": "{}",
    "ratio_to_peer": "{:.2f} ×",
    "ratio_to_floor": "{:.1f} ×",
    "passes": "{:.2f}",
    "state_bytes_per_parameter": "{:.1f}",
}
HEADINGS = ("optimizer", "ms", "Optax's", "to Optax", "to the floor", "passes", "state B/param")
FOOTNOTE = (
    "floor: bytes that must move (each array once) over the best in-place scaled copy of the run; "
    "passes: bytes that the compiled program moves over the same bytes; "
    "*: no optimizer of this name in Optax, the nearest that moves the same bytes."
)


def machine() -> str:
    """The machine and libraries, for the table's caption."""
    device = jax.devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    return (
        f"{device.platform} ({device.device_kind}{', ' if kind else ''}{kind}, "
        f"{os.cpu_count()} cores), jax {jax.__version__}, optax {optax.__version__}, "
        f"Python {platform.python_version()}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [form.format(row[key]) for key, form in COLUMNS.items()]


def markdown(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables of all cases as Markdown."""
    lines = [f"Measured on {machine()}.", ""]
    for title, rows in results.items():
        lines += [f"**{title}** (copy: {rows[0]['gigabytes_per_second']:.0f} GB/s)", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|---" + "|---:" * (len(HEADINGS) - 1) + "|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
        lines.append("")
    return "\n".join([*lines, FOOTNOTE, ""])


def main(settings: Settings) -> None:
    """Measures every case, prints the tables and writes what was asked for."""
    console = Console()
    results = {title: measure(settings, shapes, title) for title, shapes in CASES.items()}
    for title, rows in results.items():
        speed = rows[0]["gigabytes_per_second"]
        table = Table(*HEADINGS, title=f"{title} (copy: {speed:.0f} GB/s)")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*_cells(row))
        console.print(table)
    console.print(f"{FOOTNOTE}\n{machine()}", highlight=False)
    if settings.json is not None:
        settings.json.write_text(
            json.dumps({"machine": machine(), "cases": results}, indent=2), encoding="utf-8"
        )
    if settings.markdown is not None:
        settings.markdown.write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
