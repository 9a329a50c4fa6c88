"""Begin and adopt: the two moments at which a compiled step meets the host."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
            float(roots.ridge),
        )

    def adopt_due(self, step: jax.Array, states: States) -> States:
        """Adopts the roots begun earlier that are due in this step."""
        if self._schedule.delay == 0:
            return states
        due, age = self._schedule.adopts(step)
        return self._renew_if(due, states, age)

    def begin(self, step: jax.Array, states: States) -> tuple[States, jax.Array]:
        """Takes the snapshot and begins its roots, in a begin step.

        Returns:
          The states, and a zero on which something in the result must depend: without a use, XLA
          would drop the call to the host.
        """
        begins = self._schedule.begins(step)
        nothing = jnp.zeros((), jnp.int32)
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

        def on_host(ticket, *statistics):
            _host.begin(task, np.asarray(ticket).tobytes(), [np.asarray(s) for s in statistics])
            return np.zeros((), np.int32)

        def prefetch(statistics):
            return jax.pure_callback(
                on_host,
                jax.ShapeDtypeStruct((), jnp.int32),
                _ticket(statistics),
                *statistics,
                vmap_method="sequential",
            )

        statistics = [jax.lax.stop_gradient(s.statistics) for s in states]
        return jax.lax.cond(begins, prefetch, lambda _: jnp.zeros((), jnp.int32), statistics)

    def _renew_if(self, due: jax.Array, states: States, age: Any) -> States:
        return jax.lax.cond(due, self._renewed, lambda states, _: states, states, age)

    def _renewed(self, states: States, age: Any) -> States:
        states = jax.lax.stop_gradient(states)
        if self._roots.on == "device":
            found = [on_device(s, f, self._roots) for s, f in zip(self._stacks, states, strict=True)]
        else:
            found = self._redeemed([s.statistics for s in states])
        return tuple(
            adopt(stack, factors, delivery, age)
            for stack, factors, delivery in zip(self._stacks, states, found, strict=True)
        )

    def _redeemed(self, statistics: list[jax.Array]) -> Sequence[Delivery]:
        task = self._task
        shapes = tuple(
            Delivery(
                jax.ShapeDtypeStruct((-(-count // 2), n, n + 1), jnp.dtype(dtype)),
                jax.ShapeDtypeStruct((count, 4), jnp.float32),
            )
            for n, count, _, dtype in task.stacks
        )

        def on_host(ticket, *statistics):
            arrays = [np.asarray(s) for s in statistics]
            return _host.redeem(task, np.asarray(ticket).tobytes(), arrays)

        return jax.pure_callback(
            on_host, shapes, _ticket(statistics), *statistics, vmap_method="sequential"
        )


def _ticket(statistics: Sequence[jax.Array]) -> jax.Array:
    """The fingerprint of the snapshots alone: what they share an array with moves on."""
    return _host.ticket(
        [
            jnp.where(_triangles.of_first(s.shape[-2])[None, None], jnp.zeros((), s.dtype), s)
            for s in statistics
        ]
    )
