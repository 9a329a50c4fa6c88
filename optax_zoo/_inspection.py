"""Looking inside: plain numbers, layer by layer, from the state of an optimizer."""

from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

from optax_zoo import _checks, _layers
from optax_zoo._shampoo._soap import InBases, SoapState
from optax_zoo._shampoo._transformation import ShampooState

_KNOWN = (ShampooState, SoapState)


def inspect(opt_state: Any, params: Any = None) -> dict[str, dict[str, float]]:
    r"""What a state knows of its layers, as plain floats for any tracker.

    For each leaf under :func:`scale_by_shampoo`, the worst of its factors:

    - `residual`: :math:`\max|X^p A - I|` of the roots in use, for the ridged statistic A scaled
      to a largest eigenvalue of 1, before the root was rounded to its dtype;
    - `age`: steps since the snapshot that a root in use was computed from; -1: none yet, or a
      leaf that is not preconditioned;
    - `iterations` of the root's computation;
    - `condition`: largest over smallest eigenvalue of the ridged statistic, estimated;
    - `failures`: refreshes that gave no usable root, all factors counted;
    - `skipped`: gradients of a block that were not finite and counted as zero;
    - `drift`, with `Refresh(drift_every=...)`: :math:`\max|W - I|` at the last correction, see
      there; 0 before the first, infinite if it gave no usable root and the adopted one is used.

    Args:
      opt_state: A state, also one inside those of `optax.chain`, `optax.partition`,
        `optax.masked`, `optax.inject_hyperparams` or an `nnx.Optimizer`; concrete, so outside
        `jit`.
      params: The parameters, for readable names; without them leaves are named by their place.

    Returns:
      Name -> quantity -> number. Empty where no state in `opt_state` is known.

    Raises:
      TypeError: Inside `jit`.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
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
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, _KNOWN))
    found: dict[str, dict[str, float]] = {}
    for node in nodes:
        if not isinstance(node, _KNOWN):
            continue
        quantities = node.report._asdict().items()
        columns = {name: _concrete(x) for name, x in quantities if x is not None}
        names = _names(node, params, len(columns["age"]))
        for i, name in enumerate(names):
            unique = name if name not in found else f"{name} ({len(found)})"
            found[unique] = {quantity: float(x[i]) for quantity, x in columns.items()}
    return found


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


def _concrete(x: Any) -> np.ndarray:
    """The numbers of an array or of a variable that holds one."""
    x = jax.tree.leaves(x)[0]
    if isinstance(x, Tracer):
        raise TypeError(f"opt_state holds the traced {x!r}; call inspect outside jit")
    return np.asarray(x)


def _names(node: ShampooState | SoapState, params: Any, leaves: int) -> list[str]:
    """Paths of the leaves; the moments know which leaves a mask left over."""
    moment = node.mu if isinstance(node, ShampooState) else node.nu
    for tree in () if params is None else (params, moment):
        with_paths = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda x: isinstance(x, InBases)
        )[0]
        if tree is not None and len(with_paths) == leaves:
            return [_layers.joined(_layers.path_names(path)) for path, _ in with_paths]
    return [str(index) for index in range(leaves)]
