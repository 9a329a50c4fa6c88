"""A learning rate that is off by 10 and 100 times, with and without exponentiated gains.

    python examples/step_size.py                    # a minute on one core
    python examples/step_size.py --steps 100 --seeds 1 --out runs/quick.png

Trains a small network on scikit-learn's handwritten digits and draws the held-out error over the
learning rate; every run has the same number of steps.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits

import optax_zoo as zoo

FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
WIDTHS = (64, 64, 64, 10)
TRAINED = 1400  # of 1797 digits; the others are held out
CHUNKS = 10  # programs per optimizer, for the progress bar
GUESSING = 90.0  # percent
INTERRUPTED = 130  # what shells report for a process that SIGINT ended

Factory = Callable[[Any], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compares learning rates that are off, with and without exponentiated gains."""

    steps: int = 400
    """Training steps of every run."""
    seeds: int = 3
    """Runs of each optimizer and learning rate, from different starts and data orders."""
    batch: int = 64
    """Digits per step."""
    out: Path = Path("runs/step_size.png")
    """The picture."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One optimizer: where it is drawn, how, and how it is made from a learning rate."""

    panel: str
    label: str
    colour: str
    make: Factory
    label_at: float  # the factor next to whose point the label stands
    offset: tuple[float, float]  # from there, in points
    align: Literal["left", "center", "right"]


def gains_on_adam(learning_rate: Any) -> optax.GradientTransformation:
    """Adam whose momentum is the link's: a gain compares the sign of unsmoothed directions."""
    return optax.chain(
        optax.scale_by_adam(b1=0.0),
        zoo.scale_by_exponentiated_gains(0.1 * learning_rate, momentum=0.9),
        optax.scale(-1.0),
    )


def gains_after_adam(learning_rate: Any) -> optax.GradientTransformation:
    """Adam as it is, the gains behind its momentum."""
    return optax.chain(
        optax.scale_by_adam(),
        zoo.scale_by_exponentiated_gains(),
        optax.scale_by_learning_rate(learning_rate),
    )


# Panel -> the best of seven learning rates a decade apart, without gains.
TUNED = {"Momentum SGD": 0.1, "Adam": 0.01}
SGD, ADAM = TUNED
LINES = (
    Line(SGD, "momentum SGD", "0.45", lambda lr: optax.sgd(lr, momentum=0.9), 0.01, (8, 6), "left"),
    Line(SGD, "with gains\n(EGDD)", "C0", lambda lr: zoo.egdd(lr, 0.9), 0.01, (4, -44), "left"),
    Line(ADAM, "Adam", "0.45", optax.adam, 0.01, (8, 4), "left"),
    Line(ADAM, "with gains before\nthe momentum", "C0", gains_on_adam, 1.0, (0, -44), "center"),
    Line(
        ADAM, "with gains behind\nAdam's momentum", "C1", gains_after_adam, 1.0, (-10, 6), "right"
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    settings = tyro.cli(Settings, args=arguments)
    for name in ("steps", "seeds", "batch"):
        if getattr(settings, name) < 1:
            print(f"error: --{name} {getattr(settings, name)}: must be at least 1", file=sys.stderr)
            return 2
    console = Console()
    try:
        run(settings, console)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(settings: Settings, console: Console) -> None:
    """Trains every optimizer at every rate, reports and draws."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    data = load()
    errors: dict[str, np.ndarray] = {}
    with bar:
        task = bar.add_task("", total=CHUNKS * len(LINES))
        for line in LINES:
            bar.update(task, description=plain(line.label))
            rates = TUNED[line.panel] * jnp.array(FACTORS)
            for found in train(line.make, rates, data, settings):
                errors[line.label] = found
                bar.advance(task)
    report(errors, console)
    draw(errors, settings)
    console.print(f"picture: {settings.out}", markup=False, soft_wrap=True)


# --- data and network -------------------------------------------------------------------------


def load() -> tuple[jax.Array, jax.Array]:
    """The digits in a fixed random order, pixels in [0, 1]."""
    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return jnp.asarray(digits.data[order] / 16, jnp.float32), jnp.asarray(digits.target[order])


def initial(key: jax.Array) -> list[dict[str, jax.Array]]:
    """He's initialisation of a multi-layer perceptron."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        {"w": jnp.sqrt(2 / n) * jax.random.normal(k, (n, m)), "b": jnp.zeros(m)}
        for k, n, m in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]


def logits(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


# --- training ---------------------------------------------------------------------------------


def train(
    make: Factory, rates: jax.Array, data: tuple[jax.Array, jax.Array], settings: Settings
) -> Iterator[np.ndarray]:
    """Held-out errors in percent, (rates, seeds), after each share of the steps.

    All rates and seeds are one program: the rate is a traced argument of the optimizer.
    """
    x, y = data

    def begin(rate, key):
        params = initial(key)
        return params, make(rate).init(params)

    def step(rate, carry, key):
        params, state = carry
        drawn = jax.random.randint(key, (settings.batch,), 0, TRAINED)
        grads = jax.grad(loss)(params, x[drawn], y[drawn])
        updates, state = make(rate).update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def advance(rate, keys, carry):
        carry, _ = jax.lax.scan(lambda c, key: step(rate, c, key), carry, keys)
        wrong = logits(carry[0], x[TRAINED:]).argmax(-1) != y[TRAINED:]
        return carry, 100 * wrong.mean()

    # One axis of runs: every rate with every seed.
    starts, orders = jax.random.split(jax.random.key(0), (2, settings.seeds))
    rate = jnp.repeat(rates, settings.seeds)
    start, order = (jnp.tile(keys, len(rates)) for keys in (starts, orders))
    keys = jax.vmap(lambda key: jax.random.split(key, settings.steps))(order)
    carry = jax.jit(jax.vmap(begin))(rate, start)
    advance_runs = jax.jit(jax.vmap(advance))
    ends = np.linspace(0, settings.steps, CHUNKS + 1).astype(int)
    for first, last in itertools.pairwise(ends):
        carry, errors = advance_runs(rate, keys[:, first:last], carry)
        yield np.asarray(errors).reshape(len(rates), settings.seeds)


# --- results ----------------------------------------------------------------------------------


def report(errors: Mapping[str, np.ndarray], console: Console) -> None:
    """Prints the mean errors, one row per optimizer."""
    columns = [f"{factor:g} ×" for factor in FACTORS]
    table = Table("learning rate over the tuned one", *columns, title="held-out error, %")
    for label, found in errors.items():
        table.add_row(plain(label), *[f"{error:.1f}" for error in found.mean(1)])
    console.print(table)


def plain(label: str) -> str:
    return label.replace("\n", " ")


def draw(errors: Mapping[str, np.ndarray], settings: Settings) -> None:
    """Two panels: the mean of the seeds as a line, each seed as a dot."""
    figure = Figure(figsize=(10, 4.8), dpi=110, layout="constrained")
    panels = dict(zip(TUNED, figure.subplots(1, len(TUNED), sharey=True), strict=True))
    for panel, axes in panels.items():
        prepare(axes, f"{panel} (tuned rate: {TUNED[panel]:g})")
        for line in LINES:
            if line.panel == panel:
                draw_line(axes, line, errors[line.label])
    panels[SGD].set_ylabel("held-out error, % (log scale)")
    figure.supxlabel("learning rate over the tuned one (log scale)", fontsize="medium")
    figure.suptitle(
        "A learning rate that is too small or too large, with and without exponentiated gains\n"
        f"scikit-learn's digits, 64-64-64-10 perceptron, {settings.steps} steps; "
        f"lines: mean of {settings.seeds} seeds, dots: each seed",
        fontsize="medium",
    )
    figure.savefig(settings.out)


def prepare(axes: Axes, title: str) -> None:
    axes.set(title=title, xscale="log", yscale="log", ylim=(0.5, 120))
    axes.axhline(GUESSING, color="0.7", linewidth=1, linestyle=":")
    axes.text(FACTORS[0], GUESSING * 1.05, "guessing", color="0.5", va="bottom", fontsize="small")
    axes.xaxis.set_major_locator(FixedLocator(FACTORS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} ×"))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_line(axes: Axes, line: Line, errors: np.ndarray) -> None:
    errors = np.maximum(errors, 0.5)  # where a run makes no mistake
    axes.plot(FACTORS, errors.mean(1), color=line.colour, linewidth=2)
    rates = np.repeat(FACTORS, errors.shape[1])
    axes.scatter(rates, errors.ravel(), color=line.colour, s=12, alpha=0.6, linewidths=0)
    at = FACTORS.index(line.label_at)
    axes.annotate(
        line.label,
        (FACTORS[at], errors[at].mean()),
        xytext=line.offset,
        textcoords="offset points",
        color=line.colour,
        horizontalalignment=line.align,
    )


if __name__ == "__main__":
    sys.exit(main())
