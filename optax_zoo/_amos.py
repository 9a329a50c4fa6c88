"""Amos: Adam's direction and a weight decay, both scaled by what the weights shall be."""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_zoo import _checks, _layers, _links, _moments, _states

# Below this a second moment counts as this: its reciprocal is still finite in float32.
_LEAST_V = 2.0**-125

Name = tuple[str, ...]
Shape = tuple[int, ...]


class AmosState(NamedTuple):
    """State of `scale_by_amos`.

    Attributes:
      count: Updates so far, int32.
      v: Second moment, one array of the slot's shape per parameter.
      b: How far the rates have decayed, in the same shapes; it grows from 0.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_amos(1e-2, lambda name, shape: 1.0, lambda name, shape: (1, shape[1]))
      >>> state = tx.init(jnp.zeros((128, 4)))
      >>> state.v.shape, state.b.shape
      ((1, 4), (1, 4))
    """

    count: jax.typing.ArrayLike
    v: optax.Updates
    b: optax.Updates


def scale_by_amos(
    learning_rate: optax.ScalarOrSchedule,
    eta_fn: Callable[[Name, Shape], Any],
    shape_fn: Callable[[Name, Shape], Shape] | None = None,
    *,
    beta: Any = 0.999,
    extra_l2: Any = 0.0,
    c_coef: Any = 0.25,
    d_coef: Any = 0.25,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps in proportion to each parameter's expected scale, and the decay that balances them.

    For a parameter :math:`\theta` whose trained entries are expected to have the magnitude
    :math:`\eta`, with :math:`\overline{\phantom{x}}` the mean over the axes that its slots leave
    out,

    .. math::

      v_t &= \beta v_{t-1} + (1 - \beta) \overline{g_t^2}, \qquad
        r_t = (1 - \beta^t) / \max(v_t, 2^{-125}) \\
      \gamma_t &= \xi_t^2 r_t \overline{g_t^2} \Big/ \sqrt{1 + c \sqrt{\xi_t}\, b_{t-1}} \\
      u_t &= \frac{\xi_t \eta \sqrt{r_t}\, g_t + (\gamma_t / 2 + \lambda)\, \theta_{t-1}}
        {1 + d \sqrt{\xi_t \eta}\, b_{t-1}} \\
      b_t &= b_{t-1} + \gamma_t (1 + b_{t-1})

    The learning rate :math:`\xi_t` is inside: subtract :math:`u_t` from the parameters (the
    authors' function of this name gives :math:`-u_t`). It decays by itself, through :math:`b`, so
    that neither a schedule nor the length of the run is needed.

    Args:
      learning_rate: :math:`\xi`, a number or a schedule, called with the 1-based step as in the
        authors' code (Optax's convention is 0-based). Under `optax.inject_hyperparams` Optax calls
        it, with the 0-based step: give it `lambda t: schedule(t + 1)` for the same rates. Advised
        is :math:`1 / \sqrt N` for a data set of :math:`N` independent batches.
      eta_fn: `(name, shape) -> eta > 0` for each parameter, whose name is a tuple of strings (keys,
        attributes, indices); :func:`flax_scales` knows Flax's. In `static_args` of
        `optax.inject_hyperparams`, which would take it for a schedule.
      shape_fn: `(name, shape) -> shape` of the slots :math:`v` and :math:`b`, which broadcasts to
        the parameter's: 1 for an axis to average over, `()` for one scalar; :func:`flax_slots`
        knows Flax's. None: a slot entry per parameter. Belongs into `static_args` too.
      beta: Decay of the second moment, in [0, 1); advised is :math:`1 - \beta` of the order of
        :math:`\xi`.
      extra_l2: :math:`\lambda`, a decay on top.
      c_coef: :math:`c`, how the decay's own rate falls.
      d_coef: :math:`d`, how the step's rate falls.

    Returns:
      A gradient transformation whose `update` needs the parameters. Its state is two slots per
      parameter, float32 or wider; updates keep their dtype.

    Raises:
      ValueError: If a number is out of range; at `init`, naming the parameter, if its `eta_fn` is
        not positive or its slot does not broadcast; if `update` gets no parameters.
      TypeError: If an argument or what a function gave has the wrong type, or a parameter is not
        floating-point.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.scale_by_amos(0.1, lambda name, shape: 0.5, lambda name, shape: (1, shape[1]))
      >>> params = {"w": jnp.ones((2, 3))}
      >>> updates, state = tx.update({"w": jnp.full((2, 3), 7.0)}, tx.init(params), params)
      >>> print(updates["w"][0], state.b["w"].shape)  # xi * eta + xi**2 / 2
      [0.055 0.055 0.055] (1, 3)

    References:
      Tian and Parikh, `Amos: An Adam-style Optimizer with Adaptive Weight Decay towards
      Model-Oriented Scale <https://arxiv.org/abs/2210.11693>`_, 2022, Algorithm 1.
    """
    _checks.check_schedulable("learning_rate", learning_rate, remedy="pass e.g. 1e-2")
    _check_function("eta_fn", eta_fn, "eta")
    if shape_fn is not None:
        _check_function("shape_fn", shape_fn, "shape")
    _checks.check_decay_rate("beta", beta, 0.999)
    _checks.check_number("extra_l2", extra_l2, at_least=0.0, remedy="pass 0.0")
    _checks.check_number("c_coef", c_coef, at_least=0.0, remedy="the usual value is 0.25")
    _checks.check_number("d_coef", d_coef, at_least=0.0, remedy="the usual value is 0.25")

    def step(g, p, v, b, eta, xi, correction):
        """The update of one parameter; v and b, in its rank, after it."""
        g, p = _moments.widen(g), _moments.widen(p)
        eta, xi, correction = (jnp.asarray(x, v.dtype) for x in (eta, xi, correction))
        g_sq = _mean(_moments.abs_sq(g), v.shape)
        v = _moments.ema(g_sq, v, beta)
        # Roots, whose derivatives are finite where those of 1 / v overflow.
        is_least = v < _LEAST_V
        root_r = jnp.sqrt(correction) * jnp.where(
            is_least, _LEAST_V**-0.5, 1 / jnp.sqrt(jnp.where(is_least, 1, v))
        )
        # Where a square overflows steps end, as Adam's do; 0 times infinity would be in b for good.
        finite_sq = jnp.minimum(g_sq, jnp.finfo(v.dtype).max)
        gamma = (xi * root_r * _moments.root(finite_sq)) ** 2 / jnp.sqrt(
            1 + c_coef * _moments.root(xi) * b
        )
        toward = xi * eta * root_r * g + (gamma / 2 + extra_l2) * p
        u = toward / (1 + d_coef * _moments.root(xi * eta) * b)
        return u, v, b + gamma * (1 + b)

    def zeros(path, p):
        name, shape = _layers.path_names(path), jnp.shape(p)
        _check_eta(name, eta_fn(name, shape))
        full = jnp.zeros_like(p, dtype=jnp.finfo(_moments.wide_dtype(p)).dtype)
        if shape_fn is None:
            return full
        slot = _checked_slot(name, shape, shape_fn(name, shape))
        # A mean, so that devices share it as they will the means of the gradients.
        return _narrow(_mean(full, slot), slot)

    def init(params):
        _checks.check_params(params, who="scale_by_amos")
        v = jax.tree_util.tree_map_with_path(zeros, params)
        # Each array is its own buffer, or the state could not be donated.
        b = optax.tree.zeros_like(v)
        return AmosState(count=jnp.zeros((), jnp.int32), v=v, b=b)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.require_params(params, who="Amos")
        _states.check_kind(state, AmosState)
        count = optax.safe_increment(state.count)
        xi = learning_rate(count) if callable(learning_rate) else learning_rate
        correction = _moments.bias_correction(beta, count)
        with_paths, structure = jax.tree_util.tree_flatten_with_path(updates)
        vs_and_bs = (
            _states.leaf_by_leaf(f"AmosState.{field}", getattr(state, field), updates)
            for field in ("v", "b")
        )
        columns = structure.flatten_up_to(params), *vs_and_bs
        us, vs, bs = [], [], []
        for (path, g), p, v, b in zip(with_paths, *columns, strict=True):
            name, shape = _layers.path_names(path), jnp.shape(g)
            _check_slot(name, shape, shape if shape_fn is None else shape_fn(name, shape), v, b)
            eta = eta_fn(name, shape)
            wide_v, wide_b = (_expand(slot, jnp.ndim(g)) for slot in (v, b))
            u, wide_v, wide_b = step(g, p, wide_v, wide_b, eta, xi, correction)
            us.append(u.astype(jnp.result_type(g)))
            vs.append(_narrow(wide_v, v.shape).astype(v.dtype))
            bs.append(_narrow(wide_b, b.shape).astype(b.dtype))
        return structure.unflatten(us), AmosState(
            count=count, v=structure.unflatten(vs), b=structure.unflatten(bs)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _mean(x: jax.Array, slot: Shape) -> jax.Array:
    """The mean over the axes that `slot` reduces, which stay with length 1; 0 of nothing."""
    slot = (1,) * (x.ndim - len(slot)) + slot
    axes = tuple(
        i for i, (kept, size) in enumerate(zip(slot, x.shape, strict=True)) if kept != size
    )
    if not axes:
        return x
    count = math.prod(x.shape[i] for i in axes)
    return jnp.sum(x, axes, keepdims=True) / max(count, 1)


def _expand(slot: jax.Array, rank: int) -> jax.Array:
    return jnp.expand_dims(slot, tuple(range(rank - slot.ndim)))


def _narrow(x: jax.Array, slot: Shape) -> jax.Array:
    return jnp.squeeze(x, tuple(range(x.ndim - len(slot))))


def _check_function(name: str, function: Any, gives: str) -> None:
    listed = f"under optax.inject_hyperparams list it in static_args=({name!r},)"
    _checks.check_callable(name, function, f"pass (name, shape) -> {gives} ({listed})")


def _check_eta(name: Name, eta: Any) -> None:
    _checks.check_number(
        f"eta_fn for the parameter {_layers.joined(name)}",
        eta,
        above=0.0,
        remedy="give the magnitude expected of its trained entries, e.g. 0.5 for a bias",
    )


def _check_slot(name: Name, shape: Shape, wanted: Any, *slots: Any) -> None:
    """Raises unless the state's slots of a parameter are reduced along the axes asked for.

    Within `jax.shard_map` shapes are those of a part, which `shape_fn` may not know.
    """
    for slot in map(jnp.shape, slots):
        padded = (1,) * (len(shape) - len(slot)) + slot
        fits = len(slot) <= len(shape) and all(
            own in (1, n) for own, n in zip(padded, shape, strict=True)
        )
        if not fits or [n == 1 for n in slot] != [n == 1 for n in wanted]:
            raise ValueError(
                f"shape_fn asks for slots of the shape {tuple(wanted)} for the parameter "
                f"{_layers.joined(name)} of shape {shape}, and the state's have {slot}; "
                f"{_states.REMEDY}"
            )


def _checked_slot(name: Name, shape: Shape, slot: Any) -> Shape:
    """`slot` as a tuple of ints that broadcasts to `shape`."""
    got = f"shape_fn gave {slot!r} for the parameter {_layers.joined(name)} of shape {shape}"
    remedy = "give that shape with 1 for each axis to average over, or () for one scalar"
    try:
        slot = tuple(map(operator.index, slot))
    except TypeError as error:
        raise TypeError(f"{got}, which is no tuple of ints; {remedy}") from error
    padded = (1,) * (len(shape) - len(slot)) + slot
    if len(slot) > len(shape) or any(s not in (1, n) for s, n in zip(padded, shape, strict=True)):
        raise ValueError(f"{got}, to which it does not broadcast; {remedy}")
    return slot


def amos(
    learning_rate: optax.ScalarOrSchedule,
    eta_fn: Callable[[Name, Shape], Any],
    shape_fn: Callable[[Name, Shape], Shape] | None = None,
    *,
    beta: Any = 0.999,
    extra_l2: Any = 0.0,
    c_coef: Any = 0.25,
    d_coef: Any = 0.25,
    momentum: Any = None,
    clip_value: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Amos: :func:`scale_by_amos` of clipped gradients, averaged if wanted, subtracted.

    Neither warm-up nor a schedule nor a weight decay is tuned. What it asks for is the magnitude
    expected of each parameter's trained entries; for Flax's layers they are known:
    `amos(lr, zoo.flax_scales, zoo.flax_slots)`.

    Args:
      learning_rate: :math:`\xi`, about :math:`1 / \sqrt N` for a data set of :math:`N` batches; a
        number or a schedule of the 1-based step (of the 0-based one, plus 1, under
        `optax.inject_hyperparams`: see :func:`scale_by_amos`).
      eta_fn: `(name, shape) -> eta > 0`, see :func:`scale_by_amos`. Belongs, as `shape_fn`, into
        `static_args` of `optax.inject_hyperparams`.
      shape_fn: `(name, shape) -> shape` of the slots; None: as the parameters.
      beta: Decay of the second moment; advised is :math:`1 - \beta` of the order of :math:`\xi`.
      extra_l2: A decay on top.
      c_coef: How the decay's own rate falls.
      d_coef: How the step's rate falls.
      momentum: Decay of a moving average of the updates, started at 0 and not corrected; None or
        the number 0: none.
      clip_value: Bound of each gradient entry; the authors take 1 to pre-train, and the root of
        the batch size where a loss sums over the batch. None: no bound.

    Returns:
      The chain clip, Amos, moving average, sign. `update` needs the parameters.

    Raises:
      ValueError: If an argument is out of range or, at `init`, `eta_fn` or `shape_fn` gives what
        does not fit a parameter.
      TypeError: If an argument has the wrong type, or a parameter is complex and `clip_value`
        given.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> tx = zoo.amos(0.01, zoo.flax_scales, zoo.flax_slots, beta=0.99)
      >>> params = {"Dense_0": {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["Dense_0"]["kernel"][0])  # 0.01 · sqrt(2 / 8) and half of 0.01²
      [-0.00505 -0.00505 -0.00505 -0.00505]

    References:
      Tian and Parikh, `Amos: An Adam-style Optimizer with Adaptive Weight Decay towards
      Model-Oriented Scale <https://arxiv.org/abs/2210.11693>`_, 2022, Algorithm 1.
    """
    links: list[Any] = [] if clip_value is None else [_links.clip_link(clip_value)]
    links.append(
        scale_by_amos(
            learning_rate,
            eta_fn,
            shape_fn,
            beta=beta,
            extra_l2=extra_l2,
            c_coef=c_coef,
            d_coef=d_coef,
        )
    )
    if momentum is not None:
        _checks.check_decay_rate("momentum", momentum, 0.9)
        if not _checks.is_zero(momentum):
            average = optax.ema(momentum, debias=False)
            links.append(_links.in_float32(average, optax.EmaState, "ema"))
    return optax.chain(*links, optax.scale(-1.0))
