"""Optax's own links, held to this package's argument checks and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _moments, _states


def decay_link(
    weight_decay: optax.ScalarOrSchedule, mask: Any = None, *, who: str
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, checked; the identity when the decay is the number 0.

    Then an optimizer runs without parameters in `update`, and its state keeps its structure.
    """
    _checks.check_schedulable("weight_decay", weight_decay, remedy="pass e.g. 1e-2")
    fit_mask = _checks.fitted_mask("mask", mask)
    if _checks.is_zero(weight_decay):
        nothing = optax.identity()
        if mask is None:
            return nothing

        def init(params):
            fit_mask(params)
            return nothing.init(params)

        return optax.GradientTransformation(init, nothing.update)
    inner = optax.add_decayed_weights(weight_decay, None if mask is None else fit_mask)

    def update(updates, state, params=None):
        _checks.require_params(params, who=f"{who} with weight_decay={weight_decay!r}")
        return inner.update(updates, state, params)

    return _in_incoming_dtype(optax.GradientTransformation(inner.init, update))


def learning_rate_link(learning_rate: optax.ScalarOrSchedule, *, usual: str) -> Any:
    """`optax.scale_by_learning_rate`, checked."""
    _checks.check_schedulable("learning_rate", learning_rate, remedy=f"pass e.g. {usual}")
    return _in_incoming_dtype(optax.scale_by_learning_rate(learning_rate))


def clip_link(clip_value: Any) -> optax.GradientTransformation:
    """`optax.clip`, checked; complex numbers have no order and are refused."""
    _checks.check_number("clip_value", clip_value, above=0.0, remedy="pass e.g. 1.0, or None")
    inner = optax.clip(clip_value)

    def init(params):
        _checks.check_params(
            params,
            who="clip_value",
            complex_remedy="leave clip_value None, or clip by norms before it",
        )
        return inner.init(params)

    return _in_incoming_dtype(optax.GradientTransformation(init, inner.update))


def in_float32(
    inner: optax.GradientTransformation, kind: type, *moments: str
) -> optax.GradientTransformation:
    """Runs a link on float32 copies of narrower updates and parameters.

    Optax keeps second moments and momentum in the parameters' dtype, where bfloat16 rounds
    0.999·v + 0.001·g² back to v. The state is the link's own, float32 or wider; updates come back
    in the incoming dtype. The state must be of this kind, its moments of the same parameters.
    """

    def init(params):
        # Only shapes and dtypes count here, so that abstract parameters work too.
        def stand_in(p):
            dtype = _moments.wide_dtype(p)
            return p if dtype == jnp.result_type(p) else jnp.zeros_like(p, dtype=dtype)

        return inner.init(jax.tree.map(stand_in, params))

    def update(updates, state, params=None):
        _states.check_state(state, kind, updates, moments=moments)
        wide_params = None if params is None else jax.tree.map(_moments.widen, params)
        return inner.update(jax.tree.map(_moments.widen, updates), state, wide_params)

    return _in_incoming_dtype(optax.GradientTransformation(init, update))


def _in_incoming_dtype(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Casts updates back to the incoming dtype and the state to its own.

    A hyper-parameter that is an array, as all are under `optax.inject_hyperparams`, would promote
    them to its dtype.
    """

    def update(updates, state, params=None):
        new_updates, new_state = inner.update(updates, state, params)
        return optax.tree.cast_like(new_updates, updates), optax.tree.cast_like(new_state, state)

    return optax.GradientTransformation(inner.init, update)
