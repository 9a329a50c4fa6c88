"""Begin and adopt: the two moments at which a compiled step meets the host."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_zoo import _host, _triangles
from optax_zoo._shampoo import _statistics
from optax_zoo._shampoo._roots import Delivery, HostRoots, Roots, adopt, on_device
from optax_zoo._shampoo._schedule import Schedule
from optax_zoo._shampoo._statistics import Factors, Stack

States = tuple[Factors, ...]


class Refresher:
    """Renews the roots of all stacks of factors as the schedule says."""

    def __init__(self, stacks: Sequence[Stack], states: States, roots: Roots, schedule: Schedule):
        self._stacks = tuple(stacks)
        self._roots = roots
        self._schedule = schedule
        self._task = HostRoots(
            tuple(
                (stack.order, stack.factors, stack.exponent, str(factors.roots.dtype))
                for stack, factors in zip(stacks, states, strict=True)
            ),
            roots.method,
            roots.ridge,
        )

    def adopt_due(self, step: jax.Array, states: States) -> States:
        """Adopts the roots begun earlier that are due in this step."""
        if self._schedule.delay == 0 or not states:
            return states
        due, age = self._schedule.adopts(step)
        return jax.lax.cond(due, self._renewed, lambda states, _: states, states, age)

    def begin(self, step: jax.Array, states: States) -> tuple[States, jax.Array]:
        """Takes the snapshot and begins its roots, in a begin step.

        Returns:
          The states, and a zero on which something in the result must depend: without a use, XLA
          would drop the call to the host.
        """
        begins = self._schedule.begins(step)
        nothing = jnp.zeros((), jnp.int32)
        if not states:
            return states, nothing
        if self._schedule.delay == 0:

            def renew(states):
                return self._renewed(tuple(map(_statistics.snapshot, states)), 0)

            return jax.lax.cond(begins, renew, lambda states: states, states), nothing

        states = jax.lax.cond(
            begins, lambda s: tuple(map(_statistics.snapshot, s)), lambda s: s, states
        )
        if self._roots.on == "device":
            return states, nothing
        return states, self._prefetch_if(begins, states)

    def _prefetch_if(self, begins: jax.Array, states: States) -> jax.Array:
        task = self._task
        _host.finish_at_exit()

        def on_host(ticket, *statistics):
            _host.begin(task, np.asarray(ticket).tobytes(), [_from_words(s) for s in statistics])
            return np.zeros((), np.int32)

        def prefetch(statistics):
            return jax.pure_callback(
                on_host,
                jax.ShapeDtypeStruct((), jnp.int32),
                _ticket(statistics),
                *map(_to_words, statistics),
                vmap_method="sequential",
            )

        statistics = [jax.lax.stop_gradient(s.statistics) for s in states]
        return jax.lax.cond(begins, prefetch, lambda _: jnp.zeros((), jnp.int32), statistics)

    def _renewed(self, states: States, age: Any) -> States:
        states = jax.lax.stop_gradient(states)
        if self._roots.on == "device":
            found = [
                on_device(s, f, self._roots) for s, f in zip(self._stacks, states, strict=True)
            ]
        else:
            found = self._redeemed([s.statistics for s in states])
        return tuple(
            adopt(stack, factors, delivery, age)
            for stack, factors, delivery in zip(self._stacks, states, found, strict=True)
        )

    def _redeemed(self, statistics: list[jax.Array]) -> Sequence[Delivery]:
        task = self._task
        _host.finish_at_exit()

        def on_host(ticket, *statistics):
            arrays = [_from_words(s) for s in statistics]
            found = _host.redeem(task, np.asarray(ticket).tobytes(), arrays)
            return tuple(Delivery(_to_words(roots), record) for roots, record in found)

        def shape(n, count, dtype):
            pairs = (-(-count // 2), n, n + 1)
            if dtype == "float64":
                return jax.ShapeDtypeStruct((*pairs, 2), jnp.uint32)
            return jax.ShapeDtypeStruct(pairs, jnp.dtype(dtype))

        found = jax.pure_callback(
            on_host,
            tuple(
                Delivery(shape(n, count, dtype), jax.ShapeDtypeStruct((count, 4), jnp.float32))
                for n, count, _, dtype in task.stacks
            ),
            _ticket(statistics),
            *map(_to_words, statistics),
            vmap_method="sequential",
        )
        return tuple(Delivery(_from_words(roots), record) for roots, record in found)


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
