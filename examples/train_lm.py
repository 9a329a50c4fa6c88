"""Trains a byte-level Transformer language model on Python's standard library.

    python examples/train_lm.py                                   # Lion, a minute and a half
    python examples/train_lm.py --optimizer adamw --steps 200 --out runs/adamw
    python examples/train_lm.py --compare lion,adamw,lamb,adabound --out runs/compare
    python examples/train_lm.py --resume                          # after Ctrl-C

The run folder receives metrics.jsonl, checkpoints, config.json and curves.png.
"""

import math
import shlex
import statistics
import sys
import threading
from collections.abc import Mapping, Sequence

import tyro
from rich.console import Console
from rich.table import Table

from lm import DivergedError, UsageError
from lm.data import Corpus, check_length, load_corpus
from lm.interrupt import stop_on_interrupt
from lm.optimizers import find_optimizer, tuning
from lm.plots import draw_curves, final_bits
from lm.run_folder import Row, RunFolder
from lm.settings import Settings
from lm.training import Training, prepare, train

INTERRUPTED = 130  # what shells report for a process that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    settings = tyro.cli(Settings, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    console = Console()
    before = RunFolder(settings.out).config()
    try:
        with stop_on_interrupt() as stop:
            finished = run(settings, console, stop)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        finished = False
    if finished:
        return 0
    if RunFolder(settings.out).config() != before:  # this run has begun
        arguments = [a for a in arguments if a not in ("--overwrite", "--resume")] + ["--resume"]
    command = shlex.join([sys.executable, sys.argv[0], *arguments])
    console.print(f"stopped; continue with: {command}", markup=False, soft_wrap=True)
    return INTERRUPTED


def run(settings: Settings, console: Console, stop: threading.Event) -> bool:
    """Trains, draws and reports; tells whether every run reached its last step."""
    settings.check()
    corpus = load_corpus(settings.text, without=settings.out)
    check_length(corpus, settings.context)
    compared = [settings.member(name) for name in settings.compared()]
    runs = [one.resolved() for one in compared or [settings]]
    trainings = [prepare(one) for one in runs]  # all, so that errors come before any training
    if compared:
        open_folder(settings, corpus, resume=settings.resume)
    curves: dict[str, list[Row]] = {}
    diverged: list[str] = []
    for one, training in zip(runs, trainings, strict=True):
        if stop.is_set():
            break
        begun = RunFolder(one.out).config() is not None
        folder = open_folder(one, corpus, resume=one.resume and (begun or not compared))
        introduce(one, training, corpus, console)
        try:
            train(one, training, corpus, folder, console, stop)
        except DivergedError as error:  # the other runs of a comparison go on
            diverged.append(str(error))
        if rows := folder.rows():
            curves[one.optimizer] = rows
    report(settings, curves, corpus.source, console)
    if diverged:
        raise UsageError("; ".join(diverged))
    return len(curves) == len(runs) and all(
        rows[-1]["step"] == settings.steps for rows in curves.values()
    )


def open_folder(settings: Settings, corpus: Corpus, *, resume: bool) -> RunFolder:
    """Begins a run in its folder, or checks that the one there is the same."""
    folder = RunFolder(settings.out)
    config = {**settings.identity(), "text": corpus.fingerprint()}
    if resume:
        folder.resume(config)
    else:
        folder.begin(config, overwrite=settings.overwrite)
    return folder


def introduce(settings: Settings, training: Training, corpus: Corpus, console: Console) -> None:
    """Says what is about to be trained on what."""
    _, package = find_optimizer(settings.optimizer)
    values = {
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        **tuning(settings.optimizer).arguments,
        "clip_norm": settings.clip_norm,
    }
    chosen = ", ".join(
        f"{key}={value}" if isinstance(value, str) else f"{key}={value:g}"
        for key, value in values.items()
        if value is not None
    )
    console.print(
        f"{package}.{settings.optimizer}({chosen}): {training.parameters():,} parameters, "
        f"{corpus.train.size:,} bytes of {corpus.source}, {corpus.held_out.size:,} more held out",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def report(
    settings: Settings, curves: Mapping[str, Sequence[Row]], source: str, console: Console
) -> None:
    """Draws the picture, and prints the last held-out results, the best first."""
    if not curves:
        return
    picture = RunFolder(settings.out).picture
    draw_curves(curves, f"Byte-level Transformer on {source}", picture)
    table = Table("optimizer", "steps", "nats", "bits per byte", "tokens/s", title="held out")
    for name in sorted(curves, key=lambda name: final_bits(curves[name])):
        rows = curves[name]
        bits = final_bits(rows)
        rate = statistics.median(row["tokens_per_second"] for row in rows)
        table.add_row(
            name,
            str(rows[-1]["step"]),
            f"{bits * math.log(2):.3f}",
            f"{bits:.3f}",
            f"{rate:,.0f}",
        )
    console.print(table)
    console.print(f"picture: {settings.out / picture.name}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
