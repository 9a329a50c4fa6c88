"""The table of transformations that `test_laws.py` and others hold to the common laws."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax

import optax_zoo as zoo


@dataclasses.dataclass(frozen=True)
class Entry:
    """A transformation, arguments under which every law shall hold, and its traits.

    Attributes:
      factory: Builds the transformation.
      arguments: Given to the factory; its defaults hold for the others.
      converges: The arguments with which Optax's own suites see it converge on their problems,
        Optax's own where it has the optimizer; None for a link without a learning rate.
      needs_params: Whether `update` needs the parameters: never, for the decay alone (then not
        at `weight_decay=0`) or always.
      complex_ok: Whether complex parameters work; otherwise `init` refuses them.
      first_step: What a schedule is called with first.
      calls_per_step: The parameters move in every so many-th call, at most 3; laws about a single
        update look at the first that moves.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    converges: Mapping[str, Any] | None = None
    needs_params: Literal["never", "decay", "always"] = "never"
    complex_ok: bool = True
    first_step: int = 0
    calls_per_step: int = 1

    @functools.cached_property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        """The transformation, one object for all tests, so that its programs are compiled once."""
        return self.make()

    def make(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation, some arguments changed."""
        return self.factory(**{**self.arguments, **overrides})

    @property
    def values(self) -> dict[str, Any]:
        """All arguments by name, those without a value left out."""
        parameters = inspect.signature(self.factory).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return {**defaults, **self.arguments}

    def takes(self, name: str) -> bool:
        """Whether the factory has this argument."""
        return name in inspect.signature(self.factory).parameters


def _args(**arguments: Any) -> dict[str, Any]:
    return arguments


def _given(factory: Callable[..., Any], **functions: Any) -> Callable[..., Any]:
    """`factory` without arguments that `optax.inject_hyperparams` would take for schedules."""

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        return factory(*args, **functions, **kwargs)

    signature = inspect.signature(factory)
    left = [p for p in signature.parameters.values() if p.name not in functions]
    setattr(build, "__signature__", signature.replace(parameters=left))  # noqa: B010
    return build


def _eta(name: Any, shape: Any) -> float:
    del name, shape
    return 0.5


def _columns(name: Any, shape: Any) -> tuple[int, ...]:
    """Slots with one entry per column; those of a vector are whole."""
    del name
    return (*(1 for _ in shape[:-1]), *shape[-1:])


# fmt: off
# One line each. Rosenbrock's valley, one of Optax's problems, wants AdaBound's final_lr small and
# EGDD's gains bounded.
TABLE: dict[str, Entry] = {
    "scale_by_sign_momentum": Entry(zoo.scale_by_sign_momentum, complex_ok=False),
    "lion": Entry(zoo.lion, _args(learning_rate=1e-2), _args(learning_rate=1e-2, weight_decay=1e-4), "decay", complex_ok=False),
    "scale_by_layerwise_trust_ratio": Entry(zoo.scale_by_layerwise_trust_ratio, _args(weight_decay=0.1), needs_params="always"),
    "lars": Entry(zoo.lars, _args(learning_rate=5.0, weight_decay=0.1), _args(learning_rate=1.0), "always"),
    "lamb": Entry(zoo.lamb, _args(learning_rate=1e-2, weight_decay=0.1), _args(learning_rate=1e-3), "always"),
    "scale_by_dynamic_bounds": Entry(zoo.scale_by_dynamic_bounds, _args(learning_rate=1e-2)),
    "adabound": Entry(zoo.adabound, _args(weight_decay=0.1), _args(learning_rate=1e-2, final_lr=1e-3, base_lr=1e-2), "decay"),
    "amsbound": Entry(zoo.amsbound, _args(weight_decay=0.1), _args(learning_rate=1e-2, final_lr=1e-3, base_lr=1e-2), "decay"),
    "adaboundw": Entry(zoo.adaboundw, _args(weight_decay=0.1), _args(learning_rate=1e-2, final_lr=1e-3, base_lr=1e-2), "decay"),
    "scale_by_adax": Entry(zoo.scale_by_adax),
    "adax": Entry(zoo.adax, {}, _args(learning_rate=1e-2, weight_decay=0.0), "decay"),
    "adaxw": Entry(zoo.adaxw, {}, _args(learning_rate=1e-2, weight_decay=0.0), "decay"),
    "amos": Entry(_given(zoo.amos, eta_fn=_eta, shape_fn=_columns), _args(learning_rate=1e-2, momentum=0.9), _args(learning_rate=0.1), "always", first_step=1),
    "accumulate_in_momentum": Entry(zoo.accumulate_in_momentum, _args(every_k=2, nesterov=True, then=optax.scale_by_learning_rate(lambda count: 0.5 / (1 + count))), _args(every_k=2, then=optax.scale_by_learning_rate(1e-2)), calls_per_step=2),
    "accumulate_in_adam": Entry(zoo.accumulate_in_adam, _args(every_k=2), calls_per_step=2),
    "exponentiated_gradient": Entry(zoo.exponentiated_gradient, _args(learning_rate=1e-2, domain="signed", weight_decay=0.1), _args(learning_rate=1e-3, domain="signed"), "always", complex_ok=False),
    "egdd": Entry(zoo.egdd, _args(learning_rate=1e-2), _args(learning_rate=2e-4, gain_bounds=(1e-2, 1.0), scale_bounds=(0.1, 1.0)), complex_ok=False),
    "graft": Entry(zoo.graft, _args(magnitude=zoo.scale_by_adax(), direction=zoo.scale_by_sign_momentum()), complex_ok=False),
    "shampoo": Entry(zoo.shampoo, _args(learning_rate=1e-2, weight_decay=0.1, refresh=zoo.Refresh(every=2, start=1), roots=zoo.Roots(ridge=1e-2)), _args(learning_rate=1e-2, refresh=zoo.Refresh(every=500)), "decay", complex_ok=False),
    "soap": Entry(zoo.soap, _args(learning_rate=1e-2, weight_decay=0.1, refresh=zoo.Refresh(every=2, start=1)), _args(learning_rate=1e-2, refresh=zoo.Refresh(every=500)), "decay", complex_ok=False),
}
# fmt: on

# Links that are held to the laws within an optimizer.
WITHIN = {
    "scale_by_amos": "amos",
    "scale_by_exponentiated_gains": "egdd",
    "scale_by_shampoo": "shampoo",
    "scale_by_soap": "soap",
}
