"""Optimizers for JAX that compose with Optax."""

from optax_zoo._adabound import adabound, adaboundw, amsbound
from optax_zoo._adax import AdaxState, adax, adaxw, scale_by_adax
from optax_zoo._dynamic_bounds import DynamicBoundsState, scale_by_dynamic_bounds
from optax_zoo._lamb import lamb
from optax_zoo._large_batch import large_batch_schedule, scale_learning_rate
from optax_zoo._lars import lars
from optax_zoo._layerwise import LayerwiseTrustRatioState, scale_by_layerwise_trust_ratio
from optax_zoo._sign_momentum import SignMomentumState, lion, scale_by_sign_momentum

__version__ = "0.1.0"

__all__ = [
    "AdaxState",
    "DynamicBoundsState",
    "LayerwiseTrustRatioState",
    "SignMomentumState",
    "adabound",
    "adaboundw",
    "adax",
    "adaxw",
    "amsbound",
    "lamb",
    "large_batch_schedule",
    "lars",
    "lion",
    "scale_by_adax",
    "scale_by_dynamic_bounds",
    "scale_by_layerwise_trust_ratio",
    "scale_by_sign_momentum",
    "scale_learning_rate",
]
