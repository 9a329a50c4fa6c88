"""Optimizers by name, each with a peak learning rate and decay tuned on this model."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import jax
import optax

import optax_zoo as zoo
from lm import UsageError

MASKS = ("mask", "weight_decay_mask", "trust_ratio_mask")


class Tuning(NamedTuple):
    """Peak learning rate, decay where the optimizer takes one, and other arguments."""

    learning_rate: float
    weight_decay: float | None = None
    arguments: Mapping[str, float | str] = MappingProxyType({})


# The best of four peak learning rates for each, over 250 steps of width 128.
TUNED = {
    # Lion's default, a momentum of 100 steps, lags in runs this short: after 1600 it reached 2.29
    # bits per byte, this one 2.05.
    "lion": Tuning(1e-3, 1.0, {"b2": 0.95}),
    "lars": Tuning(3.0, 1e-4),
    "lamb": Tuning(1e-2, 0.1),
    "adabound": Tuning(3e-2, 0.0),
    "amsbound": Tuning(3e-2, 0.0),
    "adaboundw": Tuning(3e-2, 1e-4),
    "adax": Tuning(3e-3, 1e-4),
    "adaxw": Tuning(3e-3, 0.05),
    "shampoo": Tuning(1e-2, 0.1),
    # Not tuned. Weights of a network have both signs.
    "exponentiated_gradient": Tuning(0.1, None, {"domain": "signed"}),
    "adamw": Tuning(3e-3, 0.1),
    "adam": Tuning(3e-3),
    "sgd": Tuning(0.3),
}
UNTUNED = Tuning(1e-3)


def tuning(name: str) -> Tuning:
    """The tuned values of `name`, or ones that suit most optimizers built on Adam."""
    return TUNED.get(name, UNTUNED)


def find_optimizer(name: str) -> tuple[Callable[..., optax.GradientTransformation], str]:
    """The optimizer called `name` and its package: optax_zoo's first, then Optax's."""
    if name in zoo.list_optimizers():
        return zoo.info(name).factory, zoo.__name__
    others = _optimizers(optax)
    if name in others:
        return others[name], optax.__name__
    names = sorted({*zoo.list_optimizers(), *others})
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    remedy = f"did you mean {', '.join(close)}?" if close else f"choose from {', '.join(names)}"
    raise UsageError(f"--optimizer {name}: unknown in optax_zoo and optax; {remedy}")


def warmup_cosine(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Rises linearly to the peak over `warmup` steps, then falls to zero by a cosine."""
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=peak / (warmup + 1),
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
    )


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    peak: float,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> optax.GradientTransformation:
    """Builds `name` on a schedule; decay and trust ratios apply to matrices alone.

    Optimizers that can divide their state over a mesh's devices do.
    """
    factory, _ = find_optimizer(name)
    parameters = inspect.signature(factory).parameters
    arguments: dict[str, Any] = dict(tuning(name).arguments)
    arguments |= {key: matrices for key in MASKS if key in parameters}
    if "base_lr" in parameters:
        arguments["base_lr"] = peak
    if "mesh" in parameters:
        arguments["mesh"] = mesh
    if "eta_fn" in parameters:
        arguments |= {"eta_fn": zoo.flax_scales, "shape_fn": zoo.flax_slots}
    if weight_decay is not None:
        if "weight_decay" not in parameters:
            raise UsageError(
                f"--weight-decay {weight_decay:g}: {name} takes none; leave it out, "
                "or choose an optimizer with decay (adam: adamw)"
            )
        arguments["weight_decay"] = weight_decay
    _check_complete(name, parameters, arguments)
    try:
        optimizer = factory(schedule, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--optimizer {name}: {str(error).splitlines()[0]}") from error
    if clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def check_update(name: str, optimizer: optax.GradientTransformation, params: Any) -> None:
    """Traces one update, so that an optimizer that needs more than gradients fails early."""

    def update(params: Any) -> Any:
        return optimizer.update(params, optimizer.init(params), params)[0]

    try:
        jax.eval_shape(update, params)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--optimizer {name}: cannot step on gradients and a schedule alone ({reason}); "
            "choose another"
        ) from error


def root_status(opt_state: Any) -> str:
    """How old Shampoo's roots are and the worst residual among them; empty for others."""
    # Others would be read in full, in every step.
    kinds = (zoo.ShampooState, zoo.SoapState)
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    layers = zoo.inspect([node for node in nodes if isinstance(node, kinds)]).values()
    with_roots = [layer for layer in layers if layer["age"] >= 0]
    if not with_roots:
        return "no roots yet" if layers else ""
    age = max(layer["age"] for layer in with_roots)
    residual = max(layer["residual"] for layer in with_roots)
    failures = sum(layer["failures"] for layer in layers)
    failed = f", {failures:.0f} failed" if failures else ""
    return f"roots {age:.0f} steps old, residual {residual:.0e}{failed}"


def matrices(params: Any) -> Any:
    """Marks the leaves with more than one axis: not the scales of the norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _optimizers(module: ModuleType) -> dict[str, Callable[..., optax.GradientTransformation]]:
    """The public functions of a module whose first argument is the learning rate."""
    return {
        name: member
        for name, member in vars(module).items()
        if inspect.isfunction(member)
        and not name.startswith(("_", "scale_by_"))
        and next(iter(inspect.signature(member).parameters), None) == "learning_rate"
    }


def _check_complete(
    name: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]
) -> None:
    missing = [
        key
        for key, parameter in list(parameters.items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and key not in arguments
    ]
    if missing:
        raise UsageError(
            f"--optimizer {name}: also needs {', '.join(missing)}, which no option here sets; "
            "choose another"
        )
