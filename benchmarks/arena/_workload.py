"""What a workload is: data, model, loss and score, drawn from seeds alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Workload(NamedTuple):
    """One problem on which optimizers are compared.

    Attributes:
      title: A line for tables and pictures.
      steps: The full budget.
      warmup: The part of a run's steps over which the learning rate rises; it then falls to zero
        by a cosine.
      decay: AdamW's weight decay, to which others' is relative.
      unit: What the score is, e.g. "nats per byte"; lower is better.
      data: () -> arrays, the same for every run; a pytree.
      init: (data, seed) -> parameters.
      batch: (data, key) -> the batch of one step; traceable.
      loss: (params, batch) -> scalar.
      score: (params, data) -> scalar, taken after the last step.
    """

    title: str
    steps: int
    warmup: float
    decay: float
    unit: str
    data: Callable[[], Any]
    init: Callable[[Any, int], Any]
    batch: Callable[[Any, jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    score: Callable[[Any, Any], jax.Array]
