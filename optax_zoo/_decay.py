"""The weight-decay link that the assembled optimizers share."""

from typing import Any

import optax

from optax_zoo import _checks


def decay_links(
    weight_decay: optax.ScalarOrSchedule, mask: Any = None, *, who: str
) -> tuple[optax.GradientTransformation, ...]:
    """`optax.add_decayed_weights` to spread into a chain; nothing when the decay is the number 0.

    Without the link an optimizer runs without parameters in `update`. The mask is held against
    the parameters at `init`, and updates keep their dtype also when the decay is an array.
    """
    _checks.check_schedulable("weight_decay", weight_decay, remedy="pass e.g. 1e-2")
    fit_mask = _checks.fitted_mask("mask", mask)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return ()
    inner = optax.add_decayed_weights(weight_decay, None if mask is None else fit_mask)

    def update(updates, state, params=None):
        _checks.require_params(params, who=f"{who} with weight_decay={weight_decay!r}")
        decayed, state = inner.update(updates, state, params)
        return optax.tree.cast_like(decayed, updates), state

    return (optax.GradientTransformation(inner.init, update),)
