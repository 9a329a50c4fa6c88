"""The scale that trained weights are expected to have, and what follows from it."""

import math
from typing import Any, NamedTuple

import optax

from optax_zoo import _checks, _layers

# Where no ReLU follows, by the name of the layer: projections of attention, and output layers.
_ATTENTION = frozenset({"query", "key", "value", "out"})
_OUTPUTS = frozenset({"head", "lm_head", "classifier", "logits", "output"})


def flax_scales(name: tuple[str, ...], shape: tuple[int, ...]) -> float:
    r"""The usual `eta_fn` of :func:`amos` for the layers of Flax, Linen and NNX.

    The last part of a name says what a parameter is, the part before it which layer's:

    ============== ==================================== ======================================
    parameter      layer                                scale
    ============== ==================================== ======================================
    `bias`         any                                  0.5
    `scale`        a normalisation                      1
    `embedding`    any                                  :math:`\sqrt{2 / \text{features}}`
    `kernel`       `query`, `key`, `value`, `out`,      :math:`\sqrt{1 / \text{fan-in}}`
                   `head`, `lm_head`, `classifier`,
                   `logits`, `output`
    `kernel`       any other, taken for one before a    :math:`\sqrt{2 / \text{fan-in}}`
                   ReLU or its like
    ============== ==================================== ======================================

    The fan-in is the product of all axes of a kernel but the last, and the first axis alone in
    `query`, `key` and `value`, whose other axes are heads. The numbers are those of the authors'
    examples. Names cannot tell everything: an output layer that Linen called `Dense_3`, inputs
    that are not of unit size, layers stacked by a scan. Wrap this function for them, as below.

    Args:
      name: Path of the parameter, a tuple of strings.
      shape: Its shape.

    Returns:
      The magnitude expected of its trained entries.

    Raises:
      ValueError: If the last part of the name is none of these.

    Examples:
      >>> import optax_zoo as zoo
      >>> zoo.flax_scales(("Conv_0", "kernel"), (3, 3, 8, 16)) ** 2 * 3 * 3 * 8
      2.0
      >>> def scales(name, shape):
      ...     if name[0] == "Dense_3":
      ...         return shape[0] ** -0.5  # no ReLU follows
      ...     if name[0] == "layers":
      ...         return zoo.flax_scales(name, shape[1:])  # stacked by a scan
      ...     return zoo.flax_scales(name, shape)
      >>> scales(("Dense_3", "kernel"), (16, 10)), scales(("layers", "mlp", "kernel"), (12, 8, 8))
      (0.25, 0.5)

    References:
      Tian and Parikh, `Amos <https://arxiv.org/abs/2210.11693>`_, 2022, section 3 and the
      examples of the authors' code.
    """
    kind, layer = _parts(name)
    if kind == "bias":
        return 0.5
    if kind == "scale":
        return 1.0
    if kind == "embedding" and shape:
        return math.sqrt(2 / max(shape[-1], 1))
    if kind == "kernel" and shape:
        gain = 1 if layer in _ATTENTION | _OUTPUTS else 2
        return math.sqrt(gain / max(math.prod(shape[: _input_axes(layer, shape)]), 1))
    raise ValueError(
        f"flax_scales has no rule for the parameter {_layers.joined(name)} of shape {shape}; pass "
        "an eta_fn that returns the magnitude expected of its entries and calls flax_scales for "
        "the others"
    )


def flax_slots(name: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    r"""The usual `shape_fn` of :func:`amos` for the layers of Flax, Linen and NNX.

    A `kernel` has one slot entry per output, an `embedding` one per row, anything else one in
    all: the reduced slots of the authors' examples, which make Amos's state negligible. Layers
    stacked by a scan need a wrapper, see below; without it they share their entries.

    Args:
      name: Path of the parameter, a tuple of strings.
      shape: Its shape.

    Returns:
      The shape of the slots: 1 for each axis that they average over, or `()`.

    Raises:
      Nothing: a name of another kind has one entry.

    Examples:
      >>> import optax_zoo as zoo
      >>> zoo.flax_slots(("Dense_0", "kernel"), (784, 256))
      (1, 256)
      >>> zoo.flax_slots(("attention", "query", "kernel"), (512, 8, 64))
      (1, 8, 64)
      >>> zoo.flax_slots(("Embed_0", "embedding"), (30522, 768))
      (30522, 1)
      >>> def slots(name, shape):
      ...     if name[0] == "layers":  # stacked by a scan
      ...         inner = zoo.flax_slots(name, shape[1:]) or (1,) * (len(shape) - 1)
      ...         return (shape[0], *inner)
      ...     return zoo.flax_slots(name, shape)
      >>> slots(("layers", "mlp", "bias"), (12, 64))
      (12, 1)

    References:
      Tian and Parikh, `Amos <https://arxiv.org/abs/2210.11693>`_, 2022, and the examples of the
      authors' code.
    """
    kind, layer = _parts(name)
    if kind == "kernel" and shape:
        inputs = _input_axes(layer, shape)
        return (*(1 for _ in shape[:inputs]), *shape[inputs:])
    if kind == "embedding" and shape:
        return (shape[0], *(1 for _ in shape[1:]))
    return ()


def _parts(name: tuple[str, ...]) -> tuple[str, str]:
    """What a parameter is, and the name of its layer."""
    return (name[-1] if name else "", name[-2] if len(name) > 1 else "")


def _input_axes(layer: str, shape: tuple[int, ...]) -> int:
    return 1 if layer in _ATTENTION - {"out"} else max(len(shape) - 1, 1)


class ModelScaleSchedules(NamedTuple):
    """What `model_scale_schedules` gives.

    Attributes:
      learning_rate: A schedule of the 0-based step.
      weight_decay: A number. Decoupled decay is multiplied by the learning rate and so follows
        its schedule.

    Examples:
      >>> import optax_zoo as zoo
      >>> rule = zoo.model_scale_schedules(1.0, steps_to_half=100)
      >>> print(f"{rule.learning_rate(100) / rule.learning_rate(0):.1f}")
      0.5
    """

    learning_rate: optax.Schedule
    weight_decay: Any


def model_scale_schedules(
    scale: Any,
    *,
    relative_step: Any = 1e-3,
    steps_to_half: Any = None,
    update_rms: Any = 1.0,
    trust_ratio: bool = False,
) -> ModelScaleSchedules:
    r"""Amos's rule for other optimizers: the rates that keep weights of a given scale there.

    An optimizer with decoupled decay moves :math:`\theta \leftarrow \theta - \eta_t (u_t +
    \lambda \theta)`. Call the distance from where the weights shall end
    :math:`\varepsilon = \theta - \theta^*`, take mean squares over entries, :math:`\rho` for the
    RMS of :math:`u` (`update_rms`), and :math:`\langle \theta \varepsilon \rangle =
    \langle \varepsilon^2 \rangle`, because errors in many dimensions are orthogonal to the goal.
    To second order in :math:`\eta`,

    .. math::

      \langle \varepsilon^2 \rangle \leftarrow \langle \varepsilon^2 \rangle
        - 2 \eta \langle u \varepsilon \rangle
        + \eta^2 \rho^2 - 2 \eta \lambda \langle \varepsilon^2 \rangle

    The first change is what is learnt; the second, the growth of any walk, harms; decay is there
    to cancel it: :math:`\eta \rho^2 = 2 \lambda \langle \varepsilon^2 \rangle`. At the start
    :math:`\langle \varepsilon^2 \rangle = \sigma^2` with the weights' `scale` :math:`\sigma`, and
    the first step shall be the share :math:`a` of it (`relative_step`),
    :math:`\eta_0 \rho = a \sigma`. What is left is
    :math:`d \langle \varepsilon^2 \rangle / dt = -2 \eta \langle u \varepsilon \rangle`. If
    the cosine between :math:`u` and :math:`\varepsilon` falls as the distance does,
    :math:`p \sqrt{\langle \varepsilon^2 \rangle} / \sigma`, and :math:`\eta_t \propto
    \langle \varepsilon^2 \rangle`, so that the balance holds with one :math:`\lambda`, it has the
    solution :math:`\sigma^2 / (1 + 2 a p t)`, hence

    .. math::

      \eta_t = \frac{a \sigma / \rho}{1 + t / T}, \qquad \lambda = \frac{a \rho}{2 \sigma},
        \qquad T = \frac{1}{2 a p}

    Exact is the balance: directions that are orthogonal to the weights and to each other, at the
    constant rate, drive the mean square of the weights to :math:`\sigma^2 / (1 - a^2 / 4)`,
    in the order of :math:`1 / a^2` steps, wherever they start. The cosine is a model. Momentum
    makes directions alike, so that they walk further than their RMS says: by the root of
    :math:`(1 + \beta) / (1 - \beta)` for an average with decay :math:`\beta`. Adam's directions
    under pure noise, with an RMS of :math:`\sqrt{(1 - \beta_1) / (1 + \beta_1)}`, walk as if it
    were 1, so leave `update_rms` at 1 for Adam and its kin; signs have it by construction.

    Parameters of different scales have rules of their own, see :func:`flax_scales` and
    `optax.partition`.

    Args:
      scale: :math:`\sigma > 0`, the magnitude expected of the trained weights, for matrices the
        standard deviation that they are initialised with; 0.5 for biases.
      relative_step: :math:`a`, in (0, 1): about 1e-3, up to 1e-2 for simple tasks.
      steps_to_half: :math:`T > 0`, steps until the learning rate is halved; None: it is constant.
      update_rms: :math:`\rho > 0`; 1 for Lion and for Adam and its kin.
      trust_ratio: Whether a trust ratio multiplies directions by :math:`\sigma / \rho` already, as
        in :func:`lamb`; then :math:`\eta_0 = a`. A Python bool.

    Returns:
      The learning rate, a schedule, and the weight decay, a number, for every optimizer that
      decouples them: `lion`, `adaxw`, `shampoo`, `optax.adamw` and, with `trust_ratio`, `lamb`.
      (`adaboundw` decays by what no learning rate multiplies: give it their product.)

    Raises:
      ValueError: If a number is out of range.
      TypeError: If an argument has the wrong type.

    Examples:
      BERT-base, whose matrices are 768 wide:

      >>> import jax.numpy as jnp, optax, optax_zoo as zoo
      >>> rule = zoo.model_scale_schedules(768**-0.5, steps_to_half=100_000)
      >>> print(f"{rule.learning_rate(0):.1e} {rule.learning_rate(100_000):.1e}")
      3.6e-05 1.8e-05
      >>> print(f"{rule.weight_decay:.3f}")
      0.014
      >>> tx = zoo.lion(rule.learning_rate, weight_decay=rule.weight_decay)

      Biases have a scale of their own:

      >>> def lion(scale):
      ...     rule = zoo.model_scale_schedules(scale)
      ...     return zoo.lion(rule.learning_rate, weight_decay=rule.weight_decay)
      >>> tx = optax.partition({"w": lion(768**-0.5), "b": lion(0.5)}, {"w": "w", "b": "b"})
      >>> params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
      >>> updates, _ = tx.update({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, tx.init(params), params)
      >>> print(updates["b"])
      [-0.0005 -0.0005]

    References:
      Tian and Parikh, `Amos <https://arxiv.org/abs/2210.11693>`_, 2022; in this form Su,
      `<https://kexue.fm/archives/9344>`_, 2022.
    """
    _checks.check_number("scale", scale, above=0.0, remedy="pass e.g. 0.02")
    _checks.check_number(
        "relative_step", relative_step, above=0.0, below=1.0, remedy="the usual value is 1e-3"
    )
    _checks.check_number("update_rms", update_rms, above=0.0, remedy="pass 1.0")
    _checks.check_flag("trust_ratio", trust_ratio)
    first = relative_step if trust_ratio else relative_step * scale / update_rms
    weight_decay = relative_step * update_rms / (2 * scale)
    if steps_to_half is None:
        return ModelScaleSchedules(optax.schedules.constant_schedule(first), weight_decay)
    _checks.check_number(
        "steps_to_half", steps_to_half, above=0, remedy="pass e.g. 10_000, or None"
    )
    return ModelScaleSchedules(lambda count: first / (1 + count / steps_to_half), weight_decay)
