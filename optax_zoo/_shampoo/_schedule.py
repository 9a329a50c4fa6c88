"""When statistics grow, when roots are begun and when they are adopted."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _checks

_LONGEST = 2**30


@dataclasses.dataclass(frozen=True)
class Refresh:
    r"""How often roots are renewed, and how long the host has for them.

    Steps count from 1. Roots are begun at S, 2S, 4S, 8S … while below N, then at N and its
    multiples; a root begun at t is adopted at t + D, or at the next begin step if that is sooner.
    A delay costs more than a long interval, and :func:`plan_refresh` finds the shortest. An early
    first refresh is worth as much: at a quarter of the arena's budgets `start=1` ended at 0.67
    (autoencoder), 0.29 (matrix), 0.78 (softmax regression) and 1.00 times (language model) the loss
    of the defaults, with `drift_every=5` besides at 0.55, 0.24, 0.77 and 0.96 times
    (`python -m benchmarks.arena.defaults`).

    With `drift_every=C` the roots in use are brought toward the statistics of the moment, at each
    multiple of C and where they are adopted: they are D steps old by then. With X the adopted root,
    S this step's statistic, bias-corrected and with its ridge, and p the exponent,

    .. math::

      W = X^{p/2} S X^{p/2}, \qquad P = X^{1/2}\, W^{-1/p} X^{1/2},

    and P is used until the next correction. It is :math:`S^{-1/p}` where S commutes with the
    snapshot. :math:`W^{-1/p}` is good to 1 % where W's eigenvalues are above a thousandth of a
    bound on the largest; smaller ones count as if they were near that. A correction takes 13 matrix
    products per factor at p = 2, 14 at p = 4, inside the step, whatever the ridge; a whole root
    there, at a ridge of 1e-4 in float32, takes about 50, and 11 with `Roots(tolerance=0.1)`. The
    state grows by 4 bytes per parameter in square blocks, and the host computes
    :math:`X^{1/2}`. Where P is not finite, or W has eigenvalues below 0, the adopted root stays in
    use; :func:`inspect` shows it.

    Attributes:
      every: N, steps between two refreshes.
      delay: D, steps from begin to adoption, 0 … N; None: N for roots on the host, 0 on the device.
      start: S, the first refresh, 1 … N; None: the smaller of 10 and N.
      statistics_every: Steps from one gradient in the statistics to the next.
      drift_every: C, steps from one drift correction to the next; None: there is none.

    Examples:
      >>> import optax_zoo as zoo
      >>> refresh = zoo.Refresh(every=50, delay=15)  # begun at 10, 20, 40, 50, 100, ...
      >>> tx = zoo.shampoo(1e-3, refresh=refresh)
      >>> zoo.Refresh(every=10, delay=20)
      Traceback (most recent call last):
        ...
      ValueError: delay must be <= every, got 20 with every=10; lower delay or raise every
    """

    every: int = 10
    delay: int | None = None
    start: int | None = None
    statistics_every: int = 1
    drift_every: int | None = None

    def __post_init__(self) -> None:
        _checks.check_integer("every", self.every, at_least=1, remedy="pass e.g. 10")
        _checks.check_integer(
            "statistics_every", self.statistics_every, at_least=1, remedy="pass 1 for every step"
        )
        if self.drift_every is not None:
            _checks.check_integer(
                "drift_every", self.drift_every, at_least=1, remedy="pass None, or e.g. 10"
            )
        if self.period >= _LONGEST:
            raise ValueError(
                f"every is {self.every!r}, statistics_every {self.statistics_every!r} and "
                f"drift_every {self.drift_every!r}: their least common multiple must be below "
                f"{_LONGEST}; pass shorter intervals"
            )
        if self.delay is not None:
            _checks.check_integer("delay", self.delay, at_least=0, remedy="pass None, or 0 … every")
            self._check_at_most_every("delay", self.delay)
        if self.start is not None:
            _checks.check_integer("start", self.start, at_least=1, remedy="pass None, or 1 … every")
            self._check_at_most_every("start", self.start)

    @property
    def period(self) -> int:
        """Steps after which everything periodic is where it was."""
        return math.lcm(self.every, self.statistics_every, self.drift_every or 1)

    def _check_at_most_every(self, name: str, value: int) -> None:
        if value > self.every:
            raise ValueError(
                f"{name} must be <= every, got {value!r} with every={self.every!r}; "
                f"lower {name} or raise every"
            )


class Schedule:
    """A `Refresh` with its defaults filled in, asked about steps.

    Attributes:
      every: N.
      delay: D.
      ramp: The begin steps below N.
    """

    def __init__(self, refresh: Refresh, *, on_host: bool):
        self.every = refresh.every
        self.delay = refresh.delay if refresh.delay is not None else self.every * on_host
        start = min(10, self.every) if refresh.start is None else refresh.start
        doublings = max(0, math.ceil(math.log2(self.every / start)))
        self.ramp = [start * 2**i for i in range(doublings)]
        self._statistics_every = refresh.statistics_every
        self._drift_every = refresh.drift_every
        self._period = refresh.period

    def next_count(self, count: jax.Array) -> jax.Array:
        """count + 1, taken back by whole periods before it overflows."""
        last = np.iinfo(np.int32).max
        back = (last // 2) // self._period * self._period
        return jnp.where(count == last, count - back, count) + 1

    def gathers(self, step: jax.Array) -> jax.Array | bool:
        """Whether this step's gradient enters the statistics."""
        return self._statistics_every == 1 or (step - 1) % self._statistics_every == 0

    def begins(self, step: jax.Array) -> jax.Array:
        """Whether roots are begun."""
        periodic = (step >= self.every) & (step % self.every == 0)
        return _is_one_of(step, self.ramp) | periodic

    def adopts(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether roots begun earlier are adopted, and the age of their statistics by then."""
        nexts = [*self.ramp, self.every][1:]
        ages = [min(self.delay, n - b) for b, n in zip(self.ramp, nexts, strict=True)]
        due = step - self.delay
        adopts, age = (due >= self.every) & (due % self.every == 0), jnp.int32(self.delay)
        for begin, early in zip(self.ramp, ages, strict=True):
            ramped = step == begin + early
            adopts, age = adopts | ramped, jnp.where(ramped, early, age)
        return adopts, age

    def corrects(self, step: jax.Array) -> jax.Array | bool:
        """Whether the roots in use are corrected for the statistics' drift."""
        if self._drift_every is None:
            return False
        return (step % self._drift_every == 0) | self.renews(step)

    def renews(self, step: jax.Array) -> jax.Array:
        """Whether roots are adopted, whenever they were begun."""
        return self.begins(step) if self.delay == 0 else self.adopts(step)[0]


def _is_one_of(step: jax.Array, steps: list[int]) -> Any:
    return (step[None] == jnp.array(steps, jnp.int32)).any() if steps else False
