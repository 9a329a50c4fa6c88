"""The contenders: how each optimizer is built from a schedule, and where its search starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

import optax_zoo as zoo

FLAX = ("kernel", "bias", "scale", "embedding")  # what its layers call their parameters


class Setting(NamedTuple):
    """What the protocol decides for a run.

    Attributes:
      schedule: The learning rate of a step.
      peak: The largest value of the schedule.
      b2: The decay of second moments that tuning found for AdamW on this workload.
      decay: AdamW's weight decay on this workload.
    """

    schedule: Any
    peak: Any
    b2: float
    decay: float


class Contender(NamedTuple):
    """An optimizer in the arena.

    Attributes:
      make: Setting -> transformation.
      rate: The middle of the first grid of learning rates.
      flat: Whether the schedule stays at its peak, as its paper asks.
      evaluate: (state, parameters) -> the parameters to be scored.
      family: "optax" or "zoo".
      version: Raised whenever `make` changes, so that results of before do not count.
    """

    make: Callable[[Setting], optax.GradientTransformation]
    rate: float
    family: str = "zoo"
    flat: bool = False
    evaluate: Callable[[Any, Any], Any] = lambda _, params: params
    version: int = 1


def matrices(params: Any) -> Any:
    """What is decayed and has trust ratios: leaves with more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def scales(name: tuple[str, ...], shape: tuple[int, ...]) -> float:
    """Amos's scales: the authors' for Flax, 1/sqrt(fan-in) for what is not Flax's."""
    return zoo.flax_scales(name, shape) if name[-1] in FLAX else shape[0] ** -0.5


def slots(name: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Amos's reduced second moments for Flax's parameters, one number for what is not Flax's."""
    return zoo.flax_slots(name, shape) if name[-1] in FLAX else ()


def adamw(b2: float) -> Contender:
    """AdamW at a decay of its second moment: the baseline is the best of them."""

    def make(s: Setting) -> optax.GradientTransformation:
        return optax.adamw(s.schedule, b2=b2, weight_decay=s.decay, mask=matrices)

    return Contender(make, 3e-3, "optax")


def named(
    name: str,
    rate: float,
    arguments: Callable[[Setting], dict[str, Any]] = lambda _: {},
    *,
    flat: bool = False,
) -> Contender:
    """An optimizer of the zoo by its name there."""
    return Contender(lambda s: zoo.create(name, s.schedule, **arguments(s)), rate, flat=flat)


def with_decay(name: str, rate: float, **arguments: Any) -> Contender:
    """The same with AdamW's decay, of matrices alone."""
    return named(name, rate, lambda s: {"weight_decay": s.decay, "mask": matrices, **arguments})


# Of the language model's width: its attention is made of (96, 4, 24), which are 96 × 96.
MERGED = zoo.Blocks(merge_below=96)


def shampoo(every: int, delay: int, drift: int | None = None, **arguments: Any) -> Contender:
    """Shampoo renewed every N steps, roots D steps late, perhaps corrected between."""
    refresh = zoo.Refresh(every, delay, start=1, drift_every=drift)
    return with_decay("shampoo", 1e-2, refresh=refresh, **arguments)


def soap(every: int, delay: int) -> Contender:
    """SOAP renewed every N steps, bases D steps late; the first at once, as released."""
    return with_decay("soap", 3e-3, refresh=zoo.Refresh(every, delay, start=1))


def _sgd(s: Setting) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(1e-3 * s.decay, matrices)
    return optax.chain(decay, optax.sgd(s.schedule, momentum=0.9))


def _decayed(direction: optax.GradientTransformation, s: Setting) -> optax.GradientTransformation:
    """A direction with AdamW's decay and the learning rate."""
    return optax.chain(
        direction,
        optax.add_decayed_weights(s.decay, matrices),
        optax.scale_by_learning_rate(s.schedule),
    )


def _muon(s: Setting) -> optax.GradientTransformation:
    """Muon for hidden matrices, Adam for the rest, each step of the size of Adam's."""
    direction = contrib.muon(
        1.0, adam_b2=s.b2, consistent_rms=0.2, muon_weight_dimension_numbers=_muon_axes
    )
    return _decayed(optax.chain(direction, optax.scale(-1.0)), s)


def _muon_axes(params: Any) -> Any:
    """The inputs' and outputs' axes of hidden matrices; None, and so Adam, for all else."""

    def axes(path: Any, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        names = {str(getattr(key, "key", key)) for key in path}
        if leaf.ndim < 2 or names & {"embedding", "positions", "head"}:
            return None
        inputs = 2 if leaf.ndim == 3 and "out" in names else 1
        every = range(leaf.ndim)
        return contrib.MuonDimensionNumbers(tuple(every[:inputs]), tuple(every[inputs:]))

    return jax.tree_util.tree_map_with_path(axes, params)


def _schedule_free(s: Setting) -> optax.GradientTransformation:
    base = optax.adamw(s.schedule, b1=0.0, b2=s.b2, weight_decay=s.decay, mask=matrices)
    return contrib.schedule_free(base, s.schedule, b1=0.9)


def _bounds(s: Setting) -> dict[str, Any]:
    return {"final_lr": 100 * s.peak, "base_lr": s.peak, "b2": s.b2}


BASELINES = {f"adamw b2={b2}": adamw(b2) for b2 in (0.9, 0.95, 0.99, 0.999)}

CONTENDERS: dict[str, Contender] = BASELINES | {
    "sgd": Contender(_sgd, 0.1, "optax"),
    "adagrad": Contender(lambda s: _decayed(optax.scale_by_rss(), s), 3e-2, "optax"),
    "adafactor": Contender(
        lambda s: optax.adafactor(s.schedule, multiply_by_parameter_scale=False), 3e-3, "optax"
    ),
    "amsgrad": Contender(lambda s: _decayed(optax.scale_by_amsgrad(b2=s.b2), s), 3e-3, "optax"),
    "nadamw": Contender(
        lambda s: optax.nadamw(s.schedule, b2=s.b2, weight_decay=s.decay, mask=matrices),
        3e-3,
        "optax",
    ),
    "muon": Contender(_muon, 3e-3, "optax"),
    "schedule-free adamw": Contender(
        _schedule_free, 3e-3, "optax", flat=True, evaluate=contrib.schedule_free_eval_params
    ),
    "adopt": Contender(lambda s: _decayed(contrib.scale_by_adopt(b2=s.b2), s), 3e-3, "optax"),
    "optax.lars": Contender(
        lambda s: optax.lars(s.schedule, 1e-3 * s.decay, matrices, trust_ratio_mask=matrices),
        3.0,
        "optax",
    ),
    "lars": named(
        "lars",
        3.0,
        lambda s: {
            "weight_decay": 1e-3 * s.decay,
            "weight_decay_mask": matrices,
            "trust_ratio_mask": matrices,
        },
    ),
    # Also Optax's: the tests hold ours equal to them.
    "lion": named("lion", 3e-4, lambda s: {"weight_decay": 10 * s.decay, "mask": matrices}),
    "lamb": named(
        "lamb",
        1e-2,
        lambda s: {
            "b2": s.b2,
            "weight_decay": s.decay,
            "mask": matrices,
            "trust_ratio_mask": matrices,
        },
    ),
    "adabound": named("adabound", 3e-3, _bounds),
    "amsbound": named("amsbound", 3e-3, _bounds),
    "adaxw": with_decay("adaxw", 3e-3),
    "amos": named(
        "amos",
        3e-2,
        lambda s: {"eta_fn": scales, "shape_fn": slots, "beta": s.b2, "momentum": 0.9},
        flat=True,
    ),
    "egdd": named("egdd", 0.1),
    "exponentiated gradient": named("exponentiated_gradient", 0.1, lambda _: {"domain": "signed"}),
    "shampoo": shampoo(10, 0),
    "shampoo N=10 D=10": shampoo(10, 10),
    "shampoo N=10 D=10, corrected": shampoo(10, 10, drift=5),
    "shampoo N=50 D=15": shampoo(50, 15),
    "shampoo N=50 D=15, corrected": shampoo(50, 15, drift=5),
    "shampoo on the device": shampoo(10, 0, roots=zoo.Roots(on="device", tolerance=0.1)),
    # The other workloads have nothing to merge.
    "shampoo, heads merged": shampoo(10, 0, blocks=MERGED),
    "shampoo N=50 D=15, corrected, heads merged": shampoo(50, 15, drift=5, blocks=MERGED),
    "soap": soap(10, 0),
    "soap N=10 D=10": soap(10, 10),
}
