"""Looking inside: plain numbers, layer by layer, from the state of an optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from optax_zoo import _checks, _layers, _states
from optax_zoo._accumulation import AccumulateInAdamState, AccumulateInMomentumState
from optax_zoo._adax import AdaxState
from optax_zoo._amos import AmosState
from optax_zoo._dynamic_bounds import DynamicBoundsState
from optax_zoo._exponentiated_gains import ExponentiatedGainsState
from optax_zoo._exponentiated_gradient import ExponentiatedGradientState
from optax_zoo._layerwise import LayerwiseTrustRatioState
from optax_zoo._shampoo._soap import SoapState
from optax_zoo._shampoo._transformation import ShampooState
from optax_zoo._sign_momentum import SignMomentumState

# Quantity -> one number for each leaf, in tree order.
Columns = dict[str, Sequence[float] | np.ndarray]


def inspect(opt_state: Any, params: Any = None) -> dict[str, dict[str, float]]:
    r"""What a state knows of its layers, as plain floats for any tracker.

    Quantiles and means are taken here, of whole arrays: call it where you log, not in every step.

    Of each leaf, `p10`, `p50` and `p90` being quantiles over its coordinates:

    - under :func:`scale_by_layerwise_trust_ratio`, and so :func:`lars` and :func:`lamb`:
      `trust_ratio` of the last update, the mean over layer slices; 1 before the first;
    - under :func:`scale_by_dynamic_bounds`, so :func:`adabound`, :func:`amsbound` and
      :func:`adaboundw`: `rate_p10`, `rate_p50` and `rate_p90` of the learning rates that the last
      update gave the coordinates, bounds and schedule included; `at_lower` and `at_upper`, the
      shares of coordinates whose rate a bound changed; all 0 before the first update;
    - under :func:`scale_by_adax`: `rate_p10`, `rate_p50` and `rate_p90` of
      :math:`1/\sqrt{\hat v}`, times the learning rate a coordinate's rate but for
      :math:`\varepsilon`, among coordinates that have seen a gradient (0 if none has); `unseen`,
      the share of the others;
    - under :func:`scale_by_amos`: `second_moment` and `decayed`, the means of :math:`v`, not
      corrected for its start at 0, and of :math:`b`, by which rates and decay fall;
    - under :func:`scale_by_exponentiated_gains`, so :func:`egdd`: `scale`, and `gain_p10`,
      `gain_p50` and `gain_p90` of the gains;
    - under :func:`exponentiated_gradient` in the signed domain: `rate_p10`, `rate_p50` and
      `rate_p90` of :math:`\beta`, times the learning rate the rate of a parameter that is much
      smaller than its :math:`\beta`; in the others there is nothing to show;
    - under :func:`scale_by_sign_momentum`, so :func:`lion`, :func:`accumulate_in_momentum` and
      :func:`accumulate_in_adam`: `momentum_rms`, the root of the momentum's mean square; under the
      last also `second_moment`, the mean of :math:`v`, not corrected for its start at 0.

    For each leaf under :func:`scale_by_shampoo` or :func:`scale_by_soap`, the worst of its factors:

    - `residual`: :math:`\max|X^p A - I|` of the roots in use, for the ridged statistic A scaled
      to a largest eigenvalue of 1, before the root was rounded to its dtype; of SOAP's bases the
      larger of :math:`\max|Q^\top Q - I|` and the largest entry of :math:`Q^\top A Q` off the
      diagonal;
    - `age`: steps since the snapshot that a root or basis in use was computed from; -1: none yet,
      or a leaf that is not preconditioned;
    - `iterations` of the root's computation; 0 for SOAP;
    - `condition`: largest over smallest eigenvalue of the ridged statistic, estimated; for SOAP of
      the statistic itself, at most the inverse of its dtype's precision;
    - `failures`: refreshes that gave no usable root or basis, as of a layer without gradients, all
      factors counted;
    - `skipped`: gradients of a block that were not finite and counted as zero;
    - `drift`, with `Refresh(drift_every=...)`: :math:`\max|W - I|` at the last correction, see
      there; 0 before the first, infinite if it gave no usable root and the adopted one is used.

    Args:
      opt_state: A state, also one inside those of `optax.chain`, `optax.partition`,
        `optax.masked`, `optax.inject_hyperparams` or an `nnx.Optimizer`; concrete, so outside
        `jit`.
      params: The parameters, for readable names; without them leaves are named by their place.

    Returns:
      Name -> quantity -> number. What several states say of one leaf comes together; where two
      say the same quantity, the second one's leaf is called "name (n)". Empty where no state in
      `opt_state` is known.

    Raises:
      TypeError: Inside `jit`.
      ValueError: If `opt_state` is several states stacked by `jax.vmap`, where that shows.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> tx = zoo.lars(0.1, trust_coefficient=0.1)
      >>> _, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init(params), params)
      >>> zoo.inspect(state, params)
      {'w': {'trust_ratio': 0.25}}

      >>> tx = zoo.shampoo(1e-3, refresh=zoo.Refresh(every=1, delay=0))
      >>> params = {"w": jnp.eye(2)}
      >>> _, state = tx.update(params, tx.init(params))
      >>> report = zoo.inspect(state, params)["w"]
      >>> report["age"], report["failures"], round(report["condition"], 2)
      (0.0, 0.0, 1.0)

    References:
      Anil et al., `Scalable Second Order Optimization for Deep Learning
      <https://arxiv.org/abs/2002.09018>`_, 2020.
    """
    found: dict[str, dict[str, float]] = {}
    homes: dict[Any, list[str]] = defaultdict(list)
    # A list, so that no scope is gone whose id another could get.
    for state, scope in list(_known_states((opt_state,), opt_state)):
        columns = _reader(state).columns(state)
        leaves = max(map(len, columns.values()), default=0)
        names, are_places = _names(state, scope, params, leaves)
        for i, name in enumerate(names):
            numbers = {quantity: float(column[i]) for quantity, column in columns.items()}
            # The same place under another mask is another leaf.
            leaf = (name, id(scope) if are_places else None)
            free = [home for home in homes[leaf] if found[home].keys().isdisjoint(numbers)]
            if not free:
                free = [name if name not in found else f"{name} ({len(found)})"]
                homes[leaf] += free
                found[free[0]] = {}
            found[free[0]] |= numbers
    return found


# --- what each state says ---------------------------------------------------------------------


def _report(state: ShampooState | SoapState) -> Columns:
    return {name: _vector(x) for name, x in state.report._asdict().items() if x is not None}


def _trust_ratio(state: LayerwiseTrustRatioState) -> Columns:
    return {"trust_ratio": _vector(state.trust_ratio)}


def _bounded_rates(state: DynamicBoundsState) -> Columns:
    scale, eps, lower, upper = _vector(state.clipping).astype(np.float64)
    ruling = state.nu if state.nu_max is None else state.nu_max
    raw = [_over(scale, np.sqrt(v) + eps) for v in _arrays(ruling)]
    return {
        **_quantiles("rate", [np.clip(rate, lower, upper) for rate in raw]),
        "at_lower": [_mean(rate < lower) for rate in raw],
        "at_upper": [_mean(rate > upper) for rate in raw],
    }


def _long_memory_rates(state: AdaxState) -> Columns:
    moments = _arrays(state.nu)
    return {
        **_quantiles("rate", [1 / np.sqrt(v[v != 0]) for v in moments]),
        "unseen": [_mean(v == 0) for v in moments],
    }


def _amos_slots(state: AmosState) -> Columns:
    return {
        "second_moment": [_mean(v) for v in _arrays(state.v)],
        "decayed": [_mean(b) for b in _arrays(state.b)],
    }


def _gains(state: ExponentiatedGainsState) -> Columns:
    gains = _arrays(state.gains)
    return {
        "scale": np.broadcast_to(_vector(state.scale), len(gains)),
        **_quantiles("gain", gains),
    }


def _signed_rates(state: ExponentiatedGradientState) -> Columns:
    return _quantiles("rate", _arrays(state.beta))


def _momentum(state: Any) -> Columns:
    return {"momentum_rms": [np.sqrt(_mean(np.abs(m) ** 2)) for m in _arrays(state.mu)]}


def _both_moments(state: AccumulateInAdamState) -> Columns:
    return {**_momentum(state), "second_moment": [_mean(v) for v in _arrays(state.nu)]}


class _Reader(NamedTuple):
    """How a state is read.

    Attributes:
      kind: Its class.
      moment: The field that is shaped like the parameters and knows their names; None: none is.
      columns: state -> its quantities.
    """

    kind: type
    moment: str | None
    columns: Callable[[Any], Columns] = lambda _: {}


_READERS = (
    _Reader(LayerwiseTrustRatioState, None, _trust_ratio),
    _Reader(DynamicBoundsState, "mu", _bounded_rates),
    _Reader(AdaxState, "mu", _long_memory_rates),
    _Reader(AmosState, "v", _amos_slots),
    _Reader(ExponentiatedGainsState, "gains", _gains),
    _Reader(ExponentiatedGradientState, "beta", _signed_rates),
    _Reader(SignMomentumState, "mu", _momentum),
    _Reader(AccumulateInMomentumState, "mu", _momentum),
    _Reader(AccumulateInAdamState, "mu", _both_moments),
    _Reader(ShampooState, None, _report),
    _Reader(SoapState, None, _report),
    # Of Optax's they are asked for names alone, which the trust ratios beside them have not.
    _Reader(optax.ScaleByAdamState, "mu"),
    _Reader(optax.TraceState, "trace"),
)
_KINDS = tuple(reader.kind for reader in _READERS)


def _reader(state: Any) -> _Reader:
    return next(reader for reader in _READERS if isinstance(state, reader.kind))


# --- numbers ----------------------------------------------------------------------------------


def _concrete(x: Any) -> np.ndarray:
    """The numbers of an array or of a variable that holds one."""
    x = jax.tree.leaves(x)[0]
    if isinstance(x, Tracer):
        raise TypeError(f"opt_state holds the traced {x!r}; call inspect outside jit")
    return np.asarray(x)


def _vector(x: Any) -> np.ndarray:
    """One number for each leaf, or one for all."""
    x = _concrete(x)
    if x.ndim > 1:
        raise ValueError(
            f"opt_state holds {x.ndim - 1} axes before those of one optimizer's state, as after "
            "jax.vmap; inspect them one by one, e.g. jax.tree.map(lambda x: x[0], opt_state)"
        )
    return x


def _arrays(tree: Any) -> list[np.ndarray]:
    """The leaves in double precision."""
    leaves = map(_concrete, jax.tree.leaves(tree))
    return [x.astype(np.complex128 if np.iscomplexobj(x) else np.float64) for x in leaves]


def _over(scale: float, x: np.ndarray) -> np.ndarray:
    """scale / x; over 0 infinite, but 0 / 0 is 0."""
    return np.divide(scale, x, out=np.full_like(x, np.inf if scale > 0 else 0), where=x != 0)


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if x.size else 0.0


_PLACES = ("p10", "p50", "p90")


def _quantiles(name: str, arrays: list[np.ndarray]) -> Columns:
    found = [np.quantile(x, (0.1, 0.5, 0.9)) if x.size else np.zeros(3) for x in arrays]
    columns = np.array(found).reshape(-1, 3).T
    return {f"{name}_{place}": column for place, column in zip(_PLACES, columns, strict=True)}


# --- states and names -------------------------------------------------------------------------


def _known_states(parts: tuple[Any, ...], scope: Any) -> Iterator[tuple[Any, Any]]:
    """Every known state, an outer one before those inside it, with what is under the same mask."""
    kinds = (optax.MaskedState, *_KINDS)
    for node in jax.tree.leaves(parts, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, optax.MaskedState):
            yield from _known_states((node.inner_state,), node.inner_state)
        elif isinstance(node, kinds):
            yield node, scope
            yield from _known_states(tuple(node), scope)


def _names(state: Any, scope: Any, params: Any, leaves: int) -> tuple[list[str], bool]:
    """What the leaves are called, and whether that is but their places.

    Where a mask left leaves over, the moments know which.
    """
    places = [str(index) for index in range(leaves)]
    if params is None:
        return places, True
    beside = (_known_names(other) for other, _ in _known_states((scope,), scope))
    for known in (_leaf_names(params), _known_names(state), *beside):
        if len(known) == leaves:
            return known, False
    return places, True


def _known_names(state: Any) -> list[str]:
    """The leaves that a state knows by name."""
    if isinstance(state, (ShampooState, SoapState)):
        return _states.names(state.parameters)
    field = _reader(state).moment
    return [] if field is None else _leaf_names(getattr(state, field))


def _leaf_names(tree: Any) -> list[str]:
    with_paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [_layers.joined(_layers.path_names(path)) for path, _ in with_paths]


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """How many bytes the state of an optimizer takes, without allocating them.

    Over all devices together, an array that is copied to several counted once.

    Args:
      tx: Any gradient transformation, of Optax too.
      params: The parameters, or their shapes (`jax.eval_shape`).

    Returns:
      The bytes of all arrays in `tx.init(params)`.

    Raises:
      TypeError: If `tx` is not a gradient transformation; what `tx.init` raises.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_zoo as zoo
      >>> params = {"w": jax.ShapeDtypeStruct((50_000, 50_000), jnp.float32)}
      >>> zoo.state_bytes(zoo.lion(1e-4), params) / 1e9
      10.0
      >>> zoo.state_bytes(optax.adam(1e-3), params) / zoo.state_bytes(zoo.lion(1e-4), params)
      2.0000000004

    References:
      `jax.eval_shape <https://docs.jax.dev/en/latest/_autosummary/jax.eval_shape.html>`_.
    """
    _checks.check_transformation("tx", tx)
    state = jax.eval_shape(tx.init, params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
