"""Host work: pure tasks begun early, redeemed when due, kept in a bounded cache.

XLA may elide, merge or repeat a callback, so work is named by a fingerprint of its arrays, never by
a count. `redeem` alone is the semantics; `begin` only makes it sooner.
"""

import atexit
import contextlib
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo._blas import OneBlasThread

_LOG = logging.getLogger("optax_zoo")
_MOST_WORKERS, _MOST_TASKS, _MOST_TICKETS = 8, 8, 2
_MOST_ROOM = 64  # tickets of a task that several share


class Task(Hashable, Protocol):
    """A pure computation on arrays, equal by value: its configuration is part of the key."""

    def split(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """The items to work on, on the callback's thread; copies, for `arrays` may be XLA's."""
        ...

    def run(self, item: Any) -> Any:
        """One item's result, on a worker with one BLAS thread."""
        ...

    def join(self, results: list[Any]) -> Any:
        """The answer, usually on the worker that was last. It is shared: nobody writes to it."""
        ...


def begin(task: Task, ticket: Hashable, arrays: Sequence[np.ndarray], sharers: int = 1) -> None:
    """Starts a task on the workers, unless it is known already. What fails, fails in `redeem`.

    Of a task the newest answers are kept, two for each of those that share it side by side.
    """
    if not _inline:
        _host.begin(task, ticket, arrays, sharers)


def redeem(task: Task, ticket: Hashable, arrays: Sequence[np.ndarray], sharers: int = 1) -> Any:
    """The answer of a task, begun or not; a failed computation is repeated twice."""
    return _host.redeem(task, ticket, arrays, sharers)


@contextlib.contextmanager
def inline() -> Iterator[None]:
    """Forgets all answers and makes `begin` do nothing, in the whole process: for tests."""
    global _inline
    _inline += 1
    with _host.lock:
        _host.cache.clear()
    try:
        yield
    finally:
        _inline -= 1


def workers() -> int:
    """The most threads at work at once: one per core, less one for the program that waits."""
    return max(1, min(_MOST_WORKERS, _cores() - 1))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


if _cores() == 1:
    # XLA's pool is one thread then, and an asynchronous program that waits for a callback holds
    # it; the callback's arguments wait for the same thread to copy them (jax-ml/jax#24255). There
    # is no second core that an asynchronous program could run on anyway.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


@functools.cache
def finish_at_exit() -> None:
    """Lets steps in flight end before Python does: their callbacks would abort it."""

    @atexit.register
    def finish() -> None:
        for array in jax.live_arrays():
            with contextlib.suppress(Exception):
                array.block_until_ready()


def ticket(arrays: Sequence[jax.Array]) -> jax.Array:
    """A fingerprint of the bits of some real arrays: two uint32 numbers, exact sums anywhere."""
    total = zero = (jnp.uint32(0), jnp.uint32(0))
    for number, array in enumerate(arrays):
        width = min(8 * array.dtype.itemsize, 32)  # 64 bits are two numbers, on a new last axis
        bits = jax.lax.bitcast_convert_type(array, f"uint{width}").astype(jnp.uint32)
        # An index without a reshape: that would gather an array that lies on several devices.
        place, stride = jnp.uint32(number * 0x9E3779B9 % 2**32), 1
        for axis in reversed(range(bits.ndim)):
            index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place, stride = place + index * jnp.uint32(stride % 2**32), stride * bits.shape[axis]
        # Not the bare bits: in sums the signs of any two numbers cancel, as 2**31 + 2**31 = 0.
        bits, weight = _mix(bits), _mix(place)
        terms = (bits * (weight | 1), bits * ((weight << 16) | (weight >> 16) | 1))
        # Two sums in one pass: as two reductions XLA stores the mixed arrays, 15 times slower.
        total = _add(total, jax.lax.reduce(terms, zero, _add, tuple(range(bits.ndim))))
    return jnp.stack(total)


def _add(left: Any, right: Any) -> Any:
    return left[0] + right[0], left[1] + right[1]


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 after which every bit depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class _NoWorker(RuntimeError):
    """No thread works on an entry, and none can be started."""


class _Entry:
    """One computation: the items not yet taken, the results so far, in the end the answer."""

    def __init__(self, task: Task, arrays: Sequence[np.ndarray]):
        self.task = task
        self.done = threading.Event()
        self.answer: Any = None
        self.error: BaseException | None = None
        self.items: deque[tuple[int, Any]] = deque()
        self.results: list[Any] = []
        try:
            self.items.extend(enumerate(task.split(arrays)))
            self.missing = len(self.items)
            self.results = [None] * self.missing
            if not self.missing:
                self.finish()
        except Exception as error:
            self.fail(error)

    def finish(self) -> None:
        self.answer, self.results = self.task.join(self.results), []
        self.done.set()

    def fail(self, error: BaseException) -> None:
        if not self.done.is_set():
            self.error, self.results = error, []
            self.items.clear()
            self.done.set()


class _Host:
    """The cache, which is the queue too: what leaves it unstarted is never run.

    Threads live while there is work, and while they do, the process has one BLAS thread.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.cache: dict[Task, dict[Hashable, _Entry]] = {}  # least recently used task first
        self.room: dict[Task, int] = {}  # tickets to keep, where more than usual
        self.evicted: deque[tuple[Task, Hashable]] = deque(maxlen=_MOST_ROOM)
        self.awaited: list[_Entry] = []  # these run first, evicted or not
        self.threads: set[threading.Thread] = set()
        self.one_blas_thread = OneBlasThread()

    def begin(
        self, task: Task, ticket: Hashable, arrays: Sequence[np.ndarray], sharers: int
    ) -> None:
        self._entry(task, ticket, arrays, sharers)
        with self.lock:
            self._staff()

    def redeem(
        self, task: Task, ticket: Hashable, arrays: Sequence[np.ndarray], sharers: int
    ) -> Any:
        for remedy in ("it is repeated", "it is done in the thread that waits"):
            entry = self._entry(task, ticket, arrays, sharers, awaited=True)
            error = self._wait(entry)
            if error is None:
                return entry.answer
            with self.lock:
                if self.cache.get(task, {}).get(ticket) is entry:
                    del self.cache[task][ticket]
            reason = f"{type(error).__name__}: {error}"
            _LOG.warning("Host work failed (%s); %s, its result unaffected", reason, remedy)
        with self.one_blas_thread:
            return task.join([task.run(item) for item in task.split(arrays)])

    def _entry(
        self,
        task: Task,
        ticket: Hashable,
        arrays: Sequence[np.ndarray],
        sharers: int,
        *,
        awaited: bool = False,
    ) -> _Entry:
        """The cache's entry, added if need be; the oldest others make room."""
        made, usual = None, _MOST_TICKETS * sharers
        while True:
            with self.lock:
                tickets = self.cache[task] = self.cache.pop(task, {})
                if ticket not in tickets and made is not None:
                    tickets[ticket] = made
                found = tickets.get(ticket)
                if awaited and (task, ticket) in self.evicted and found is None:
                    # Several share the task, as an ensemble under vmap does: make room for all.
                    self.room[task] = min(2 * self.room.get(task, usual), max(usual, _MOST_ROOM))
                    self.evicted.clear()
                while len(tickets) > self.room.get(task, usual):
                    oldest = next(iter(tickets))
                    del tickets[oldest]
                    self.evicted.append((task, oldest))
                while len(self.cache) > _MOST_TASKS:
                    oldest = next(iter(self.cache))
                    del self.cache[oldest]
                    self.room.pop(oldest, None)
            if found is not None:
                return found
            made = _Entry(task, arrays)  # it copies, too slow a thing to do under the lock

    def _wait(self, entry: _Entry) -> BaseException | None:
        """Sees an entry through; returns what went wrong."""
        with self.lock:
            self.awaited.append(entry)
        try:
            while not entry.done.is_set():
                with self.lock:
                    error = self._staff()
                if error is not None and not entry.done.is_set():
                    return error
                entry.done.wait(1.0)  # not for ever: a thread may have died
        finally:
            with self.lock:
                self.awaited.remove(entry)
        return entry.error

    def _staff(self) -> _NoWorker | None:
        """Starts the threads that are missing; says so if there are none. Holds the lock."""
        self.threads = {thread for thread in self.threads if thread.is_alive()}
        reason = "its thread has died"
        try:
            waiting = sum(len(entry.items) for entry in self._entries())
            for _ in range(min(waiting, workers() - len(self.threads))):
                # Said, for XLA's threads are daemons to Python and would pass it on.
                thread = threading.Thread(target=self._work, name="optax_zoo", daemon=False)
                thread.start()
                self.threads.add(thread)
        except RuntimeError as error:  # no thread left, or Python is exiting
            reason = str(error)
        return None if self.threads else _NoWorker(reason)

    def _entries(self) -> list[_Entry]:
        """What is to be run, in this order; once Python exits, only what someone waits for."""
        if not threading.main_thread().is_alive():
            return self.awaited
        return self.awaited + [entry for known in self.cache.values() for entry in known.values()]

    def _work(self) -> None:
        try:
            with self.one_blas_thread:
                while unit := self._take():
                    self._run(*unit)
        except BaseException as error:
            with self.lock:
                self.threads.discard(threading.current_thread())
                for entry in self.awaited:
                    entry.fail(error)

    def _take(self) -> tuple[_Entry, int, Any] | None:
        with self.lock:
            for entry in self._entries():
                if entry.items:
                    return entry, *entry.items.popleft()
            # Under the same lock, or new work could count on a thread that is leaving.
            self.threads.discard(threading.current_thread())
        return None

    def _run(self, entry: _Entry, index: int, item: Any) -> None:
        try:
            result = entry.task.run(item)
            with self.lock:
                if entry.error is not None:
                    return
                entry.results[index] = result
                entry.missing -= 1
                last = not entry.missing
            if last:
                entry.finish()
        except BaseException as error:
            with self.lock:
                entry.fail(error)


def _after_fork() -> None:
    """Starts afresh in a child: the threads are not there, and the locks may be held for ever."""
    global _host
    parents, _host = _host, _Host()
    parents.one_blas_thread.restore()


_inline = 0
_host = _Host()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
