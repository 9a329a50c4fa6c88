"""LAMB: layer-wise trust ratios on Adam's direction."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _layers, _links, _moments
from optax_zoo._layerwise import check_clip, scale_by_layerwise_trust_ratio

# A megabyte of float32: smaller leaves are left alone by `_one_leaf_at_a_time`.
_LARGE_LEAF = 2**18


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    mu_dtype: Any = None,
    trust_clip: tuple[Any, Any] | None = None,
    trust_ratio_mask: Any = True,
    layer_axes: _layers.LayerAxes = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB: Adam's direction, decayed, scaled layer by layer to the weights' norm.

    .. math::

      u_t &= \frac{\hat m_t}{\sqrt{\hat v_t + \varepsilon_r} + \varepsilon}
        + \lambda \theta_{t-1} \\
      \theta_t &= \theta_{t-1} - \eta_t \frac{\phi(\|\theta_{t-1}\|)}{\|u_t\|} u_t

    with bias-corrected moments, the ratio of :func:`scale_by_layerwise_trust_ratio`, and 1 for
    the ratio where a norm is zero. Takes the arguments of `optax.lamb` and equals it at their
    defaults; moments stay in float32 for bfloat16 parameters.

    Args:
      learning_rate: A number or a schedule; see :func:`large_batch_schedule`.
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added outside the root. `eps` or `eps_root` must be positive.
      eps_root: Added inside the root; positive, it keeps derivatives through `update` finite where
        a gradient is 0.
      weight_decay: :math:`\lambda`, inside the ratio. BERT uses 0.01.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (in
        `static_args` of `optax.inject_hyperparams`).
      mu_dtype: dtype of the first moment; None: float32 or wider.
      trust_clip: Bounds (lo, hi) of :math:`\phi`; the paper's third version has (0, 10).
      trust_ratio_mask: Where the ratio applies; elsewhere it is 1.
      layer_axes: Leading axes that count layers, see :func:`scale_by_layerwise_trust_ratio`;
        Google's MLPerf BERT has one ratio per stacked layer.

    Returns:
      The chain Adam, decay, trust ratio, learning rate. `update` needs the parameters.

    Raises:
      ValueError: If an argument is out of range or, at `init`, does not fit the parameters.
      TypeError: If an argument has the wrong type.

    Examples:
      Twelve layers stacked by a scan, one ratio each:

      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.lamb(1e-3, weight_decay=0.01, layer_axes={"layers": 1, "head": 0})
      >>> params = {"layers": jnp.ones((12, 8, 8)), "head": jnp.ones((8, 4))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["layers"][0, 0, 0])
      -0.001

    References:
      You et al., `Large Batch Optimization for Deep Learning: Training BERT in 76 minutes
      <https://arxiv.org/abs/1904.00962>`_, 2020, Algorithm 2.
    """
    _checks.check_decay_rate("b1", b1, 0.9)
    _checks.check_decay_rate("b2", b2, 0.999)
    _checks.check_number("eps", eps, at_least=0.0, remedy="pass e.g. 1e-6")
    _checks.check_number("eps_root", eps_root, at_least=0.0, remedy="pass 0.0")
    given = not isinstance(eps, jax.Array) and not isinstance(eps_root, jax.Array)
    if given and eps + eps_root < _checks.LEAST_EPS:
        raise ValueError(
            f"eps is {eps!r} and eps_root {eps_root!r}: a weight that never saw a gradient would "
            "divide 0 by 0; make one of them positive in float32, e.g. eps=1e-6"
        )
    _checks.check_dtype("mu_dtype", mu_dtype)
    check_clip(trust_clip, "trust_clip")
    return optax.chain(
        _links.in_float32(
            optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype),
            optax.ScaleByAdamState,
            "mu",
            "nu",
        ),
        _links.decay_link(weight_decay, mask, who="lamb"),
        _one_leaf_at_a_time(),
        scale_by_layerwise_trust_ratio(
            clip=trust_clip,
            mask=_checks.fitted_mask("trust_ratio_mask", trust_ratio_mask),
            layer_axes=layer_axes,
        ),
        _links.learning_rate_link(learning_rate, usual="1e-3"),
    )


def _one_leaf_at_a_time() -> optax.GradientTransformation:
    """The identity, ordered: a large leaf's update is formed after the previous one's norm.

    LAMB needs each Adam direction twice, for its norm and for the step. XLA's CPU scheduler works
    breadth first and would keep the directions of all leaves in one temporary as large as the
    model; the operating system hands those pages out anew at every call, which costs more than
    the arithmetic (16 matrices of 1024²: 56 ms, 21 ms in order). The order is data flow that the
    compiler cannot fold away, a division by one, exact but for denormals, which XLA flushes.
    Other platforms have schedulers that mind memory. On a mesh the order would split collectives
    and, inside `jax.shard_map`, let every later leaf vary over the axes of the earlier ones.
    """

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        on_mesh = any(not jax.typeof(u).sharding.mesh.empty for u in leaves)
        if jax.default_backend() != "cpu" or on_mesh:
            return updates, state
        nothing = jnp.zeros((), jnp.float32)
        ordered = []
        for u in leaves:
            if jnp.size(u) >= _LARGE_LEAF and jnp.isrealobj(u):
                # NaN / NaN is NaN; `where` keeps the divisor from being a scalar, by which XLA
                # would multiply instead.
                u = u / jnp.where(u == u, 1 + nothing.astype(u.dtype), u)
                squared = jax.lax.stop_gradient(jnp.sum(_moments.abs_sq(u)))
                nothing = jnp.where(squared < 0, squared, 0)  # never negative: always 0
            ordered.append(u)
        return structure.unflatten(ordered), state

    return optax.GradientTransformation(optax.init_empty_state, update)
