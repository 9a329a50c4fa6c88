"""How far can the batch grow? LARS, LAMB, SGD and AdamW at batches of ×1 to ×64, epochs fixed.

    python examples/large_batch.py                  # both tasks, half an hour on two cores
    python examples/large_batch.py --tasks digits --multiples 1 8 --seeds 1

A CNN on scikit-learn's digits and `train_lm`'s Transformer. Every optimizer's rate is tuned at the
smallest batch, one factor of √10 at a time until both neighbours of the best are worse, and from
there scaled by the linear and by the square-root rule, with a warm-up of a tenth of the run and a
linear decay. The folder receives results.json and large_batch.png.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits

import optax_zoo as zoo
from lm.data import even_windows, load_corpus, random_windows
from lm.model import ByteTransformer, next_byte_loss
from lm.optimizers import matrices

RULES = ("linear", "sqrt")
WARMUP = 0.1  # of the run
FACTOR = math.sqrt(10)  # between learning rates that are tried


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tunes at the smallest batch, scales the rate, and draws what becomes of the result."""

    tasks: tuple[Literal["digits", "text"], ...] = ("digits", "text")
    optimizers: tuple[Literal["sgd", "lars", "adamw", "lamb"], ...] = (
        "sgd",
        "lars",
        "adamw",
        "lamb",
    )
    multiples: tuple[int, ...] = (1, 4, 16, 64)
    """Batch sizes over the smallest one, which comes first."""
    seeds: int = 2
    share: float = 1.0
    """The share of the examples to train on, for a quick look."""
    out: Path = Path("runs/large_batch")


class Task(NamedTuple):
    """What is learned: examples along the first axis, and how a model is made and judged."""

    name: str
    examples: tuple[np.ndarray, ...]
    order: Callable[[int], np.ndarray]  # seed -> the examples of the whole run, one after another
    base_batch: int
    init: Callable[[int], Any]  # seed -> parameters
    loss: Callable[..., jax.Array]  # (parameters, *batch) -> scalar
    error: Callable[[Any], jax.Array]  # parameters -> what is to be small
    label: str
    chance: float
    ticks: Sequence[float]


def digits(share: float) -> Task:
    """A CNN with two convolutions; every fifth picture is held out."""
    pixels, target = load_digits(return_X_y=True)
    images = (pixels / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    labels = target.astype(np.int32)
    held_out = np.arange(len(labels)) % 5 == 0
    graph, _ = nnx.split(_cnn(0))

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def error(params: Any) -> jax.Array:
        wrong = logits(params, jnp.asarray(images[held_out])).argmax(-1) != labels[held_out]
        return 100 * wrong.mean()

    epochs = max(1, round(20 * share))

    def order(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.concatenate([rng.permutation(int((~held_out).sum())) for _ in range(epochs)])

    return Task(
        f"CNN on digits, {epochs} epochs",
        (images[~held_out], labels[~held_out]),
        order,
        16,
        lambda seed: nnx.state(_cnn(seed)),
        loss,
        error,
        "held-out error, %",
        90.0,
        (1, 2, 3, 5, 10, 20, 50, 90),
    )


def _cnn(seed: int) -> nnx.Sequential:
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        nnx.Conv(1, 16, (3, 3), rngs=rngs),
        nnx.relu,
        nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs),
        nnx.relu,
        lambda x: x.reshape(x.shape[0], -1),
        nnx.Linear(512, 10, rngs=rngs),
    )


def text(share: float) -> Task:
    """`train_lm`'s Transformer, smaller; every example is seen once."""
    corpus = load_corpus()
    context, count = 64, round(4096 * share)
    windows = random_windows(corpus.train, 0, 0, count, context)
    held_out = jnp.asarray(even_windows(corpus.held_out, 256, context))
    graph, _ = nnx.split(_transformer(0))

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        return next_byte_loss(nnx.merge(graph, params), batch)

    return Task(
        "Transformer on text, one epoch",
        (windows,),
        lambda seed: np.random.default_rng(seed).permutation(count),
        4,
        lambda seed: nnx.state(_transformer(seed)),
        loss,
        lambda params: loss(params, held_out) / math.log(2),
        "held-out bits per byte",
        8.0,
        (2, 2.5, 3, 3.5, 4, 5, 6, 8),
    )


def _transformer(seed: int) -> ByteTransformer:
    return ByteTransformer(64, 2, 4, rngs=nnx.Rngs(seed))


TASKS: dict[str, Callable[[float], Task]] = {"digits": digits, "text": text}
# Decay and trust ratios for matrices alone; where the search for the rate begins.
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (partial(optax.sgd, momentum=0.9, nesterov=True), 0.1),
    "lars": (
        partial(zoo.lars, weight_decay=1e-4, weight_decay_mask=matrices, trust_ratio_mask=matrices),
        3.0,
    ),
    "adamw": (partial(optax.adamw, weight_decay=0.01, mask=matrices), 3e-3),
    "lamb": (partial(zoo.lamb, weight_decay=0.01, mask=matrices, trust_ratio_mask=matrices), 1e-2),
}


class Trainer:
    """Runs one task with one optimizer; programs are compiled once for each batch size."""

    def __init__(self, task: Task, factory: Callable[..., optax.GradientTransformation]):
        self.task, self.factory = task, factory
        self._run = jax.jit(self._train)

    def _train(self, params: Any, batches: Any, rates: jax.Array) -> jax.Array:
        tx = self.factory(lambda count: rates[count])

        def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            gradients = jax.grad(self.task.loss)(params, *batch)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return self.task.error(params)

    def error(self, rate: float, multiple: int, rule: str, seed: int) -> float:
        """What is left at the end; infinite for a run that diverged."""
        batch = self.task.base_batch * multiple
        order = self.task.order(seed)
        steps = len(order) // batch
        chosen = order[: steps * batch].reshape(steps, batch)
        schedule = zoo.large_batch_schedule(
            rate,
            self.task.base_batch,
            batch,
            total_steps=steps,
            warmup_steps=round(WARMUP * steps),
            rule=rule,
        )
        rates = jax.vmap(schedule)(jnp.arange(1, steps + 1))  # a first step of rate 0 is lost
        batches = tuple(jnp.asarray(x[chosen]) for x in self.task.examples)
        found = float(self._run(self.task.init(seed), batches, rates))
        return found if math.isfinite(found) else math.inf

    def tuned(self, start: float, say: Callable[[str], None]) -> float:
        """The best rate at the smallest batch, its neighbours on both sides being worse."""
        found: dict[int, float] = {}

        def at(power: int) -> float:
            if power not in found:
                found[power] = self.error(start * FACTOR**power, 1, "linear", seed=1000)
                say(f"{start * FACTOR**power:.2g}: {found[power]:.3g}")
            return found[power]

        best = min((-1, 0, 1), key=at)
        while (better := min((best - 1, best, best + 1), key=at)) != best:
            best = better
        return start * FACTOR**best


def measure(settings: Settings, console: Console) -> dict[str, Any]:
    """task -> optimizer -> its rate and, by rule and multiple, the errors of all seeds."""
    results: dict[str, Any] = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    scaled = [m for m in settings.multiples if m != 1]
    runs = settings.seeds * (1 + len(scaled) * len(RULES))
    with bar:
        for name in settings.tasks:
            task = TASKS[name](settings.share)
            found = results[name] = {}
            for optimizer in settings.optimizers:
                factory, start = OPTIMIZERS[optimizer]
                trainer = Trainer(task, factory)
                row = bar.add_task(f"{optimizer} on {name}", total=runs, status="tuning")
                rate = trainer.tuned(start, lambda said, row=row: bar.update(row, status=said))
                errors: dict[str, dict[int, list[float]]] = {rule: {} for rule in RULES}
                for multiple in settings.multiples:
                    for rule in RULES:
                        if multiple == 1 and rule != RULES[0]:
                            errors[rule][1] = errors[RULES[0]][1]
                            continue
                        errors[rule][multiple] = []
                        for seed in range(settings.seeds):
                            error = trainer.error(rate, multiple, rule, seed)
                            errors[rule][multiple].append(error)
                            bar.update(row, advance=1, status=f"×{multiple} {rule}: {error:.3g}")
                found[optimizer] = {"rate": rate, "errors": errors}
                console.print(_line(optimizer, name, found[optimizer]), highlight=False)
    return results


def _line(optimizer: str, task: str, found: Mapping[str, Any]) -> str:
    parts = [
        f"{rule} " + ", ".join(f"×{m} {np.median(e):.3g}" for m, e in errors.items())
        for rule, errors in found["errors"].items()
    ]
    return f"{task}: {optimizer} at {found['rate']:.2g}: " + "; ".join(parts)


def draw(results: Mapping[str, Any], settings: Settings, path: Path) -> None:
    """One panel for each task: the error over the batch size, a colour for each optimizer."""
    figure = Figure(figsize=(5.2 * len(results), 4.6), dpi=90, layout="constrained")
    for axes, (name, found) in zip(
        np.ravel(figure.subplots(1, len(results))), results.items(), strict=True
    ):
        _panel(axes, TASKS[name](settings.share), found)
    colours = zip(settings.optimizers, matplotlib.color_sequences["tab10"], strict=False)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours]
    handles.append(Line2D([], [], color="grey", label="rate × multiple"))
    handles.append(Line2D([], [], color="grey", linestyle="dashed", label="rate × √multiple"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def _panel(axes: Axes, task: Task, found: Mapping[str, Any]) -> None:
    colours = matplotlib.color_sequences["tab10"]
    for (_, one), colour in zip(found.items(), colours, strict=False):
        for (_, errors), style in zip(one["errors"].items(), ("-", "--"), strict=True):
            batches = [task.base_batch * int(m) for m in errors]
            runs = np.array(list(errors.values()))
            runs = np.fmin(runs, task.chance)
            middle = np.median(runs, 1)
            axes.plot(batches, middle, linestyle=style, color=colour, marker="o", markersize=4)
            axes.fill_between(batches, runs.min(1), runs.max(1), color=colour, alpha=0.1)
    axes.axhline(task.chance, color="grey", linewidth=1, linestyle="dotted")
    axes.annotate("chance, or diverged", (batches[0], task.chance), color="grey", va="bottom")
    axes.set(title=task.name, xlabel="batch", ylabel=task.label, yscale="log")
    axes.set_yticks(task.ticks, [f"{tick:g}" for tick in task.ticks])
    axes.minorticks_off()
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{b:,}" for b in batches])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    settings = tyro.cli(Settings, args=arguments)
    console = Console()
    settings.out.mkdir(parents=True, exist_ok=True)
    results = measure(settings, console)
    (settings.out / "results.json").write_text(json.dumps(results, indent=1))
    draw(results, settings, settings.out / "large_batch.png")
    console.print(f"picture: {settings.out / 'large_batch.png'}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
