"""How often this host can renew the roots of a model: measured, then proposed."""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _blocks, _checks, _host, _layers, _triangles
from optax_zoo._shampoo import _items
from optax_zoo._shampoo._roots import METHODS, HostRoots, Roots
from optax_zoo._shampoo._schedule import Refresh
from optax_zoo._shampoo._statistics import Stack, stacks

# A refresh more often than this gained nothing that could be measured.
_SHORTEST_INTERVAL = 10
# The host's other work, and steps that are sometimes faster than the average.
_MARGIN = 1.25


class RefreshPlan(NamedTuple):
    """What `plan_refresh` proposes.

    Attributes:
      refresh: Interval and delay, for `shampoo(refresh=...)`.
      roots: The faster method, for `shampoo(roots=...)`.
      root_seconds: Time of all roots on this host, with the workers that training uses.
      explanation: One sentence why.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> plan = zoo.plan_refresh(jnp.ones((64, 64)), step_seconds=10.0, roots=zoo.Roots())
      >>> plan.refresh.every, plan.roots == zoo.Roots()
      (10, True)
    """

    refresh: Refresh
    roots: Roots
    root_seconds: float
    explanation: str


def plan_refresh(
    params: Any,
    step_seconds: float,
    *,
    blocks: _blocks.Blocks = _blocks.Blocks(),  # noqa: B008
    roots: Roots | None = None,
) -> RefreshPlan:
    r"""Times the roots of a model on this host and proposes method, interval and delay.

    A few matrices of each order are timed, on all workers at once, and scaled up to the model's.
    The delay :math:`D` is the fewest steps in which the host is done with a quarter to spare,

    .. math:: D = \lceil 1.25\, t_{\text{roots}} / t_{\text{step}} \rceil, \qquad N = \max(D, 10)

    for late roots cost more than rare ones. Measure where you train, while training or something
    as heavy is running if the device is the CPU itself. Takes seconds. L layers stacked by
    `nn.scan` would be planned as one tensor: pass a list of L times the shapes of one layer.

    Args:
      params: The parameters, or their shapes (`jax.eval_shape`).
      step_seconds: What one training step takes, in seconds.
      blocks: As in :func:`shampoo`.
      roots: The method and ridge to plan for; None: the better of both methods at the default
        ridge.

    Returns:
      A `RefreshPlan`: `shampoo(lr, refresh=plan.refresh, roots=plan.roots)`.

    Raises:
      ValueError: If `step_seconds` is not positive, or the roots are computed on the device.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> plan = zoo.plan_refresh({"kernel": jnp.ones((64, 64))}, step_seconds=10.0)
      >>> tx = zoo.shampoo(1e-3, refresh=plan.refresh, roots=plan.roots)
      >>> plan.refresh.every
      10

    References:
      Anil et al., `Scalable Second Order Optimization for Deep Learning
      <https://arxiv.org/abs/2002.09018>`_, 2020, section 4.
    """
    if isinstance(step_seconds, jax.Array):
        raise TypeError(
            f"step_seconds must be a Python number, got the array {step_seconds!r}; pass "
            "float(step_seconds), outside jit"
        )
    _checks.check_number("step_seconds", step_seconds, above=0.0, remedy="pass e.g. 0.1")
    if not isinstance(blocks, _blocks.Blocks):
        raise TypeError(f"blocks must be a Blocks, got {blocks!r}; pass e.g. Blocks()")
    if roots is not None and not isinstance(roots, Roots):
        raise TypeError(f"roots must be a Roots, got {roots!r}; pass e.g. Roots()")
    if roots is not None and roots.on != "host":
        raise ValueError(
            f"roots is {roots!r}: on the device they are part of the step; pass roots on the "
            "host, or choose Refresh(every=...) by the time of a step with refresh"
        )
    leaves = jax.tree.leaves(params)
    plan = _blocks.plan(leaves, _layers.leading_axes(None, params), blocks)
    kinds = stacks(plan, exponent=2)
    candidates = [roots] if roots else [Roots(method=method) for method in METHODS]
    seconds = [sum(_seconds(stack, candidate) for stack in kinds) for candidate in candidates]
    best = int(np.argmin(seconds))
    return _proposal(candidates, seconds, best, sum(s.factors for s in kinds), float(step_seconds))


def _proposal(
    candidates: Sequence[Roots], seconds: Sequence[float], best: int, factors: int, step: float
) -> RefreshPlan:
    delay = max(1, math.ceil(_MARGIN * seconds[best] / step))
    every = max(delay, _SHORTEST_INTERVAL)
    times = ", ".join(f"{r.method} {s:.3g} s" for r, s in zip(candidates, seconds, strict=True))
    explanation = (
        f"{factors} roots on {_host.workers()} worker(s) take {times}; at {step:.3g} s a step "
        f"{candidates[best].method} is done after {seconds[best] / step:.1f} steps, so roots are "
        f"adopted after {delay} and renewed every {every}."
    )
    refresh = Refresh(every=every, delay=delay)
    return RefreshPlan(refresh, candidates[best], seconds[best], explanation)


def _seconds(stack: Stack, roots: Roots) -> float:
    """Time of a stack's roots, from a sample that keeps every worker busy once."""
    n = stack.order
    item = _items.size(n)
    sample = min(stack.factors, item * _host.workers())
    dtype = str(jnp.dtype(roots.dtype or jnp.float32))
    task = HostRoots(((n, sample, stack.exponent, dtype),), roots.method, roots.ridge)
    times = []
    for seed in range(3):  # the first warms up
        rng = np.random.default_rng(seed)
        half = rng.normal(size=(n, 2 * n)) * np.logspace(0, -2, n)[:, None]
        snapshot = (half @ half.T).astype(np.float32)
        packed = np.broadcast_to(_triangles.pack(snapshot, snapshot), (sample, n, n + 1))
        start = time.perf_counter()
        _host.redeem(task, ("plan", start), [packed])  # a ticket that nobody has had
        times.append(time.perf_counter() - start)
    return min(times[1:]) * stack.factors / sample
