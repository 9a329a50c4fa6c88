# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
"""Every public name as a user's file has it, which pyright reads in strict mode.

There a name whose type is partly unknown is an error at its import. Optax has no stubs, and some of
JAX's own functions are partly unknown: those two rules are off. The tests only trace what they
build; what it computes is other tests' business.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_type

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_zoo
from optax_zoo import (
    AccumulateInAdamState,
    AccumulateInMomentumState,
    AdaxState,
    AmosState,
    Blocks,
    DynamicBoundsState,
    ExponentiatedGainsState,
    ExponentiatedGradientState,
    GraftState,
    InverseRootInfo,
    LayerwiseTrustRatioState,
    ModelScaleSchedules,
    OptimizerInfo,
    Recommendation,
    Refresh,
    RefreshPlan,
    Roots,
    ShampooState,
    SignMomentumState,
    SoapState,
    accumulate_in_adam,
    accumulate_in_momentum,
    adabound,
    adaboundw,
    adax,
    adaxw,
    amos,
    amsbound,
    create,
    egdd,
    exponentiated_gradient,
    flax_scales,
    flax_slots,
    flooding,
    gradient_penalty,
    graft,
    guided_search,
    info,
    inspect,
    inverse_pth_root,
    lamb,
    large_batch_schedule,
    lars,
    lion,
    list_optimizers,
    model_scale_schedules,
    plan_refresh,
    policy_gradient,
    reshard,
    scale_by_adax,
    scale_by_amos,
    scale_by_dynamic_bounds,
    scale_by_exponentiated_gains,
    scale_by_layerwise_trust_ratio,
    scale_by_shampoo,
    scale_by_sign_momentum,
    scale_by_soap,
    scale_learning_rate,
    shampoo,
    soap,
    state_bytes,
    zeroth_order_grad,
)

Transformation = optax.GradientTransformationExtraArgs
Params = dict[str, jax.Array]
PARAMS: Params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([0.5, 0.5])}
KEY = jax.random.key(0)
COSINE = optax.schedules.cosine_decay_schedule(1e-2, 100)
BLOCKS = Blocks(size=64, merge_below=1, skip_above=4096, one_sided_above=None)
REFRESH = Refresh(every=2, delay=0, start=1, statistics_every=1, drift_every=None)
ROOTS = Roots(method="eigh", ridge=1e-4, on="host", dtype=jnp.float32, tolerance=None)


def matrices(params: Params) -> dict[str, bool]:
    return {name: leaf.ndim > 1 for name, leaf in params.items()}


def scales(name: tuple[str, ...], shape: tuple[int, ...]) -> float:
    return flax_scales(("bias",) if name[-1] == "b" else ("kernel",), shape)


def slots(name: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return flax_slots(("bias",) if name[-1] == "b" else ("kernel",), shape)


def axes(path: tuple[str, ...], leaf: jax.Array) -> int:
    return int("stacked" in path and leaf.ndim > 1)


def optimizers(
    rate: optax.ScalarOrSchedule, number: float | jax.Array
) -> dict[str, Transformation]:
    """Each with its rate and another number, which may be schedules and traced arrays."""
    return {
        "adabound": adabound(rate, number, base_lr=1e-2, weight_decay=COSINE, mask=matrices),
        "adaboundw": adaboundw(rate, base_lr=1e-2, weight_decay=number, amsbound=True),
        "adax": adax(rate, mu_dtype=jnp.bfloat16, weight_decay=number),
        "adaxw": adaxw(rate, b1=number, mask={"w": True, "b": False}),
        "amos": amos(rate, scales, slots, extra_l2=number, momentum=0.9, clip_value=1.0),
        "amsbound": amsbound(rate, base_lr=1e-2, bounds=lambda step: (0.0, 1 / step)),
        "egdd": egdd(rate, number, scope="global", gain_bounds=(0.1, 10.0)),
        "exponentiated_gradient": exponentiated_gradient(rate, domain="signed"),
        "lamb": lamb(rate, weight_decay=number, mask=matrices, layer_axes=axes),
        "lars": lars(rate, number, matrices, trust_ratio_mask=matrices, trust_clip=(0, 10)),
        "lion": lion(rate, b2=number, weight_decay=COSINE, mask=matrices),
        "shampoo": shampoo(
            rate, weight_decay=number, layer_axes=0, blocks=BLOCKS, refresh=REFRESH, roots=ROOTS
        ),
        "soap": soap(rate, eps=number, blocks=BLOCKS, refresh=REFRESH, roots=ROOTS),
    }


# Each link and the class of its state.
LINKS: list[tuple[Transformation, type[Any]]] = [
    (
        accumulate_in_adam(2, then=optax.scale_by_learning_rate(COSINE)),
        AccumulateInAdamState,
    ),
    (accumulate_in_momentum(2, nesterov=True), AccumulateInMomentumState),
    (exponentiated_gradient(1e-2, domain="positive", axis=None), ExponentiatedGradientState),
    (graft(optax.identity(), scale_by_sign_momentum(), layer_axes=axes), GraftState),
    (scale_by_adax(), AdaxState),
    (scale_by_amos(1e-2, scales), AmosState),
    (scale_by_dynamic_bounds(1e-2), DynamicBoundsState),
    (scale_by_exponentiated_gains(scope="leaf"), ExponentiatedGainsState),
    (scale_by_layerwise_trust_ratio(clip=(0, 10)), LayerwiseTrustRatioState),
    (scale_by_shampoo(graft_to="adam", refresh=REFRESH), ShampooState),
    (scale_by_sign_momentum(0.95, 0.98), SignMomentumState),
    (scale_by_soap(refresh=REFRESH), SoapState),
]


def step(tx: optax.GradientTransformation) -> tuple[optax.Params, optax.OptState]:
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    return optax.apply_updates(PARAMS, updates), state


def test_no_public_name_is_missing():
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports if node.module == "optax_zoo" for alias in node.names}
    missing = set(optax_zoo.__all__) - names
    assert not missing, f"use {missing} in this file as a user would"


@pytest.mark.parametrize("name", list_optimizers())
def test_an_optimizer_takes_numbers_schedules_and_traced_arrays(name: str):
    assert name in optimizers(1e-2, 0.5), f"add {name} to `optimizers`"

    def run(rate: optax.ScalarOrSchedule, number: float | jax.Array) -> optax.Params:
        return step(optax.chain(optax.clip(1.0), optimizers(rate, number)[name]))[0]

    numbers = jax.eval_shape(lambda: run(1e-2, 0.5))
    assert jax.eval_shape(lambda: run(COSINE, 0.5)) == numbers
    assert jax.eval_shape(run, 1e-2, 0.5) == numbers


@pytest.mark.parametrize(("tx", "kind"), LINKS, ids=[kind.__name__ for _, kind in LINKS])
def test_a_link_has_its_state(tx: Transformation, kind: type[Any]):
    chain = optax.chain(tx, optax.scale_by_learning_rate(1e-2))
    _, (state, _) = jax.eval_shape(lambda: step(chain))
    assert isinstance(state, kind)


def test_a_state_is_inspected_and_counted():
    _, state = step(create("lamb", COSINE, weight_decay=0.1))
    report = assert_type(inspect(state, PARAMS), dict[str, dict[str, float]])
    assert report["w"]["trust_ratio"] > 0
    assert assert_type(state_bytes(lion(1e-4), PARAMS), int) == 24
    momentum: SignMomentumState = scale_by_sign_momentum().init(PARAMS)  # type: ignore
    assert_type(momentum.mu, optax.Updates)


def test_what_is_known_of_an_optimizer():
    assert_type(list_optimizers("l*"), list[str])
    entry = assert_type(info("lion"), OptimizerInfo)
    assert_type(entry.factory(1e-4), Transformation)
    assert_type(entry.defaults, Mapping[str, Any])
    assert_type(entry.needs_params, Literal["always", "with decay", "never"])
    decay = assert_type(entry.weight_decay, Recommendation | None)
    assert decay is not None
    assert_type((decay.low, decay.times, decay.source), tuple[float, str | None, str])


def test_schedules():
    assert_type(scale_learning_rate(0.1, 256, 8192, rule="sqrt"), Any)
    schedule = large_batch_schedule(0.1, 256, 8192, total_steps=100, warmup_steps=10, power=2.0)
    rule = assert_type(model_scale_schedules(768**-0.5, steps_to_half=1000), ModelScaleSchedules)
    for rate in (assert_type(schedule, optax.Schedule), rule.learning_rate):
        assert_type(lars(rate, weight_decay=rule.weight_decay), Transformation)


@pytest.mark.slow
def test_roots_and_when_they_are_renewed():
    root, quality = inverse_pth_root(PARAMS["w"] @ PARAMS["w"].T, 2, method="eigh", ridge=1e-6)
    assert_type((root, quality), tuple[jax.Array, InverseRootInfo])
    assert_type((quality.residual, quality.iterations), tuple[jax.Array, jax.Array])
    plan = assert_type(plan_refresh(PARAMS, step_seconds=0.1, blocks=BLOCKS), RefreshPlan)
    assert_type(shampoo(COSINE, refresh=plan.refresh, roots=plan.roots), Transformation)
    assert plan.explanation
    divided = soap(COSINE, mesh=jax.make_mesh((1,), ("data",)), mesh_axes="data")
    assert_type(reshard(divided.init(PARAMS), divided.init(PARAMS)), Any)


def loss(params: Params, scale: float = 1.0) -> jax.Array:
    return scale * sum((jnp.sum(leaf**2) for leaf in params.values()), jnp.array(0.0))


def draw(params: Params, key: jax.Array) -> jax.Array:
    return params["b"] + jax.random.normal(key, (2,))


def log_prob(params: Params, y: jax.Array) -> jax.Array:
    return -jnp.sum((y - params["b"]) ** 2) / 2


@pytest.mark.slow
def test_losses_and_estimates_stand_where_jax_has_its_own():
    penalised = gradient_penalty(flooding(loss, level=0.1), 0.1, argnums=0, form="sum")
    assert jax.eval_shape(jax.grad(penalised), PARAMS, 2.0)
    estimates = [
        zeroth_order_grad(loss, sigma=0.1, num_samples=4, kind="ranks", batch_size=2),
        guided_search(loss, loss, alpha=0.1, sigma="uniform", num_samples=4, clip_norm=None),
        policy_gradient(draw, log_prob, jnp.sum, num_samples=4, baseline="mean"),
    ]
    for estimate in estimates:
        value, gradient = jax.eval_shape(estimate, PARAMS, KEY)
        assert value.shape == ()
        assert jax.tree.structure(gradient) == jax.tree.structure(PARAMS)
