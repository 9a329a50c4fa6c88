"""Bad inputs: every error names the argument, the value seen and the remedy."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from laws import TABLE

NAN, INF = math.nan, math.inf


def schedule(step):
    return 1e-3 * step


# argument -> (the values to refuse, a piece of the remedy)
NUMBERS: dict[str, tuple[list[Any], str]] = {
    "learning_rate": ([-1e-3, NAN, INF, "1e-3", None, True, 1j], "schedule"),
    "b1": ([-0.1, 1.0, 1.5, NAN, "0.9", None, False], "usual value is 0.9"),
    "b2": ([-0.1, 1.0, 2, NAN, [0.9]], "usual value is"),
    "eps": ([-1e-8, NAN, -INF, INF, "small"], "pass "),
    "eps_root": ([-1e-8, NAN, INF], "pass 0.0"),
    "momentum": ([-0.1, 1.0, NAN], "usual value is 0.9"),
    "trust_coefficient": ([0.0, -1e-3, NAN, INF, None], "pass e.g. 1e-3"),
    "final_lr": ([0.0, -0.1, NAN, INF, None], "pass e.g. 0.1"),
    "base_lr": ([0.0, -0.1, NAN, INF, "peak"], "pass the schedule's peak"),
    "gamma": ([0.0, -1e-3, NAN, INF], "pass e.g. 1e-3"),
    "weight_decay": ([-1e-4, NAN, INF, "0.1", None], "schedule"),
}
# The second moment of AdaX grows: its b2 is another number.
ADAX_B2 = ([0.0, -1e-4, 1.0, NAN], "not Adam's b2")


def number_cases():
    for name, entry in TABLE.items():
        for argument, (values, remedy) in NUMBERS.items():
            if not entry.takes(argument):
                continue
            if argument == "b2" and "adax" in name:
                values, remedy = ADAX_B2
            for value in values:
                yield pytest.param(entry, argument, value, remedy, id=f"{name}-{argument}={value}")


@pytest.mark.parametrize(("entry", "argument", "value", "remedy"), list(number_cases()))
def test_a_bad_number_is_named_with_its_value_and_a_remedy(entry, argument, value, remedy):
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    with pytest.raises(ValueError if is_real else TypeError) as error:
        entry.make(**{argument: value})
    message = str(error.value)
    assert message.startswith(f"{argument} must be ")
    assert repr(value) in message
    assert remedy in message


@pytest.mark.parametrize("value", [-0.1, NAN, 1.0])
@pytest.mark.parametrize("as_array", [np.float32, np.float64, np.asarray])
def test_numpy_scalars_are_checked_like_numbers(value, as_array):
    with pytest.raises(ValueError, match=r"^b1 must be"):
        zoo.lion(1e-3, b1=as_array(value))


@pytest.mark.parametrize("argument", ["b1", "eps", "gamma", "final_lr"])
def test_a_schedule_where_a_number_belongs_is_sent_to_inject_hyperparams(argument):
    with pytest.raises(TypeError, match=f"^{argument} must be a number.*optax.inject_hyperparams"):
        zoo.adabound(1e-3, **{argument: schedule})


PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}


def init(tx: optax.GradientTransformation) -> Any:
    return tx.init(PARAMS)


def update(tx: optax.GradientTransformation) -> Any:
    return tx.update(PARAMS, tx.init(PARAMS))


# Wrong types are the point: these have none.
adabound: Any = zoo.adabound
adaboundw: Any = zoo.adaboundw
lamb: Any = zoo.lamb
lars: Any = zoo.lars
of_bounds: Any = zoo.scale_by_dynamic_bounds
of_layers: Any = zoo.scale_by_layerwise_trust_ratio
scaled: Any = zoo.scale_learning_rate


def warmed_up(**arguments: Any) -> optax.Schedule:
    return zoo.large_batch_schedule(
        **{"base_lr": 0.1, "base_batch": 256, "batch": 512, "total_steps": 10, **arguments}
    )


Case = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]

CASES: dict[str, Case] = {
    # The clip of the weights' norm: a pair, in order, not empty.
    "clip_number": (lambda: of_layers(clip=10.0), ValueError, ("clip", "10.0", "(lo, hi)")),
    "clip_triple": (lambda: of_layers(clip=(0, 1, 2)), ValueError, ("clip", "(0, 1, 2)", "pair")),
    "clip_inverted": (lambda: of_layers(clip=(2, 1)), ValueError, ("clip", "(2, 1)", "lo < hi")),
    "clip_empty": (lambda: of_layers(clip=(1, 1)), ValueError, ("clip", "(1, 1)", "lo < hi")),
    "clip_negative": (lambda: of_layers(clip=(-1, 1)), ValueError, ("clip", "-1", "lo < hi")),
    "clip_nan": (lambda: of_layers(clip=(0, NAN)), ValueError, ("clip", "nan", "lo < hi")),
    "lars_clip": (
        lambda: lars(1.0, trust_clip=(2, 1)),
        ValueError,
        ("trust_clip", "(2, 1)", "trust_clip=(lo, hi)"),
    ),
    "lamb_clip": (
        lambda: lamb(1.0, trust_clip=(3, 0)),
        ValueError,
        ("trust_clip", "(3, 0)", "trust_clip=(lo, hi)"),
    ),
    "lamb_clip_number": (lambda: lamb(1.0, trust_clip=1.0), ValueError, ("trust_clip", "1.0")),
    # Flags fix the program.
    "nesterov_int": (lambda: lars(1.0, nesterov=1), TypeError, ("nesterov", "1", "True or")),
    "nesterov_array": (
        lambda: lars(1.0, nesterov=jnp.array(True)),
        TypeError,
        ("nesterov", "static_args=('nesterov',)"),
    ),
    "amsbound_none": (
        lambda: of_bounds(1e-3, amsbound=None),
        TypeError,
        ("amsbound", "None", "static_args=('amsbound',)"),
    ),
    "adaboundw_amsbound": (
        lambda: adaboundw(1e-3, amsbound="yes"),
        TypeError,
        ("amsbound", "'yes'", "True or False"),
    ),
    # layer_axes fixes shapes.
    "layer_axes_traced": (
        lambda: jax.jit(lambda n: init(lamb(1.0, layer_axes=n)))(1),
        TypeError,
        ("layer_axes", "static_args=('layer_axes',)"),
    ),
    "layer_axes_injected": (
        lambda: init(optax.inject_hyperparams(zoo.lars)(1.0, layer_axes=1)),
        TypeError,
        ("layer_axes", "static_args=('layer_axes',)"),
    ),
    "layer_axes_negative": (lambda: lars(1.0, layer_axes=-1), ValueError, ("layer_axes", "-1")),
    "layer_axes_float": (lambda: lamb(1.0, layer_axes=1.0), TypeError, ("layer_axes", "1.0")),
    "layer_axes_bool": (lambda: lamb(1.0, layer_axes=True), TypeError, ("layer_axes", "True")),
    "layer_axes_prefix": (
        lambda: init(lamb(1.0, layer_axes={"w": 1})),
        ValueError,
        ("layer_axes", "{'w': *}", "prefix"),
    ),
    "layer_axes_callable": (
        lambda: init(lamb(1.0, layer_axes=lambda path, leaf: 0.5)),
        TypeError,
        ("layer_axes", "0.5"),
    ),
    "layer_axes_too_many": (
        lambda: init(of_layers(layer_axes=2)),
        ValueError,
        ("layer_axes", "2", "parameter b", "(3,)", "prefix"),
    ),
    # dtypes.
    "mu_dtype_int": (
        lambda: zoo.lion(1e-3, mu_dtype=jnp.int32),
        TypeError,
        ("mu_dtype", "int32", "jnp.bfloat16"),
    ),
    "mu_dtype_nonsense": (
        lambda: zoo.adax(mu_dtype="float33"),
        TypeError,
        ("mu_dtype", "'float33'", "jnp.bfloat16"),
    ),
    "mu_dtype_lamb": (lambda: lamb(1.0, mu_dtype=bool), TypeError, ("mu_dtype", "bool")),
    # AdaBound's schedule and bounds.
    "base_lr_missing": (lambda: adabound(schedule), ValueError, ("base_lr", "None", "peak")),
    "base_lr_missing_ams": (lambda: zoo.amsbound(schedule), ValueError, ("base_lr", "peak")),
    "base_lr_missing_w": (lambda: adaboundw(schedule), ValueError, ("base_lr", "peak")),
    "zero_rate_without_base": (
        lambda: adabound(0.0),
        ValueError,
        ("learning_rate", "0.0", "schedule"),
    ),
    "bounds_pair": (
        lambda: adabound(1e-3, bounds=(0.0, 1.0)),
        TypeError,
        ("bounds", "(0.0, 1.0)", "callable of the 1-based step"),
    ),
    "bounds_of_one": (
        lambda: adabound(1e-3, bounds=lambda t: 0.1),
        TypeError,
        ("bounds", "0.1", "pair"),
    ),
    "bounds_inverted": (
        lambda: adabound(1e-3, bounds=lambda t: (0.2, 0.1)),
        ValueError,
        ("bounds", "(0.2, 0.1)", "lower <= upper"),
    ),
    "bounds_negative": (
        lambda: adabound(1e-3, bounds=lambda t: (-0.2, 0.1)),
        ValueError,
        ("bounds", "(-0.2, 0.1)", "0 <= lower"),
    ),
    "bounds_nan": (
        lambda: adabound(1e-3, bounds=lambda t: (0.0, NAN)),
        ValueError,
        ("bounds", "nan", "lower <= upper"),
    ),
    # LAMB divides by one of the two.
    "no_eps": (
        lambda: lamb(1.0, eps=0.0),
        ValueError,
        ("eps is 0.0", "eps_root 0.0", "eps=1e-6"),
    ),
    # The large-batch recipe.
    "rule": (
        lambda: scaled(0.1, 256, 512, "cubic"),
        ValueError,
        ("rule", "'cubic'", "'linear', 'sqrt'"),
    ),
    "rule_of_schedule": (lambda: warmed_up(rule="log"), ValueError, ("rule", "'log'", "'sqrt'")),
    "decay_from": (
        lambda: warmed_up(decay_from="end"),
        ValueError,
        ("decay_from", "'end'", "'warmup', 'start'"),
    ),
    "batch_zero": (
        lambda: scaled(0.1, 256, 0),
        ValueError,
        ("batch must", "got 0;", "examples per step"),
    ),
    "batch_negative": (lambda: warmed_up(batch=-32), ValueError, ("batch must", "got -32;")),
    "base_batch_zero": (
        lambda: scaled(0.1, 0, 256),
        ValueError,
        ("base_batch must", "got 0;", "256"),
    ),
    "base_batch_nan": (lambda: warmed_up(base_batch=NAN), ValueError, ("base_batch", "nan")),
    "batch_text": (
        lambda: scaled(0.1, 256, "512"),
        TypeError,
        ("batch must", "'512'", "examples"),
    ),
    "rate_negative": (
        lambda: scaled(-0.1, 256, 512),
        ValueError,
        ("base_lr", "-0.1", "e.g. 0.1"),
    ),
    "warmup_too_long": (
        lambda: warmed_up(warmup_steps=10),
        ValueError,
        ("warmup_steps is 10", "total_steps 10", "fewer steps"),
    ),
    "warmup_negative": (lambda: warmed_up(warmup_steps=-1), ValueError, ("warmup_steps", "-1")),
    "warmup_float": (lambda: warmed_up(warmup_steps=1.0), TypeError, ("warmup_steps", "1.0")),
    "warmup_array": (
        lambda: warmed_up(warmup_steps=jnp.array(1)),
        TypeError,
        ("warmup_steps", "static_args=('warmup_steps',)"),
    ),
    "warmup_of_arrays": (
        lambda: warmed_up(batch=jnp.array(512)),
        TypeError,
        ("batch is the array", "warmup_steps"),
    ),
    "total_zero": (lambda: warmed_up(total_steps=0), ValueError, ("total_steps", "0", "length")),
    "total_float": (lambda: warmed_up(total_steps=1e4), TypeError, ("total_steps", "10000.0")),
    "power": (lambda: warmed_up(power=-1.0), ValueError, ("power", "-1.0", "pass 1.0")),
    "end_value": (lambda: warmed_up(end_value=-0.1), ValueError, ("end_value", "-0.1", "pass 0.0")),
    # What update needs.
    "lars_without_params": (
        lambda: update(lars(1.0)),
        ValueError,
        ("params is None", "update(gradients, state, params)"),
    ),
    "lion_without_params": (
        lambda: update(zoo.lion(1e-3, weight_decay=0.1)),
        ValueError,
        ("params is None", "lion with weight_decay=0.1"),
    ),
}


@pytest.mark.parametrize(("build", "kind", "pieces"), CASES.values(), ids=CASES.keys())
def test_a_bad_input_is_explained(build, kind, pieces):
    with pytest.raises(kind) as error:
        build()
    message = str(error.value)
    missing = [piece for piece in pieces if piece not in message]
    assert not missing, f"{missing} not in {message!r}"


# --- masks ------------------------------------------------------------------------------------

MASKS = [
    (name, argument)
    for name, entry in TABLE.items()
    for argument in ("mask", "weight_decay_mask", "trust_ratio_mask")
    if entry.takes(argument)
]


def masked(name: str, argument: str, mask: Any) -> optax.GradientTransformation:
    return TABLE[name].make(**{argument: mask, "weight_decay": 0.1})


@pytest.mark.parametrize(("name", "argument"), MASKS)
@pytest.mark.parametrize(
    "mask",
    [{"w": True}, {"w": True, "b": True, "x": True}, [True, False], lambda p: {"c": True}],
    ids=["short", "long", "list", "callable"],
)
def test_a_mask_of_another_structure_is_refused_at_init(name, argument, mask):
    with pytest.raises(ValueError, match=rf"^{argument} does not fit the parameters: .*prefix"):
        init(masked(name, argument, mask))


@pytest.mark.parametrize(("name", "argument"), MASKS)
@pytest.mark.parametrize("mask", [{"w": 1, "b": 0}, "w", {"w": "yes", "b": True}, 0.5])
def test_a_mask_of_other_things_than_bools_is_refused(name, argument, mask):
    with pytest.raises(
        TypeError, match=rf"^{argument} must hold bools, got the leaf .*True or False"
    ):
        masked(name, argument, mask)


@pytest.mark.parametrize(("name", "argument"), MASKS)
def test_a_callable_mask_of_numbers_is_refused_at_init(name, argument):
    tx = masked(name, argument, lambda params: jax.tree.map(lambda p: p.ndim, params))
    with pytest.raises(TypeError, match=rf"^{argument} must hold bools"):
        init(tx)


@pytest.mark.parametrize(("name", "argument"), MASKS)
@pytest.mark.parametrize(
    "mask",
    [True, False, {"w": True, "b": np.True_}, {"w": {"x": True, "y": False}, "b": False}],
    ids=["all", "none", "numpy", "full"],
)
def test_a_fitting_mask_is_taken(name, argument, mask):
    params = {"w": {"x": jnp.ones(2), "y": jnp.ones(2)}, "b": jnp.ones(2)}
    tx = masked(name, argument, mask)
    tx.update(params, tx.init(params), params)
