"""What Shampoo's and SOAP's defaults are worth: each changed alone, on two workloads and two more.

    python -m benchmarks.arena.defaults

At a quarter of each budget, each variant tuned like a contender, two seeds. A default is set on the
autoencoder and the matrix, and confirmed on the others.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import tyro
from rich.progress import track

import optax_zoo as zoo
from benchmarks.arena._contenders import with_decay
from benchmarks.arena._markdown import table
from benchmarks.arena._protocol import KEY, Arena, Missing, Trials
from benchmarks.arena._results import Results
from benchmarks.arena._verdicts import spread
from benchmarks.arena._workloads import WORKLOADS
from benchmarks.arena.run import RESULTS, check_names

SHARE, SEEDS = 0.25, (0, 1)
SET_ON, CONFIRMED_ON = ("autoencoder", "matrix"), ("language_model", "softmax")
DEFAULT = "as it is"


CHANGES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "b1=0.95": {"b1": 0.95},
    "b1=0.8": {"b1": 0.8},
    "b2=0.9": {"b2": 0.9},
    "b2=0.99": {"b2": 0.99},
    "nesterov=False": {"nesterov": False},
    "graft_to=optax.scale_by_rms(0.95)": {"graft_to": optax.scale_by_rms(0.95)},
    "graft_to=optax.identity()": {"graft_to": optax.identity()},
    "exponent=4": {"exponent": 4},
    "Roots(ridge=1e-2)": {"roots": zoo.Roots(ridge=1e-2)},
    "Roots(ridge=1e-3)": {"roots": zoo.Roots(ridge=1e-3)},
    "Roots(ridge=1e-6)": {"roots": zoo.Roots(ridge=1e-6)},
    "Roots(dtype=jnp.bfloat16)": {"roots": zoo.Roots(dtype=jnp.bfloat16)},
    "Refresh(delay=0)": {"refresh": zoo.Refresh(delay=0)},
    "Refresh(start=1)": {"refresh": zoo.Refresh(start=1)},
    "Refresh(5)": {"refresh": zoo.Refresh(5)},
    "Refresh(20)": {"refresh": zoo.Refresh(20)},
    "Refresh(drift_every=5)": {"refresh": zoo.Refresh(drift_every=5)},
    "Refresh(start=1, drift_every=5)": {"refresh": zoo.Refresh(start=1, drift_every=5)},
    "Refresh(statistics_every=2)": {"refresh": zoo.Refresh(statistics_every=2)},
    "Blocks(128)": {"blocks": zoo.Blocks(128)},
    "Blocks(skip_above=255)": {"blocks": zoo.Blocks(skip_above=255)},
}
SOAP_CHANGES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "b1=0.9": {"b1": 0.9},
    "b2=0.9": {"b2": 0.9},
    "b2=0.99": {"b2": 0.99},
    "nesterov=True": {"nesterov": True},
    "Refresh(delay=0)": {"refresh": zoo.Refresh(delay=0)},
    "Refresh(start=1)": {"refresh": zoo.Refresh(start=1)},
    "Refresh(start=1, delay=0)": {"refresh": zoo.Refresh(start=1, delay=0)},
    "Blocks(skip_above=255)": {"blocks": zoo.Blocks(skip_above=255)},
}
SOAP = "soap: "
VARIANTS = {name: with_decay("shampoo", 1e-2, **changes) for name, changes in CHANGES.items()}
VARIANTS |= {
    SOAP + name: with_decay("soap", 3e-3, **changes) for name, changes in SOAP_CHANGES.items()
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Runs every variant."""

    workloads: tuple[str, ...] = (*SET_ON, *CONFIRMED_ON)
    """Names of workloads."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Names of variants."""
    out: Path = RESULTS
    """Folder of the results."""


def _arena(workload: str, results: Path, *, only_known: bool) -> Arena:
    store = Results(results / f"defaults_{workload}.jsonl", KEY)
    return Arena(
        WORKLOADS[workload], store, seeds=SEEDS, contenders=VARIANTS, only_known=only_known
    )


def best(arena: Arena, variant: str) -> Trials:
    """A variant, tuned at this share."""
    return arena.seeded(variant, arena.tune(variant, SHARE), SHARE)


def section(results: Path, _: Path) -> list[str]:
    """The report's part."""
    every = {workload: _known(workload, results) for workload in (*SET_ON, *CONFIRMED_ON)}
    parts = []
    for title, changes, prefix in (("Shampoo", CHANGES, ""), ("SOAP", SOAP_CHANGES, SOAP)):
        columns = {w: found for w, found in every.items() if prefix + DEFAULT in found}
        if not columns:
            continue
        head = [f"{title}: change", *(w.replace("_", " ") for w in columns)]
        rows = [
            [f"`{name}`", *(_cell(found, prefix, name) for found in columns.values())]
            for name in changes
        ]
        parts.append(table(head, rows))
    if not parts:
        return []
    return [
        "## Shampoo's and SOAP's defaults\n",
        "Final score with one default changed, relative to that with the defaults (`Refresh(10)`: "
        "from step 10 on, roots and bases ten steps late), at a quarter of each budget, each "
        "variant tuned, means of two seeds; in brackets, the two seeds' spread with the defaults. "
        "The first two workloads are those on which defaults are set, the others are to confirm "
        "them; empty: not run.\n",
        *parts,
    ]


def _known(workload: str, results: Path) -> dict[str, Trials]:
    arena, found = _arena(workload, results, only_known=True), {}
    for variant in VARIANTS:
        try:
            found[variant] = best(arena, variant)
        except Missing:
            continue
    return found


def _cell(found: dict[str, Trials], prefix: str, name: str) -> str:
    if prefix + name not in found:
        return ""
    base = found[prefix + DEFAULT]
    if name == DEFAULT:
        return f"{base.mean:.3g} (± {100 * spread(base.scores) / base.mean:.0f} %)"
    ratio = found[prefix + name].mean / base.mean
    return f"{ratio:.3g}" if math.isfinite(ratio) else "diverged"


def main(settings: Settings) -> None:
    """Runs what is missing."""
    check_names("--workloads", settings.workloads, WORKLOADS)
    check_names("--variants", settings.variants, VARIANTS)
    for workload in settings.workloads:
        arena = _arena(workload, settings.out, only_known=False)
        with arena.results:
            for variant in track(settings.variants, f"{workload}: training"):
                best(arena, variant)


if __name__ == "__main__":
    main(tyro.cli(Settings))
