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
    "decay": ([-0.1, 1.0, NAN, None], "usual value is 0.9"),
    "eps": ([-1e-8, NAN, -INF, INF, "small"], "pass "),
    "eps_root": ([-1e-8, NAN, INF], "pass 0.0"),
    "momentum": ([-0.1, 1.0, NAN], "usual value is 0.9"),
    "trust_coefficient": ([0.0, -1e-3, NAN, INF, None], "pass e.g. 1e-3"),
    "final_lr": ([0.0, -0.1, NAN, INF, None], "pass e.g. 0.1"),
    "base_lr": ([0.0, -0.1, NAN, INF, "peak"], "pass the schedule's peak"),
    "gamma": ([0.0, -1e-3, NAN, INF], "pass e.g. 1e-3"),
    "extra_l2": ([-0.1, NAN, INF, None], "pass 0.0"),
    "c_coef": ([-0.1, NAN, INF, None], "usual value is 0.25"),
    "d_coef": ([-0.1, NAN, INF, None], "usual value is 0.25"),
    "clip_value": ([0.0, -1.0, NAN, "1"], "pass e.g. 1.0, or None"),
    "weight_decay": ([-1e-4, NAN, INF, "0.1", None], "schedule"),
    "beta": ([-0.1, 1.0, NAN, "0.9", None], "usual value is 0.9"),
    "gain_lr": ([-1e-3, NAN, INF, "1e-2"], "usual value is 1e-2"),
    "scale_lr": ([-1e-3, NAN, INF, None], "usual value is 1e-3"),
    "init_epsilon": ([-1e-4, NAN, INF, None], "1e-4"),
}
# The second moment of AdaX grows: its b2 is another number. That of Shampoo may be a sum.
ADAX_B2 = ([0.0, -1e-4, 1.0, NAN], "not Adam's b2")
SHAMPOO_B2 = ([-0.1, 1.1, 2, NAN, INF, [0.9], None], "pass e.g. 0.95, or 1 for a sum")


def number_cases():
    for name, entry in TABLE.items():
        for argument, (values, remedy) in NUMBERS.items():
            if not entry.takes(argument):
                continue
            if argument == "b2" and "adax" in name:
                values, remedy = ADAX_B2
            if argument == "b2" and "shampoo" in name:
                values, remedy = SHAMPOO_B2
            for value in values:
                yield pytest.param(entry, argument, value, remedy, id=f"{name}-{argument}={value}")


def test_no_number_is_missing():
    numbers = {
        name
        for entry in TABLE.values()
        for name, value in entry.values.items()
        if type(value) is float
    }
    missing = numbers - set(NUMBERS)
    assert not missing, f"give {missing} a line in NUMBERS: values to refuse, a piece of the remedy"


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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64, np.int32])
def test_scalars_of_any_real_dtype_are_numbers(dtype):
    zoo.lion(np.dtype(dtype).type(1))
    with pytest.raises(ValueError, match=r"^b1 must be < 1"):
        zoo.lion(1e-3, b1=np.dtype(dtype).type(1))


@pytest.mark.parametrize("value", [np.bool_(True), np.complex64(1)])
def test_scalars_of_other_dtypes_are_not(value):
    with pytest.raises(TypeError, match=r"^learning_rate must be a number"):
        zoo.lion(value)


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
amos: Any = zoo.amos
model_scales: Any = zoo.model_scale_schedules
adaboundw: Any = zoo.adaboundw
lamb: Any = zoo.lamb
lars: Any = zoo.lars
of_bounds: Any = zoo.scale_by_dynamic_bounds
of_layers: Any = zoo.scale_by_layerwise_trust_ratio
scaled: Any = zoo.scale_learning_rate
graft: Any = zoo.graft
gathered: Any = zoo.accumulate_in_momentum
gathered_in_adam: Any = zoo.accumulate_in_adam
penalised: Any = zoo.gradient_penalty
flooded: Any = zoo.flooding
of_soap: Any = zoo.scale_by_soap
soap: Any = zoo.soap
of_shampoo: Any = zoo.scale_by_shampoo
shampoo: Any = zoo.shampoo
blocks: Any = zoo.Blocks
refresh: Any = zoo.Refresh
roots: Any = zoo.Roots
root_of: Any = zoo.inverse_pth_root
planned: Any = zoo.plan_refresh
exponentiated: Any = zoo.exponentiated_gradient
of_gains: Any = zoo.scale_by_exponentiated_gains
egdd: Any = zoo.egdd
SGD = optax.identity()


def with_drift() -> zoo.Refresh:
    """However Shampoo takes it."""
    made = zoo.Refresh()
    object.__setattr__(made, "drift_every", 5)
    return made


def warmed_up(**arguments: Any) -> optax.Schedule:
    return zoo.large_batch_schedule(
        **{"base_lr": 0.1, "base_batch": 256, "batch": 512, "total_steps": 10, **arguments}
    )


def sized(shape: Any) -> Any:
    """Amos with this slot for each parameter."""
    return amos(0.1, lambda name, shape: 0.5, lambda name, _: shape)


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
    # How parameters are cut.
    "size_one": (lambda: blocks(size=1), ValueError, ("size must", "got 1;", "e.g. 512")),
    "size_float": (lambda: blocks(size=2.5), TypeError, ("size must", "2.5", "e.g. 512")),
    "size_bool": (lambda: blocks(size=True), TypeError, ("size must", "True")),
    "size_none": (lambda: blocks(size=None), TypeError, ("size must", "None", "e.g. 512")),
    "size_traced": (
        lambda: jax.jit(lambda n: blocks(size=n).size)(4),
        TypeError,
        ("size must", "static_args=('size',)"),
    ),
    "merge_below_zero": (
        lambda: blocks(merge_below=0),
        ValueError,
        ("merge_below", "got 0;", "or None"),
    ),
    "merge_below_array": (
        lambda: blocks(merge_below=jnp.array(4)),
        TypeError,
        ("merge_below", "static_args=('merge_below',)"),
    ),
    "skip_above_zero": (lambda: blocks(skip_above=0), ValueError, ("skip_above", "0", "8192")),
    "skip_above_none": (lambda: blocks(skip_above=None), TypeError, ("skip_above", "None", "8192")),
    "one_sided_above": (
        lambda: blocks(one_sided_above=-1),
        ValueError,
        ("one_sided_above", "-1", "or None"),
    ),
    # When roots are renewed.
    "every_zero": (lambda: refresh(every=0), ValueError, ("every must", "got 0;", "e.g. 10")),
    "every_float": (lambda: refresh(every=10.0), TypeError, ("every must", "10.0", "e.g. 10")),
    "every_traced": (
        lambda: jax.jit(lambda n: refresh(every=n).every)(4),
        TypeError,
        ("every must", "static_args=('every',)"),
    ),
    "delay_above_every": (
        lambda: refresh(every=5, delay=6),
        ValueError,
        ("delay", "got 6 ", "every=5", "lower delay or raise every"),
    ),
    "delay_negative": (lambda: refresh(delay=-1), ValueError, ("delay", "-1", "None, or 0")),
    "delay_float": (lambda: refresh(delay=1.0), TypeError, ("delay", "1.0", "None, or 0")),
    "delay_array": (
        lambda: refresh(delay=jnp.array(1)),
        TypeError,
        ("delay", "static_args=('delay',)"),
    ),
    "start_zero": (lambda: refresh(start=0), ValueError, ("start", "got 0;", "None, or 1")),
    "start_above_every": (
        lambda: refresh(every=5, start=6),
        ValueError,
        ("start", "got 6 ", "every=5", "lower start or raise every"),
    ),
    "start_above_default": (lambda: refresh(start=11), ValueError, ("start", "11", "every=10")),
    "statistics_every": (
        lambda: refresh(statistics_every=0),
        ValueError,
        ("statistics_every", "got 0;", "pass 1"),
    ),
    "interval_too_long": (
        lambda: refresh(every=2**29, statistics_every=3),
        ValueError,
        ("every is 536870912", "statistics_every 3", "shorter"),
    ),
    "drift_every": (
        lambda: refresh(drift_every=0),
        ValueError,
        ("drift_every", "got 0;", "None, or e.g. 10"),
    ),
    # How they are computed.
    "roots_method": (
        lambda: roots(method="newton"),
        ValueError,
        ("method", "'newton'", "'schur_newton', 'eigh'"),
    ),
    "roots_method_none": (lambda: roots(method=None), ValueError, ("method", "None", "'eigh'")),
    "roots_on": (lambda: roots(on="gpu"), ValueError, ("on must", "'gpu'", "'host', 'device'")),
    "roots_ridge": (lambda: roots(ridge=-1e-4), ValueError, ("ridge", "-0.0001", "e.g. 1e-4")),
    "roots_ridge_nan": (lambda: roots(ridge=NAN), ValueError, ("ridge", "nan", "e.g. 1e-4")),
    "roots_tolerance": (
        lambda: roots(on="device", tolerance=0.0),
        ValueError,
        ("tolerance", "0.0", "e.g. 0.1"),
    ),
    "roots_tolerance_coarse": (
        lambda: roots(on="device", tolerance=0.5),
        ValueError,
        ("tolerance", "at most 0.1", "0.5", "or None"),
    ),
    "roots_tolerance_host": (
        lambda: roots(tolerance=0.1),
        ValueError,
        ("tolerance", "on the device", "on='host'", "or None"),
    ),
    "roots_tolerance_ridge": (
        lambda: roots(on="device", tolerance=0.1, ridge=1e-6),
        ValueError,
        ("tolerance", "ridge=1e-06", "at least 2e-5", "or None"),
    ),
    "roots_tolerance_eigh": (
        lambda: roots("eigh", on="device", tolerance=0.1),
        ValueError,
        ("tolerance", "schur_newton", "'eigh'", "or None"),
    ),
    "roots_tolerance_array": (
        lambda: roots(on="device", tolerance=jnp.float32(0.1)),
        TypeError,
        ("tolerance", "Python number", "pass a float"),
    ),
    "roots_ridge_text": (lambda: roots(ridge="small"), TypeError, ("ridge", "'small'", "1e-4")),
    "roots_ridge_traced": (
        lambda: jax.jit(lambda r: roots(ridge=r).ridge)(1e-4),
        TypeError,
        ("ridge", "float", "static_args"),
    ),
    "roots_dtype": (lambda: roots(dtype=int), TypeError, ("dtype", "int", "jnp.bfloat16")),
    "roots_dtype_complex": (
        lambda: roots(dtype=jnp.complex64),
        TypeError,
        ("dtype", "complex64", "jnp.bfloat16"),
    ),
    "p_zero": (lambda: root_of(jnp.eye(2), 0), ValueError, ("p must", "got 0;", "e.g. 2")),
    "p_negative": (lambda: root_of(jnp.eye(2), -2), ValueError, ("p must", "-2", "e.g. 2")),
    "p_float": (lambda: root_of(jnp.eye(2), 2.0), TypeError, ("p must", "2.0", "e.g. 2")),
    "p_traced": (
        lambda: jax.jit(lambda p: root_of(jnp.eye(2), p))(2),
        TypeError,
        ("p must", "static_args=('p',)"),
    ),
    "root_of_vector": (lambda: root_of(jnp.ones(3), 2), ValueError, ("matrix", "(3,)", "square")),
    "root_of_oblong": (
        lambda: root_of(jnp.ones((4, 2, 3)), 2),
        ValueError,
        ("matrix", "(4, 2, 3)", "square"),
    ),
    "root_of_ints": (
        lambda: root_of(jnp.eye(2, dtype=int), 2),
        TypeError,
        ("matrix", "int32", "cast it"),
    ),
    "root_of_complex": (
        lambda: root_of(jnp.eye(2, dtype=complex), 2),
        TypeError,
        ("matrix", "complex64", "floating-point"),
    ),
    "root_method": (
        lambda: root_of(jnp.eye(2), 2, method="svd"),
        ValueError,
        ("method", "'svd'", "'schur_newton', 'eigh'"),
    ),
    "root_ridge": (
        lambda: root_of(jnp.eye(2), 2, ridge=-1e-3),
        ValueError,
        ("ridge", "-0.001", "e.g. 1e-6"),
    ),
    "root_ridge_inf": (
        lambda: root_of(jnp.eye(2), 2, ridge=INF),
        ValueError,
        ("ridge", "inf", "e.g. 1e-6"),
    ),
    "root_tolerance": (
        lambda: root_of(jnp.eye(2), 2, tolerance=0.0),
        ValueError,
        ("tolerance", "0.0", "1e-7"),
    ),
    "root_tolerance_traced": (
        lambda: jax.jit(lambda x: root_of(jnp.eye(2), 2, tolerance=x))(1e-6),
        TypeError,
        ("tolerance", "Python number", "1e-7"),
    ),
    "root_iterations": (
        lambda: root_of(jnp.eye(2), 2, max_iterations=0),
        ValueError,
        ("max_iterations", "got 0;", "None"),
    ),
    "root_iterations_array": (
        lambda: root_of(jnp.eye(2), 2, max_iterations=jnp.array(3)),
        TypeError,
        ("max_iterations", "static_args=('max_iterations',)"),
    ),
    # Amos and its scales.
    "eta_number": (lambda: amos(0.1, 0.5), TypeError, ("eta_fn", "0.5", "static_args=('eta_fn',)")),
    "eta_zero": (
        lambda: init(amos(0.1, lambda name, shape: float(name != ("b",)))),
        ValueError,
        ("eta_fn", "parameter b", "> 0.0, got 0.0", "magnitude"),
    ),
    "eta_none": (
        lambda: amos(0.1, lambda name, shape: None).init({"a": [jnp.ones(2)]}),
        TypeError,
        ("eta_fn", "parameter a/0", "got None", "magnitude"),
    ),
    "slots_tuple": (
        lambda: amos(0.1, zoo.flax_scales, (1, 3)),
        TypeError,
        ("shape_fn", "(1, 3)", "static_args=('shape_fn',)"),
    ),
    "slot_too_long": (
        lambda: init(sized((2, 3))),
        ValueError,
        ("shape_fn gave (2, 3)", "parameter b of shape (3,)", "1 for each axis"),
    ),
    "slot_too_wide": (
        lambda: sized((4,)).init({"x": {"w": jnp.ones((2, 1))}}),
        ValueError,
        ("shape_fn gave (4,)", "parameter x/w of shape (2, 1)", "()"),
    ),
    "slot_number": (lambda: init(sized(3)), TypeError, ("shape_fn gave 3", "parameter b", "()")),
    "slot_float": (lambda: init(sized((1.0,))), TypeError, ("shape_fn gave (1.0,)", "ints")),
    "clip_complex": (
        lambda: amos(0.1, lambda name, shape: 0.5, clip_value=1.0).init(jnp.ones(2, complex)),
        TypeError,
        ("complex64", "clip_value", "None"),
    ),
    "amos_without_params": (
        lambda: update(amos(0.1, lambda name, shape: 0.5)),
        ValueError,
        ("params is None", "Amos"),
    ),
    "flax_unknown": (
        lambda: amos(0.1, zoo.flax_scales).init({"lora": {"a": jnp.ones((2, 3))}}),
        ValueError,
        ("flax_scales", "lora/a", "(2, 3)", "eta_fn"),
    ),
    "scale_zero": (lambda: model_scales(0.0), ValueError, ("scale", "got 0.0", "e.g. 0.02")),
    "relative_step_one": (
        lambda: model_scales(0.02, relative_step=1.0),
        ValueError,
        ("relative_step", "got 1.0", "1e-3"),
    ),
    "half_at_once": (
        lambda: model_scales(0.02, steps_to_half=0),
        ValueError,
        ("steps_to_half", "got 0", "None"),
    ),
    "update_rms": (lambda: model_scales(0.02, update_rms=0), ValueError, ("update_rms", "1.0")),
    "trust_ratio_array": (
        lambda: model_scales(0.02, trust_ratio=1),
        TypeError,
        ("trust_ratio", "got 1", "True or False"),
    ),
    # SOAP.
    "soap_method": (
        lambda: soap(0.1, roots=zoo.Roots()),
        ValueError,
        ("roots.method must be", "'schur_newton'", 'Roots(method="eigh")'),
    ),
    "soap_drift": (
        lambda: of_soap(refresh=with_drift()),
        ValueError,
        ("refresh.drift_every must be None", "got 5:", "smaller `every`"),
    ),
    "soap_blocks": (lambda: of_soap(blocks=512), TypeError, ("blocks", "512", "Blocks()")),
    "soap_refresh": (lambda: soap(0.1, refresh=10), TypeError, ("refresh", "10", "Refresh()")),
    "soap_roots": (lambda: soap(0.1, roots="eigh"), TypeError, ("roots", "'eigh'", "Roots()")),
    "soap_mesh": (lambda: of_soap(mesh="mesh"), TypeError, ("mesh", "'mesh'", "leave it out")),
    "soap_nesterov": (
        lambda: of_soap(nesterov=None),
        TypeError,
        ("nesterov", "None", "static_args=('nesterov',)"),
    ),
    "soap_eps": (lambda: soap(0.1, eps=0.0), ValueError, ("eps", "0.0", "e.g. 1e-8")),
    "soap_b2_sum": (lambda: of_soap(b2=1), ValueError, ("b2 must be < 1.0", "got 1;", "0.95")),
    "soap_layers": (
        lambda: init(soap(0.1, layer_axes=2)),
        ValueError,
        ("layer_axes is 2", "parameter b", "at most 1"),
    ),
    "soap_complex": (
        lambda: soap(0.1).init({"w": jnp.ones((2, 2), complex)}),
        TypeError,
        ("complex64", "soap", "split_real_and_imaginary"),
    ),
    # Shampoo.
    "exponent_zero": (lambda: of_shampoo(exponent=0), ValueError, ("exponent", "got 0;", "e.g. 2")),
    "exponent_float": (lambda: shampoo(0.1, exponent=2.0), TypeError, ("exponent", "2.0", "2")),
    "exponent_injected": (
        lambda: init(optax.inject_hyperparams(zoo.scale_by_shampoo)(exponent=2)),
        TypeError,
        ("exponent", "static_args=('exponent',)"),
    ),
    "shampoo_layers_injected": (
        lambda: init(optax.inject_hyperparams(zoo.shampoo)(0.1, layer_axes=1)),
        TypeError,
        ("layer_axes", "static_args=('layer_axes',)"),
    ),
    "shampoo_layers": (
        lambda: init(shampoo(0.1, layer_axes=2)),
        ValueError,
        ("layer_axes", "parameter b", "(3,)"),
    ),
    "blocks_int": (lambda: of_shampoo(blocks=512), TypeError, ("blocks", "512", "Blocks()")),
    "refresh_int": (lambda: shampoo(0.1, refresh=10), TypeError, ("refresh", "10", "Refresh()")),
    "roots_text": (lambda: shampoo(0.1, roots="eigh"), TypeError, ("roots", "'eigh'", "Roots()")),
    "group_class": (lambda: of_shampoo(refresh=zoo.Refresh), TypeError, ("refresh", "Refresh()")),
    "mesh": (lambda: of_shampoo(mesh="mesh"), TypeError, ("mesh", "'mesh'", "leave it out")),
    "graft_to_text": (
        lambda: shampoo(0.1, graft_to="sgd"),
        ValueError,
        ("graft_to", "'sgd'", "optax.identity()"),
    ),
    "graft_to_number": (
        lambda: of_shampoo(graft_to=1.0),
        TypeError,
        ("graft_to", "1.0", "optax.identity()"),
    ),
    "graft_to_factory": (
        lambda: of_shampoo(graft_to=optax.adam),
        TypeError,
        ("graft_to", "adam", "optax.identity()"),
    ),
    "adams_norm_of_a_sum": (
        lambda: shampoo(0.1, b2=1.0),
        ValueError,
        ("graft_to", "b2 is 1", "scale_by_rss"),
    ),
    "shampoo_nesterov": (
        lambda: of_shampoo(nesterov=None),
        TypeError,
        ("nesterov", "None", "static_args=('nesterov',)"),
    ),
    "shampoo_eps": (lambda: shampoo(0.1, eps=0.0), ValueError, ("eps", "0.0", "e.g. 1e-8")),
    "shampoo_complex": (
        lambda: shampoo(0.1).init({"w": jnp.ones((2, 2), complex)}),
        TypeError,
        ("params['w']", "complex64", "split_real_and_imaginary"),
    ),
    "shampoo_ints": (
        lambda: shampoo(0.1).init({"w": jnp.ones((2, 2), int)}),
        TypeError,
        ("params['w']", "int32", "optax.masked"),
    ),
    # Grafting.
    "magnitude_text": (
        lambda: graft("adam", SGD),
        TypeError,
        ("magnitude", "'adam'", "optax.identity()"),
    ),
    "direction_none": (
        lambda: graft(SGD, None),
        TypeError,
        ("direction", "None", "optax.identity()"),
    ),
    "direction_factory": (lambda: graft(SGD, optax.adam), TypeError, ("direction", "adam", "e.g.")),
    "where_numbers": (
        lambda: graft(SGD, SGD, where={"w": 1}),
        TypeError,
        ("where", "the leaf 1", "True or False"),
    ),
    "where_prefix": (
        lambda: init(graft(SGD, SGD, where={"w": True})),
        ValueError,
        ("where", "{'w': *}", "prefix"),
    ),
    "where_callable": (
        lambda: init(graft(SGD, SGD, where=lambda p: jax.tree.map(jnp.ndim, p))),
        TypeError,
        ("where must hold bools", "True or False"),
    ),
    "graft_layers": (
        lambda: init(graft(SGD, SGD, layer_axes=2)),
        ValueError,
        ("layer_axes", "parameter b", "(3,)"),
    ),
    "graft_ints": (
        lambda: graft(SGD, SGD).init({"w": jnp.ones(2, int)}),
        TypeError,
        ("params['w']", "int32", "graft"),
    ),
    # Accumulation.
    "every_k_zero": (lambda: gathered(0), ValueError, ("every_k", "got 0;", "e.g. 4")),
    "every_k_float": (lambda: gathered(4.0), TypeError, ("every_k", "4.0", "e.g. 4")),
    "every_k_bool": (lambda: gathered_in_adam(True), TypeError, ("every_k", "True", "e.g. 4")),
    "every_k_schedule": (lambda: gathered(schedule), TypeError, ("every_k", "schedule", "e.g. 4")),
    "every_k_float_array": (
        lambda: jax.jit(lambda k: init(gathered(k)))(4.0),
        TypeError,
        ("every_k", "float", "e.g. 4"),
    ),
    "every_k_vector": (
        lambda: gathered_in_adam(jnp.array([4, 4])),
        TypeError,
        ("every_k", "[4, 4]", "one integer"),
    ),
    "gathering_nesterov": (
        lambda: gathered(4, nesterov=1),
        TypeError,
        ("nesterov", "1", "static_args=('nesterov',)"),
    ),
    "accumulator_dtype": (
        lambda: gathered(4, accumulator_dtype=int),
        TypeError,
        ("accumulator_dtype", "int", "jnp.bfloat16"),
    ),
    "accumulator_dtype_in_adam": (
        lambda: gathered_in_adam(4, accumulator_dtype="float33"),
        TypeError,
        ("accumulator_dtype", "'float33'", "jnp.bfloat16"),
    ),
    "then_number": (lambda: gathered(4, then=0.1), TypeError, ("then", "0.1", "identity()")),
    "then_factory": (
        lambda: gathered_in_adam(4, then=optax.sgd),
        TypeError,
        ("then", "sgd", "identity()"),
    ),
    # Losses.
    "penalised_number": (lambda: penalised(1.0, 0.1), TypeError, ("fun", "1.0", "callable")),
    "flooded_number": (lambda: flooded(1.0, 0.1), TypeError, ("fun", "1.0", "callable")),
    "strength_negative": (
        lambda: penalised(jnp.sum, -0.1),
        ValueError,
        ("strength", "-0.1", "e.g. 0.01"),
    ),
    "strength_nan": (lambda: penalised(jnp.sum, NAN), ValueError, ("strength", "nan", "0.01")),
    "strength_none": (lambda: penalised(jnp.sum, None), TypeError, ("strength", "None", "0.01")),
    "level_nan": (lambda: flooded(jnp.sum, NAN), ValueError, ("level", "nan", "0.05")),
    "level_inf": (lambda: flooded(jnp.sum, INF), ValueError, ("level", "inf", "0.05")),
    "level_text": (lambda: flooded(jnp.sum, "low"), TypeError, ("level", "'low'", "0.05")),
    "form": (
        lambda: penalised(jnp.sum, 0.1, form="max"),
        ValueError,
        ("form", "'max'", "'mean', 'sum'"),
    ),
    "difference_zero": (
        lambda: penalised(jnp.sum, 0.1, finite_difference=0.0),
        ValueError,
        ("finite_difference", "0.0", "None"),
    ),
    "difference_flag": (
        lambda: penalised(jnp.sum, 0.1, finite_difference=True),
        TypeError,
        ("finite_difference", "True", "None"),
    ),
    "argnums_float": (
        lambda: penalised(jnp.sum, 0.1, argnums=0.5),
        TypeError,
        ("argnums", "0.5", "pass e.g. 0"),
    ),
    "argnums_none_given": (
        lambda: penalised(jnp.sum, 0.1, argnums=()),
        TypeError,
        ("argnums", "()", "pass e.g. 0"),
    ),
    "argnums_beyond": (
        lambda: penalised(jnp.sum, 0.1, argnums=1)(jnp.ones(2)),
        ValueError,
        ("argnums", "(1,)", "1 positional", "by position"),
    ),
    "argnums_twice": (
        lambda: penalised(jnp.vdot, 0.1, argnums=(1, -1))(jnp.ones(2), jnp.ones(2)),
        ValueError,
        ("argnums", "(1, -1)", "once"),
    ),
    "penalised_complex": (
        lambda: penalised(lambda p: jnp.abs(p["w"]), 0.1)({"w": jnp.ones((), complex)}),
        TypeError,
        ("argument 0['w']", "complex64", "real"),
    ),
    "penalised_ints": (
        lambda: penalised(lambda x, n: x * n, 0.1, argnums=1)(1.0, 2),
        TypeError,
        ("argument 1", "int32", "floating-point"),
    ),
    "penalised_vector": (
        lambda: penalised(lambda x: x, 0.1)(jnp.ones(3)),
        ValueError,
        ("fun", "(3,)", "mean"),
    ),
    "flooded_vector": (
        lambda: flooded(lambda x: x, 0.1)(jnp.ones(3)),
        ValueError,
        ("fun", "(3,)", "mean"),
    ),
    "flooded_complex": (
        lambda: flooded(lambda x: x, 0.1)(jnp.ones((), complex)),
        TypeError,
        ("fun", "complex64", "jnp.abs"),
    ),
    "flooded_int": (lambda: flooded(len, 0.1)([1]), TypeError, ("fun", "int", "cast")),
    "flooded_triple": (
        lambda: flooded(lambda x: (x, x, x), 0.1)(1.0),
        TypeError,
        ("fun", "(1.0, 1.0, 1.0)", "pair"),
    ),
    "penalised_none": (
        lambda: penalised(lambda x: None, 0.1)(1.0),
        TypeError,
        ("fun", "None", "pair"),
    ),
    # The plan.
    "step_seconds_zero": (
        lambda: planned(PARAMS, 0.0),
        ValueError,
        ("step_seconds", "0.0", "e.g. 0.1"),
    ),
    "step_seconds_inf": (lambda: planned(PARAMS, INF), ValueError, ("step_seconds", "inf", "0.1")),
    "step_seconds_nan": (lambda: planned(PARAMS, NAN), ValueError, ("step_seconds", "nan", "0.1")),
    "step_seconds_none": (
        lambda: planned(PARAMS, None),
        TypeError,
        ("step_seconds", "None", "e.g. 0.1"),
    ),
    "step_seconds_traced": (
        lambda: jax.jit(lambda s: planned(PARAMS, s).root_seconds)(0.1),
        TypeError,
        ("step_seconds", "jit"),
    ),
    "planned_roots": (lambda: planned(PARAMS, 0.1, roots="eigh"), TypeError, ("roots", "'eigh'")),
    "planned_device": (
        lambda: planned(PARAMS, 0.1, roots=zoo.Roots(on="device")),
        ValueError,
        ("roots", "on='device'", "Refresh(every=...)"),
    ),
    "planned_blocks": (
        lambda: planned(PARAMS, 0.1, blocks=512),
        TypeError,
        ("blocks", "512", "Blocks()"),
    ),
    # Exponentiated gradients and gains.
    "domain": (
        lambda: exponentiated(0.1, domain="negative"),
        ValueError,
        ("domain", "'negative'", "'positive', 'simplex', 'signed'"),
    ),
    "axis_float": (
        lambda: exponentiated(0.1, domain="simplex", axis=1.0),
        TypeError,
        ("axis must", "1.0", "sums to 1"),
    ),
    "axis_traced": (
        lambda: init(optax.inject_hyperparams(exponentiated)(0.1, domain="simplex", axis=0)),
        TypeError,
        ("axis must", "static_args=('axis',)"),
    ),
    "axis_without_simplex": (
        lambda: exponentiated(0.1, axis=0),
        ValueError,
        ("axis is 0", "domain='positive'", "leave it out"),
    ),
    "exponentiated_without_params": (
        lambda: update(exponentiated(0.1)),
        ValueError,
        ("params is None", "exponentiated_gradient", "update(gradients, state, params)"),
    ),
    "scope": (lambda: egdd(0.1, scope="tree"), ValueError, ("scope", "'tree'", "'leaf', 'global'")),
    "use_signs": (
        lambda: egdd(0.1, use_signs=1),
        TypeError,
        ("use_signs", "1", "static_args=('use_signs',)"),
    ),
    "use_directions": (
        lambda: of_gains(use_directions=None),
        TypeError,
        ("use_directions", "None", "True or False"),
    ),
    "gain_bounds_number": (
        lambda: egdd(0.1, gain_bounds=100.0),
        ValueError,
        ("gain_bounds", "100.0", "pair", "0 < lo <= 1 <= hi"),
    ),
    "gain_bounds_zero": (
        lambda: of_gains(gain_bounds=(0.0, 2.0)),
        ValueError,
        ("gain_bounds", "0.0", "0 < lo"),
    ),
    "scale_bounds_without_one": (
        lambda: egdd(0.1, scale_bounds=(2.0, 10.0)),
        ValueError,
        ("scale_bounds", "(2.0, 10.0)", "starts at 1"),
    ),
    "scale_bounds_inf": (
        lambda: egdd(0.1, scale_bounds=(0.5, INF)),
        ValueError,
        ("scale_bounds", "inf", "lo <= 1"),
    ),
    # A report needs numbers.
    "inspect_in_jit": (
        lambda: jax.jit(lambda s: zoo.inspect(s) and s)(shampoo(0.1).init(PARAMS)),
        TypeError,
        ("opt_state", "traced", "outside jit"),
    ),
    # What update needs.
    "shampoo_without_params": (
        lambda: jax.eval_shape(lambda: update(shampoo(0.1, weight_decay=0.1))),
        ValueError,
        ("params is None", "shampoo with weight_decay=0.1"),
    ),
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


def test_a_mask_of_another_structure_is_refused_without_decay_too():
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"^mask does not fit the parameters"):
        zoo.lion(0.1, weight_decay=0.0, mask={"w": True}).init(params)


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
    jax.eval_shape(lambda: tx.update(params, tx.init(params), params))
