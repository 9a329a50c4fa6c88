"""Worker processes under watch, so that however one ends, a line says so.

JAX ends a process by itself, with SIGABRT, when another one has died or is silent, and no `except`
sees that. So the work is done in children.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from lm import UsageError

FAILED, USAGE, STOPPED = 1, 2, 130  # 130 is what shells report for a process that SIGINT ended


def run_workers(
    work: Callable[..., int], arguments: Mapping[str, tuple[Any, ...]], *, patience: float
) -> tuple[int, str]:
    """Calls `work` in a process for each of the named `arguments`.

    Returns an exit code, and what happened if it is neither 0 nor STOPPED.

    When one has failed, the others have `patience` seconds left. Ctrl-C and SIGTERM reach them as
    SIGTERM; another Ctrl-C ends them.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in arguments]
    workers = [
        context.Process(target=_work, args=(send, work, own))
        for (_, send), own in zip(pipes, arguments.values(), strict=True)
    ]
    late = []
    with _sigterm_as_interrupt():
        try:
            for worker in workers:
                worker.start()
            try:
                _wait(workers, patience)
            except KeyboardInterrupt:
                for worker in workers:
                    worker.terminate()
                _wait(workers, patience)
        except KeyboardInterrupt:
            pass
        finally:
            late = [worker for worker in workers if worker.is_alive()]
            for worker in late:
                worker.kill()
                worker.join()
    codes = [worker.exitcode or 0 for worker in workers]
    if set(codes) <= {0, STOPPED, -signal.SIGTERM}:
        return (STOPPED if any(codes) else 0), ""
    words = [receive.recv() if receive.poll() else "" for receive, _ in pipes]
    if USAGE in codes:
        errors = [word for word, code in zip(words, codes, strict=True) if code == USAGE]
        return USAGE, "\n".join(dict.fromkeys(errors))
    lines = [
        f"{name}: " + ("did not end, and was killed" if worker in late else word or _ended(code))
        for name, worker, word, code in zip(arguments, workers, words, codes, strict=True)
        if code
    ]
    return FAILED, "\n".join(lines)


def _ended(code: int) -> str:
    if code == -signal.SIGABRT:
        return "ended by JAX (SIGABRT), as another process has died, is silent or did not come"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _wait(workers: Sequence[Any], patience: float) -> None:
    """Until all have ended, or `patience` after the first failure; a wrong setting ends all."""
    running = {worker.sentinel: worker for worker in workers}
    deadline = None
    while running:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ended = wait(list(running), left)
        if not ended:
            return
        for worker in map(running.pop, ended):
            worker.join()
            if worker.exitcode == USAGE:
                return
            if worker.exitcode and deadline is None:
                deadline = time.monotonic() + patience


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send several
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _work(send: Connection, work: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        code = work(*arguments)
    except UsageError as error:
        code = USAGE
        send.send(f"error: {error}")
    except Exception as error:
        code, reason = FAILED, str(error).partition("\n")[0]
        if "Gloo" in reason:  # what connects CPUs
            send.send(f"lost contact with another process ({reason})")
        else:
            traceback.print_exc()
            send.send(f"{type(error).__name__}: {reason}")
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a regular exit waits for the other processes, for minutes


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(FAILED)
