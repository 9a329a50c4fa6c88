"""Begin and adopt: the two moments at which a compiled step meets the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_zoo import _host, _triangles
from optax_zoo._shampoo._schedule import Schedule

_COPIED_AT_ONCE = 64 * 1024  # bytes; up to nearly 100 KiB XLA copies on the thread that asks


class Delivery(NamedTuple):
    """What a refresh gives for one stack of factors, a function of the snapshots alone.

    Attributes:
      matrices: What was computed of each factor, as the renewal lays it out.
      record: (b·f, …) float32, how that went, factor by factor.
    """

    matrices: Any
    record: Any


class Renewal(Protocol):
    """What is renewed. Its states are a pytree, and so may hold more than the factors."""

    @property
    def task(self) -> _host.Task:
        """The computation as work for `_host`: snapshots -> a Delivery for each stack."""
        ...

    def deliveries(self) -> Sequence[Delivery]:
        """Shapes and dtypes of what the task gives."""
        ...

    def statistics(self, states: Any) -> Sequence[jax.Array]:
        """The packed statistics and snapshots of each stack."""
        ...

    def snapshot(self, states: Any) -> Any:
        """The states with this moment's statistics as the snapshots."""
        ...

    def on_device(self, states: Any) -> Sequence[Delivery]:
        """The task's function inside the compiled step."""
        ...

    def adopt(self, states: Any, deliveries: Sequence[Delivery], age: Any) -> Any:
        """The states with what was delivered in use, for snapshots of that age."""
        ...


class Refresher:
    """Renews states as the schedule says, on the host or in the step.

    `sharers` is how many devices of this process have states like these, each its own.
    """

    def __init__(self, renewal: Renewal, schedule: Schedule, *, on_host: bool, sharers: int = 1):
        self._renewal = renewal
        self._schedule = schedule
        self._on_host = on_host
        self._sharers = sharers

    def adopt_due(self, step: jax.Array, states: Any) -> Any:
        """Adopts what was begun earlier and is due in this step."""
        if self._schedule.delay == 0 or not self._renewal.statistics(states):
            return states
        due, age = self._schedule.adopts(step)
        return jax.lax.cond(due, self._renewed, lambda states, _: states, states, age)

    def begin(self, step: jax.Array, states: Any) -> tuple[Any, jax.Array]:
        """Takes the snapshots and begins the work on them, in a begin step.

        Returns:
          The states, and a zero on which something in the result must depend: without a use, XLA
          would drop the call to the host.
        """
        begins = self._schedule.begins(step)
        nothing = jnp.zeros((), jnp.int32)
        if not self._renewal.statistics(states):
            return states, nothing
        if self._schedule.delay == 0:

            def renew(states):
                return self._renewed(self._renewal.snapshot(states), 0)

            return jax.lax.cond(begins, renew, lambda states: states, states), nothing

        states = jax.lax.cond(begins, self._renewal.snapshot, lambda states: states, states)
        if not self._on_host:
            return states, nothing
        return states, self._prefetch_if(begins, states)

    def _prefetch_if(self, begins: jax.Array, states: Any) -> jax.Array:
        task = self._renewal.task
        _host.finish_at_exit()

        def on_host(ticket, *pieces):
            arrays = list(map(_from_pieces, pieces, shapes))
            _host.begin(task, np.asarray(ticket).tobytes(), arrays, self._sharers)
            return np.zeros((), np.int32)

        def prefetch(statistics):
            return jax.pure_callback(
                on_host,
                jax.ShapeDtypeStruct((), jnp.int32),
                _ticket(statistics),
                *map(_in_pieces, statistics),
                vmap_method="sequential",
            )

        statistics = jax.lax.stop_gradient(list(self._renewal.statistics(states)))
        shapes = [s.shape for s in statistics]
        return jax.lax.cond(begins, prefetch, lambda _: jnp.zeros((), jnp.int32), statistics)

    def _renewed(self, states: Any, age: Any) -> Any:
        fixed = jax.lax.stop_gradient(states)
        found = self._redeemed(fixed) if self._on_host else self._renewal.on_device(fixed)
        return self._renewal.adopt(states, found, age)

    def _redeemed(self, states: Any) -> Sequence[Delivery]:
        task, statistics = self._renewal.task, self._renewal.statistics(states)
        _host.finish_at_exit()

        shapes = [s.shape for s in statistics]

        def on_host(ticket, *pieces):
            arrays = list(map(_from_pieces, pieces, shapes))
            found = _host.redeem(task, np.asarray(ticket).tobytes(), arrays, self._sharers)
            return tuple(Delivery(_to_words(matrices), record) for matrices, record in found)

        def in_words(shape):
            if shape.dtype != np.float64:
                return shape
            return jax.ShapeDtypeStruct((*shape.shape, 2), jnp.uint32)

        found = jax.pure_callback(
            on_host,
            jax.tree.map(in_words, tuple(self._renewal.deliveries())),
            _ticket(statistics),
            *map(_in_pieces, statistics),
            vmap_method="sequential",
        )
        return tuple(Delivery(_from_words(matrices), record) for matrices, record in found)


def _in_pieces(x: jax.Array) -> list[jax.Array]:
    """An argument of a callback, cut where it must not wait for XLA's threads.

    XLA's CPU client copies what is larger on threads of which it has one for each device, and
    these wait in the callback where a program runs on all of them.
    """
    words = _to_words(x)
    at_once = _COPIED_AT_ONCE // words.dtype.itemsize
    if words.size <= at_once or len(jax.local_devices(backend="cpu")) == 1:
        return [words]
    words = words.reshape(-1)
    return [words[i : i + at_once] for i in range(0, words.size, at_once)]


def _from_pieces(pieces: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The argument as an array of NumPy; `shape` is that before it was cut."""
    arrays = [np.asarray(piece) for piece in pieces]
    words = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    in_words = words.dtype == np.uint32
    return _from_words(words.reshape(*shape, 2) if in_words else words.reshape(shape))


def _to_words(x: Any) -> Any:
    """float64 as pairs of uint32, whose bits pass a callback unchanged.

    It runs on a thread of XLA's, where `jax.enable_x64` of the caller's thread is off, and JAX
    would round its arguments to float32 and refuse its results.
    """
    if x.dtype != np.float64:
        return x
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x)[..., None].view(np.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _from_words(x: Any) -> Any:
    """The inverse of `_to_words`; of a callback's argument an array of NumPy."""
    if isinstance(x, Tracer):
        return x if x.dtype != jnp.uint32 else jax.lax.bitcast_convert_type(x, jnp.float64)
    x = np.asarray(x)
    return x if x.dtype != np.uint32 else np.ascontiguousarray(x).view(np.float64)[..., 0]


def _ticket(statistics: Sequence[jax.Array]) -> jax.Array:
    """The fingerprint of the snapshots alone: what they share an array with moves on."""
    return _host.ticket(
        [
            jnp.where(_triangles.of_first(s.shape[-2])[None, None], jnp.zeros((), s.dtype), s)
            for s in statistics
        ]
    )
