"""Optimizers for JAX that compose with Optax."""

from optax_zoo._accumulation import (
    AccumulateInAdamState,
    AccumulateInMomentumState,
    accumulate_in_adam,
    accumulate_in_momentum,
)
from optax_zoo._adabound import adabound, adaboundw, amsbound
from optax_zoo._adax import AdaxState, adax, adaxw, scale_by_adax
from optax_zoo._amos import AmosState, amos, scale_by_amos
from optax_zoo._blocks import Blocks
from optax_zoo._catalogue import OptimizerInfo, Recommendation
from optax_zoo._dynamic_bounds import DynamicBoundsState, scale_by_dynamic_bounds
from optax_zoo._exponentiated_gains import (
    ExponentiatedGainsState,
    egdd,
    scale_by_exponentiated_gains,
)
from optax_zoo._exponentiated_gradient import ExponentiatedGradientState, exponentiated_gradient
from optax_zoo._grafting import GraftState, graft
from optax_zoo._guided_search import guided_search
from optax_zoo._inspection import inspect, state_bytes
from optax_zoo._lamb import lamb
from optax_zoo._large_batch import large_batch_schedule, scale_learning_rate
from optax_zoo._lars import lars
from optax_zoo._layerwise import LayerwiseTrustRatioState, scale_by_layerwise_trust_ratio
from optax_zoo._loss_transforms import flooding, gradient_penalty
from optax_zoo._matrix_roots import InverseRootInfo, inverse_pth_root
from optax_zoo._model_scale import (
    ModelScaleSchedules,
    flax_scales,
    flax_slots,
    model_scale_schedules,
)
from optax_zoo._policy_gradient import policy_gradient
from optax_zoo._registry import create, info, list_optimizers
from optax_zoo._shampoo._assembled import shampoo
from optax_zoo._shampoo._planning import RefreshPlan, plan_refresh
from optax_zoo._shampoo._resharding import reshard
from optax_zoo._shampoo._roots import Roots
from optax_zoo._shampoo._schedule import Refresh
from optax_zoo._shampoo._soap import SoapState, scale_by_soap, soap
from optax_zoo._shampoo._transformation import ShampooState, scale_by_shampoo
from optax_zoo._sign_momentum import SignMomentumState, lion, scale_by_sign_momentum
from optax_zoo._zeroth_order import zeroth_order_grad

__version__ = "0.1.0"

__all__ = [
    "AccumulateInAdamState",
    "AccumulateInMomentumState",
    "AdaxState",
    "AmosState",
    "Blocks",
    "DynamicBoundsState",
    "ExponentiatedGainsState",
    "ExponentiatedGradientState",
    "GraftState",
    "InverseRootInfo",
    "LayerwiseTrustRatioState",
    "ModelScaleSchedules",
    "OptimizerInfo",
    "Recommendation",
    "Refresh",
    "RefreshPlan",
    "Roots",
    "ShampooState",
    "SignMomentumState",
    "SoapState",
    "accumulate_in_adam",
    "accumulate_in_momentum",
    "adabound",
    "adaboundw",
    "adax",
    "adaxw",
    "amos",
    "amsbound",
    "create",
    "egdd",
    "exponentiated_gradient",
    "flax_scales",
    "flax_slots",
    "flooding",
    "gradient_penalty",
    "graft",
    "guided_search",
    "info",
    "inspect",
    "inverse_pth_root",
    "lamb",
    "large_batch_schedule",
    "lars",
    "lion",
    "list_optimizers",
    "model_scale_schedules",
    "plan_refresh",
    "policy_gradient",
    "reshard",
    "scale_by_adax",
    "scale_by_amos",
    "scale_by_dynamic_bounds",
    "scale_by_exponentiated_gains",
    "scale_by_layerwise_trust_ratio",
    "scale_by_shampoo",
    "scale_by_sign_momentum",
    "scale_by_soap",
    "scale_learning_rate",
    "shampoo",
    "soap",
    "state_bytes",
    "zeroth_order_grad",
]
