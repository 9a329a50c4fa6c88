"""Shampoo as an optimizer: Adam's norm, decoupled decay, a learning rate."""

from typing import Any

import optax

from optax_zoo import _blocks, _layers, _links
from optax_zoo._shampoo._roots import Roots
from optax_zoo._shampoo._schedule import Refresh
from optax_zoo._shampoo._transformation import scale_by_shampoo


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    graft_to: Any = "adam",
    exponent: int | None = None,
    b1: Any = 0.9,
    b2: Any = 0.95,
    nesterov: bool = True,
    eps: Any = 1e-8,
    init_epsilon: Any = 0.0,
    layer_axes: _layers.LayerAxes = None,
    blocks: _blocks.Blocks = _blocks.Blocks(),  # noqa: B008
    refresh: Refresh = Refresh(),  # noqa: B008
    roots: Roots = Roots(),  # noqa: B008
    mesh: Any = None,
    mesh_axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shampoo: a full-matrix preconditioner for each side of a layer, at Adam's step size.

    .. math::

      \theta_t = \theta_{t-1} - \eta_t \Big(\frac{\|u_t\|}{\|D_t\|} D_t
        + \lambda \theta_{t-1}\Big)

    with Shampoo's direction :math:`D` of :func:`scale_by_shampoo`, root exponent 2 for every
    axis, and :math:`u` the update that `optax.nadam` would make, both of one momentum. Start from
    the learning rate and the schedule of a tuned AdamW.

    Args:
      learning_rate: A number or a schedule.
      weight_decay: :math:`\lambda`, decoupled as in AdamW; a number or a schedule.
      mask: Where to decay: a prefix pytree of bools, or a callable on the parameters (in
        `static_args` of `optax.inject_hyperparams`).
      graft_to: See :func:`scale_by_shampoo`.
      exponent: :math:`p`; None: 2. The papers' is twice the number of axes.
      b1: Decay of the momentum.
      b2: Decay of the statistics and of Adam's norm.
      nesterov: Whether the momentum looks one step ahead.
      eps: Added to the root of the second moment in Adam's norm.
      init_epsilon: :math:`\varepsilon I` starts the statistics.
      layer_axes: Leading axes that count layers, see :func:`scale_by_shampoo`.
      blocks: How parameters are cut.
      refresh: When roots are renewed, see :func:`plan_refresh`.
      roots: How they are computed.
      mesh: The mesh whose devices divide the work, see :func:`scale_by_shampoo`.
      mesh_axes: Along which of its axes.

    Returns:
      The chain of :func:`scale_by_shampoo`, decay and learning rate. `update` needs the
      parameters if there is a decay.

    Raises:
      ValueError: If an argument is out of range or, at `init`, does not fit the parameters.
      TypeError: If an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.shampoo(3e-3, weight_decay=0.1, refresh=zoo.Refresh(every=50))
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(round(float(updates["kernel"][0, 0]), 4))
      -0.0047

    References:
      Anil et al., `Scalable Second Order Optimization for Deep Learning
      <https://arxiv.org/abs/2002.09018>`_, 2020.
    """
    return optax.chain(
        scale_by_shampoo(
            b1=b1,
            b2=b2,
            nesterov=nesterov,
            eps=eps,
            exponent=2 if exponent is None else exponent,
            init_epsilon=init_epsilon,
            graft_to=graft_to,
            layer_axes=layer_axes,
            blocks=blocks,
            refresh=refresh,
            roots=roots,
            mesh=mesh,
            mesh_axes=mesh_axes,
        ),
        _links.decay_link(weight_decay, mask, who="shampoo"),
        _links.learning_rate_link(learning_rate, usual="3e-3"),
    )
