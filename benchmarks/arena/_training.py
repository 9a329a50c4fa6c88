"""One run: a workload, an optimizer, a learning rate, a number of steps, a seed."""

import math
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.arena._contenders import Contender, Setting
from benchmarks.arena._workload import Workload

CHECK_EVERY = 25  # steps after which a loss that is not finite ends a run
POINTS = 40  # of a learning curve that is kept


class Run(NamedTuple):
    """What came of a run.

    Attributes:
      score: The workload's score after the last step; None if the run diverged.
      curve: (step, mean training loss since the entry before).
      seconds: Wall time of the steps after the first, which compiles.
    """

    score: float | None
    curve: list[tuple[int, float]]
    seconds: float


class Trainer:
    """Runs one contender on one workload; rates, budgets and seeds share a compiled step."""

    def __init__(self, workload: Workload, contender: Contender, b2: float, data: Any):
        self._workload, self._data = workload, data
        self._score = jax.jit(workload.score)

        def optimizer(rate, steps):
            schedule = partial(rate_at, rate=rate, steps=steps, warmup=workload.warmup)
            if contender.flat:
                schedule = partial(schedule, flat=True)
            return contender.make(Setting(schedule, rate, b2, workload.decay))

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, key, number, rate, steps, data):
            batch = workload.batch(data, jax.random.fold_in(key, number))
            loss, gradients = jax.value_and_grad(workload.loss)(params, batch)
            updates, state = optimizer(rate, steps).update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        self._optimizer, self.step = optimizer, step
        self._evaluate = contender.evaluate

    def start(self, rate: float, steps: int, seed: int) -> tuple[Any, Any]:
        """Parameters and state before the first step."""
        params = self._workload.init(self._data, seed)
        return params, self._optimizer(rate, steps).init(params)

    def run(self, rate: float, steps: int, seed: int) -> Run:
        """Trains for `steps` steps."""
        params, state = self.start(rate, steps, seed)
        key, numbers = jax.random.key(seed), (jnp.float32(rate), jnp.int32(steps))
        losses: list[Any] = []
        start = time.perf_counter()
        for number in range(steps):
            params, state, loss = self.step(
                params, state, key, jnp.int32(number), *numbers, self._data
            )
            losses.append(loss)
            if number == 0:
                loss.block_until_ready()
                start = time.perf_counter()
            if number % CHECK_EVERY == 0 and not math.isfinite(float(loss)):
                return Run(None, _curve(losses), time.perf_counter() - start)
        jax.block_until_ready(params)
        seconds = time.perf_counter() - start
        score = float(self._score(self._evaluate(state, params), self._data))
        return Run(score if math.isfinite(score) else None, _curve(losses), seconds)


def rate_at(
    count: jax.Array, *, rate: Any, steps: Any, warmup: float, flat: bool = False
) -> jax.Array:
    """Up to the peak over `warmup` of the steps, then down to zero by a cosine, or flat.

    `optax.schedules.warmup_cosine_decay_schedule` wants Python numbers; here one compiled step
    serves every rate and budget.
    """
    rising = jnp.maximum(jnp.floor(warmup * steps), 1)
    fallen = jnp.clip((count - rising) / (steps - rising), 0, 1)
    decayed = 1.0 if flat else 0.5 * (1 + jnp.cos(jnp.pi * fallen))
    return rate * jnp.where(count < rising, (count + 1) / (rising + 1), decayed)


def _curve(losses: list[Any]) -> list[tuple[int, float]]:
    values = [float(loss) for loss in jax.device_get(losses)]
    stride = max(1, math.ceil(len(values) / POINTS))
    parts = [values[i : i + stride] for i in range(0, len(values), stride)]
    points = [(min((i + 1) * stride, len(values)), sum(p) / len(p)) for i, p in enumerate(parts)]
    return [(step, float(f"{loss:.6g}")) for step, loss in points if math.isfinite(loss)]
