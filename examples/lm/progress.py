"""Progress for people: a live bar on a terminal, one line per evaluation everywhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lm.run_folder import Row


class Reporter:
    """Shows the metrics rows of one run as they come."""

    def __init__(self, console: Console, name: str, steps: int, done: int = 0):
        self._console = console
        self._name = name
        self._done = done
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, status="compiling")

    def __enter__(self) -> Self:
        if self._done:
            self._say(f"{self._name} goes on after step {self._done}")
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, row: Row, note: str = "") -> None:
        """Moves the bar, and prints a line when the row has a held-out result."""
        rate = f"{row['tokens_per_second']:,.0f} tokens/s"
        status = f"loss {row['train_loss']:.3f}, {row['train_bits_per_byte']:.3f} bits/byte, {rate}"
        status += f", {note}" if note else ""
        self._bar.update(self._task, completed=row["step"], status=status)
        if row["held_out_loss"] is not None:
            text = (
                f"{self._name} step {row['step']}: held out {row['held_out_loss']:.3f} nats, "
                f"{row['held_out_bits_per_byte']:.3f} bits/byte; train {status}"
            )
            self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
