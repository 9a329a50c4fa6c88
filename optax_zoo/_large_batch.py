"""Learning rates for large batches: scaling rules and warm-up."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks


def scale_learning_rate(base_lr: Any, base_batch: Any, batch: Any, rule: str = "linear") -> Any:
    r"""The learning rate for another batch size.

    .. math::

      \eta = \eta_0\, B / B_0 \quad (\text{linear}), \qquad
      \eta = \eta_0 \sqrt{B / B_0} \quad (\text{sqrt})

    Linear for SGD and LARS, the square root for LAMB and the Adam family.

    Args:
      base_lr: :math:`\eta_0`, tuned at `base_batch`; a number, at least 0.
      base_batch: :math:`B_0 > 0`, in examples.
      batch: :math:`B > 0`, in examples.
      rule: "linear" or "sqrt".

    Returns:
      The scaled rate, a float for Python numbers.

    Raises:
      ValueError: If a number is out of range or the rule is unknown.
      TypeError: If an argument is not a number.

    Examples:
      >>> import optax_zoo as zoo
      >>> zoo.scale_learning_rate(0.1, 256, 8192)
      3.2
      >>> zoo.scale_learning_rate(6.25e-4, 512, 32768, rule="sqrt")
      0.005

    References:
      Goyal et al., `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_, 2017,
      section 2.1; You et al., `LAMB <https://arxiv.org/abs/1904.00962>`_, 2020, table 4.
    """
    _checks.check_number("base_lr", base_lr, at_least=0.0, remedy="pass e.g. 0.1")
    _checks.check_number("base_batch", base_batch, above=0, remedy="pass e.g. 256")
    _checks.check_number("batch", batch, above=0, remedy="pass the number of examples per step")
    _checks.check_choice("rule", rule, ("linear", "sqrt"))
    ratio = batch / base_batch
    return base_lr * (ratio if rule == "linear" else ratio**0.5)


def large_batch_schedule(
    base_lr: Any,
    base_batch: Any,
    batch: Any,
    *,
    total_steps: int,
    warmup_steps: int | None = None,
    rule: str = "linear",
    power: Any = 1.0,
    end_value: Any = 0.0,
    decay_from: str = "warmup",
) -> optax.Schedule:
    r"""Scaled peak rate, linear warm-up from 0, polynomial decay.

    With :math:`W` = `warmup_steps`, :math:`T` = `total_steps`, the peak :math:`\eta` from
    :func:`scale_learning_rate` and the 0-based step :math:`t`,

    .. math::

      \eta_t = \begin{cases}
        \eta\, t / W & t < W \\
        (\eta - \eta_T)\Big(1 - \frac{t - s}{T - s}\Big)^{p} + \eta_T & t \ge W
      \end{cases}

    where :math:`s = W` for `decay_from="warmup"`, which starts at the peak, and :math:`s = 0` for
    `"start"`, BERT's convention, which joins the warm-up a little below it.

    Args:
      base_lr: Rate tuned at `base_batch`.
      base_batch: Batch size that `base_lr` belongs to, in examples.
      batch: Batch size of this run, in examples.
      total_steps: :math:`T \ge 1`, an int.
      warmup_steps: :math:`W < T`, an int; None: the share (1/320)·batch/base_batch of all steps,
        at most 1/5. With LAMB's base_batch=512 that is its paper's table, 1/320 at a batch of
        512 to 1/5 at 32,768.
      rule: "linear" or "sqrt".
      power: :math:`p \ge 0`; 1 for LAMB, 2 for LARS on ResNet-50, 0 keeps the peak.
      end_value: :math:`\eta_T \ge 0`, held after `total_steps`.
      decay_from: "warmup" or "start".

    Returns:
      A schedule, for every `learning_rate` here and in Optax.

    Raises:
      ValueError: If a number is out of range or a choice unknown.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import optax_zoo as zoo
      >>> schedule = zoo.large_batch_schedule(0.1, 256, 1024, total_steps=100, warmup_steps=10)
      >>> [round(float(schedule(t)), 6) for t in (0, 5, 10, 55, 100)]
      [0.0, 0.2, 0.4, 0.2, 0.0]
      >>> import optax_zoo as zoo
      >>> tx = zoo.lars(schedule, weight_decay=1e-4)

    References:
      Goyal et al., `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_, 2017;
      You et al., `LAMB <https://arxiv.org/abs/1904.00962>`_, 2020.
    """
    peak = scale_learning_rate(base_lr, base_batch, batch, rule)
    _checks.check_integer("total_steps", total_steps, at_least=1, remedy="pass the run's length")
    _checks.check_number("power", power, at_least=0.0, remedy="pass 1.0 or 2.0")
    _checks.check_number("end_value", end_value, at_least=0.0, remedy="pass 0.0")
    _checks.check_choice("decay_from", decay_from, ("warmup", "start"))
    if warmup_steps is None:
        warmup_steps = _warmup_steps(base_batch, batch, total_steps)
    _checks.check_integer("warmup_steps", warmup_steps, at_least=0, remedy="pass 0 for none")
    if warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} and total_steps {total_steps}; warm up for fewer "
            "steps than the run has"
        )
    begin = warmup_steps if decay_from == "warmup" else 0
    decay = optax.schedules.polynomial_schedule(
        peak, end_value, power, total_steps - begin, transition_begin=begin
    )
    if warmup_steps == 0:
        return decay
    warmup = optax.schedules.linear_schedule(0.0, peak, warmup_steps)
    return lambda count: jnp.where(jnp.less(count, warmup_steps), warmup(count), decay(count))


def _warmup_steps(base_batch: Any, batch: Any, total_steps: int) -> int:
    for name, value in (("base_batch", base_batch), ("batch", batch)):
        if isinstance(value, jax.Array):
            raise TypeError(
                f"{name} is the array {value!r}, from which warmup_steps cannot be taken; pass "
                "warmup_steps or Python numbers"
            )
    return int(min(batch / base_batch / 320, 1 / 5) * total_steps)
