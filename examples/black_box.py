"""Trains a digit classifier on its accuracy, a metric that has no gradient.

    python examples/black_box.py                        # about a minute on one core
    python examples/black_box.py --tune --seeds 3       # how the settings below were chosen
    python examples/black_box.py --steps 100 --seeds 2 --out runs/black_box

A network with one hidden layer learns scikit-learn's handwritten digits in four ways. Every way
takes the same number of Adam steps from the same starts on the same mini-batches, and had six
settings tried on a validation set; what differs is what it asks of a mini-batch in a step.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, StrMethodFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits

import optax_zoo as zoo

PARTS = {"train": 1000, "validation": 297, "test": 500}
EVALUATIONS = 30  # of the held-out pictures, in a run
ADAM = optax.scale_by_adam()
TUNING_SEED = 1000  # the first of the seeds that settings are tried with


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains a small classifier on its accuracy, and on the cross-entropy for comparison."""

    steps: int = 300
    """Adam steps of each run, at least 30."""
    seeds: int = 5
    """Runs of each way, which differ in first weights, mini-batches and noise."""
    directions: int = 32
    """Noise directions per step of the zeroth-order estimates; each takes two evaluations."""
    candidates: int = 16
    """Candidates per step of MGS."""
    batch: int = 200
    """Pictures per step."""
    hidden: int = 16
    """Width of the hidden layer."""
    tune: bool = False
    """Try every setting of the grid on the validation pictures instead, with seeds of its own."""
    out: Path = Path("runs/black_box")
    """Folder for the picture."""

    def check(self) -> None:
        """Exits with a message for values that cannot work."""
        least = {"steps": EVALUATIONS, "seeds": 1, "directions": 1, "candidates": 1, "hidden": 1}
        for name, value in {**least, "batch": 1}.items():
            if getattr(self, name) < value:
                raise SystemExit(f"--{name} {getattr(self, name)}: must be at least {value}")
        if self.batch > PARTS["train"]:
            raise SystemExit(f"--batch {self.batch}: there are {PARTS['train']} pictures")


class Pictures(NamedTuple):
    """Handwritten digits, 8 × 8 pixels from 0 to 1."""

    pixels: jax.Array  # (pictures, 64)
    labels: jax.Array  # (pictures,)


class Way(NamedTuple):
    """How a step finds its direction; the grid's first setting is the one that was chosen."""

    grid: Sequence[Mapping[str, float]]
    make: Callable[..., Callable[[Any, jax.Array, Pictures], tuple[Any, Any]]]
    asks: Callable[[Settings], str]


def load() -> dict[str, Pictures]:
    """The parts of the data, which are the same in every run."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    ends = np.cumsum(list(PARTS.values()))
    return {
        name: Pictures(jnp.asarray(pixels[rows] / 16, jnp.float32), jnp.asarray(labels[rows]))
        for name, rows in zip(PARTS, np.split(order, ends[:-1]), strict=True)
    }


def first_weights(key: jax.Array, hidden: int) -> dict[str, jax.Array]:
    into, out = jax.random.split(key)
    return {
        "into": jax.random.normal(into, (64, hidden)) / 8,
        "bias": jnp.zeros(hidden),
        "out": jax.random.normal(out, (hidden, 10)) / hidden**0.5,
    }


def logits(params: Any, pixels: jax.Array) -> jax.Array:
    return jnp.tanh(pixels @ params["into"] + params["bias"][None]) @ params["out"]


def cross_entropy(params: Any, data: Pictures) -> jax.Array:
    scores = logits(params, data.pixels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(scores, data.labels).mean()


def error_rate(params: Any, data: Pictures) -> jax.Array:
    """1 − accuracy: piecewise constant, so that its gradient is 0 almost everywhere."""
    return jnp.mean(logits(params, data.pixels).argmax(-1) != data.labels)


def by_gradient(settings: Settings):
    del settings

    def estimate(params, key, data):
        del key
        return jax.value_and_grad(cross_entropy)(params, data)

    return estimate


def by_differences(settings: Settings, sigma: float):
    return zoo.zeroth_order_grad(error_rate, sigma=sigma, num_samples=settings.directions)


def by_ranks(settings: Settings, sigma: float):
    return zoo.zeroth_order_grad(
        error_rate, sigma=sigma, num_samples=settings.directions, kind="ranks"
    )


def by_guided_search(settings: Settings, alpha: float):
    return zoo.guided_search(
        cross_entropy,
        error_rate,
        alpha=alpha,
        sigma="uniform",
        num_samples=settings.candidates,
    )


def settings_of(rates: Sequence[float], **options: Sequence[float]) -> list[dict[str, float]]:
    names = ("rate", *options)
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(rates, *options.values())
    ]


WAYS = {
    "gradient of the cross-entropy": Way(
        settings_of([1e-1, 1e-3, 3e-3, 1e-2, 3e-2, 3e-1]), by_gradient, lambda s: "1 gradient"
    ),
    "MGS: accuracy, guided by the cross-entropy": Way(
        settings_of([1e-1, 3e-2, 3e-1], alpha=[1e-3, 1e-4]),
        by_guided_search,
        lambda s: f"1 gradient and {s.candidates} accuracies",
    ),
    "zeroth order: accuracy, antithetic": Way(
        settings_of([1e-1, 3e-2, 3e-1], sigma=[0.3, 1.0]),
        by_differences,
        lambda s: f"{2 * s.directions} accuracies",
    ),
    "zeroth order: accuracy, ranks": Way(
        settings_of([1e-1, 3e-2, 3e-1], sigma=[0.3, 1.0]),
        by_ranks,
        lambda s: f"{2 * s.directions} accuracies",
    ),
}


def prepare(
    way: Way, settings: Settings, data: Mapping[str, Pictures], held_out: Pictures
) -> Callable[..., Any]:
    """Compiles the steps between two evaluations for all seeds; a setting is an argument."""

    def stretch(params, state, key, steps, values):
        options = {name: value for name, value in values.items() if name != "rate"}
        estimate = way.make(settings, **options)

        def step(carry, number):
            params, state = carry
            rows_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
            rows = jax.random.choice(rows_key, PARTS["train"], (settings.batch,), replace=False)
            batch = jax.tree.map(lambda x: x[rows], data["train"])
            _, grads = estimate(params, noise_key, batch)
            updates, state = ADAM.update(grads, state)
            rate = values["rate"] * (1 + jnp.cos(jnp.pi * number / settings.steps)) / 2
            updates = optax.tree.scale(-rate, updates)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), steps)
        return params, state, 1 - error_rate(params, held_out)

    return jax.jit(jax.vmap(stretch, in_axes=(0, 0, 0, None, None)))


def train(
    stretch: Callable[..., Any],
    values: Mapping[str, float],
    settings: Settings,
    first_seed: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Held-out accuracies after each stretch: (seeds, EVALUATIONS)."""
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(settings.seeds))
    params = jax.vmap(partial(first_weights, hidden=settings.hidden))(keys)
    state = jax.vmap(ADAM.init)(params)
    found = []
    for steps in np.split(np.arange(length(settings) * EVALUATIONS), EVALUATIONS):
        params, state, accuracy = stretch(params, state, keys, steps, dict(values))
        found.append(accuracy.block_until_ready())
        advance(len(steps))
    return np.stack(found, axis=1)


def length(settings: Settings) -> int:
    """Steps between evaluations."""
    return settings.steps // EVALUATIONS


def draw(curves: Mapping[str, np.ndarray], settings: Settings, path: Path) -> None:
    """Error over steps, a line for the mean of the seeds and a band from the best to the worst."""
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="training step", yscale="log")
    axes.set_title(
        "Training a digit classifier on its accuracy, which has no gradient\n", fontsize=13
    )
    axes.text(
        0.5,
        1.02,
        f"lines: mean of {settings.seeds} seeds, bands: best to worst; the same "
        f"{settings.batch} pictures in each step",
        transform=axes.transAxes,
        ha="center",
        color="0.35",
    )
    axes.set_ylabel("errors on 500 test pictures (log scale)")
    steps = np.arange(1, EVALUATIONS + 1) * length(settings)
    colours = matplotlib.color_sequences["tab10"]
    for (name, accuracy), colour in zip(curves.items(), colours, strict=False):
        errors = 100 * (1 - accuracy)
        last = errors[:, -1].mean()
        label = f"{name}\n    {WAYS[name].asks(settings)} per step, ends at {last:.1f} %"
        axes.plot(steps, errors.mean(0), color=colour, label=label)
        axes.fill_between(steps, errors.min(0), errors.max(0), color=colour, alpha=0.15, lw=0)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9.5)
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 30, 50, 100]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    axes.minorticks_off()
    axes.set(xlim=(0, steps[-1]), ylim=(None, 100))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    settings = tyro.cli(Settings, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    settings.check()
    console, data = Console(), load()
    tried = [
        (name, values)
        for name, way in WAYS.items()
        for values in (way.grid if settings.tune else way.grid[:1])
    ]
    held_out = data["validation" if settings.tune else "test"]
    first_seed = TUNING_SEED if settings.tune else 0
    table = Table("way", "setting", "asked of a mini-batch per step", "accuracy, %", "worst seed")
    curves: dict[str, np.ndarray] = {}
    compiled = {name: prepare(way, settings, data, held_out) for name, way in WAYS.items()}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=len(tried) * length(settings) * EVALUATIONS)
        for name, values in tried:
            progress.update(task, description=name)
            advance = partial(progress.advance, task)
            curve = train(compiled[name], values, settings, first_seed, advance)
            curves.setdefault(name, curve)
            last = 100 * curve[:, -1]
            setting = ", ".join(f"{key} {value:g}" for key, value in values.items())
            asked = WAYS[name].asks(settings)
            table.add_row(name, setting, asked, f"{last.mean():.1f}", f"{last.min():.1f}")
    table.title = f"{'validation' if settings.tune else 'test'}, after {settings.steps} steps"
    console.print(table)
    if not settings.tune:
        path = settings.out / "black_box.png"
        draw(curves, settings, path)
        console.print(f"picture: {path}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
