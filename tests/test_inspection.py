"""inspect: what a state knows of its layers, wherever it is wrapped."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_zoo as zoo
import references
from helpers import random_tree, slow, some, train

QUANTITIES = {"residual", "age", "iterations", "condition", "failures", "skipped"}
SHAPES = {"w": (4, 4), "k": (4, 3), "b": (4,)}
EVERY, DELAY = 4, 2


@functools.cache
def optimizer(method: str = "schur_newton") -> optax.GradientTransformationExtraArgs:
    return zoo.shampoo(
        0.01,
        refresh=zoo.Refresh(every=EVERY, delay=DELAY, start=EVERY),
        roots=zoo.Roots(method=method),
    )


@functools.cache
def update(tx: optax.GradientTransformation) -> Any:
    return jax.jit(lambda g, state: tx.update(g, state, g)[1])


def reports(tx, steps: int, change=lambda t, grads: grads, shapes=SHAPES) -> list[Any]:
    """What `inspect` says after each step."""
    params = random_tree(0, shapes=shapes)
    state, found = tx.init(params), [zoo.inspect(tx.init(params), params)]
    for t in range(1, steps + 1):
        state = update(tx)(change(t, random_tree(t, shapes=shapes)), state)
        found.append(zoo.inspect(state, params))
    return found


def ages(found: list[Any], name: str) -> list[float]:
    return [report[name]["age"] for report in found]


# --- quantities -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eigh", *slow("schur_newton")])
def test_a_short_training(method):
    found = reports(optimizer(method), 13)
    assert all(set(report) == {"w", "k", "b"} for report in found)
    for report in found:
        for layer in report.values():
            assert set(layer) == QUANTITIES
            assert all(type(value) is float for value in layer.values())
            assert layer["failures"] == layer["skipped"] == 0
    # Begun at 4, 8 and 12, adopted two steps later.
    expected = [-1.0] * 6 + [2, 3, 4, 5, 2, 3, 4, 5]
    assert ages(found, "w") == ages(found, "k") == expected
    assert ages(found, "b") == [-1.0] * 14
    w, b = found[-1]["w"], found[-1]["b"]
    assert w["residual"] < 1e-8 if method == "eigh" else 0 < w["residual"] < 1e-3
    assert w["iterations"] == 0 if method == "eigh" else 1 <= w["iterations"] <= 100
    assert 1 <= w["condition"] <= 1.01e4
    assert [b[q] for q in ("residual", "iterations", "condition")] == [0, 0, 0]
    assert [found[5]["w"][q] for q in ("residual", "iterations", "condition")] == [0, 0, 0]


@pytest.mark.slow
def test_the_condition_is_that_of_the_ridged_statistic():
    tx = zoo.scale_by_shampoo(refresh=zoo.Refresh(every=1, delay=0))
    state = tx.init({"w": jnp.eye(4)})
    state = update(tx)({"w": jnp.diag(jnp.array([10.0, 3.0, 2.0, 1.0]))}, state)
    report = zoo.inspect(state)["0"]
    np.testing.assert_allclose(report["condition"], 100 * 1.0001 / 1.01, rtol=0.02)


@pytest.mark.slow
def test_the_worst_factor_of_a_block_is_shown():
    tx = zoo.scale_by_shampoo(b2=1.0, refresh=zoo.Refresh(every=2, delay=0))
    state = tx.init({"w": jnp.zeros((2, 2))})
    for row in ([1.0, 0.0], [0.0, 1.0]):  # on the left diag(2, 0), on the right diag(1, 1)
        state = update(tx)({"w": jnp.array([row, [0.0, 0.0]])}, state)
    np.testing.assert_allclose(zoo.inspect(state)["0"]["condition"], 1e4, rtol=0.02)


@pytest.mark.slow
def test_ages_with_roots_at_once():
    tx = zoo.scale_by_shampoo(
        refresh=zoo.Refresh(every=4, delay=0, start=2), roots=zoo.Roots(method="eigh")
    )
    assert ages(reports(tx, 9), "w") == [-1, -1, 0, 1, 0, 1, 2, 3, 0, 1]


@pytest.mark.slow
def test_refreshes_without_a_root_are_counted():
    def zero_w(t, grads):
        return {**grads, "w": jnp.zeros_like(grads["w"])} if t <= 8 else grads

    found = reports(optimizer(), 14, zero_w)
    # Both factors of w: adopted (or not) at 6 and 10; at 14 there is something to take a root of.
    assert [r["w"]["failures"] for r in found] == [0.0] * 6 + [2.0] * 4 + [4.0] * 5
    assert ages(found, "w")[-2:] == [-1, 2]
    assert {r["k"]["failures"] for r in found} == {0.0}
    assert ages(found, "k")[6] == 2


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_gradients_left_out_are_counted(bad):
    def spoil(t, grads):
        if t in (2, 3):
            grads = {**grads, "w": grads["w"].at[1, 2].set(bad)}
        return {**grads, "b": grads["b"].at[0].set(bad)} if t == 5 else grads

    found = reports(optimizer(), 7, spoil)
    assert [r["w"]["skipped"] for r in found] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert [r["b"]["skipped"] for r in found] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert {r["k"]["skipped"] for r in found} == {0.0}
    assert {r[name]["failures"] for r in found for name in SHAPES} == {0.0}


@pytest.mark.slow
def test_skipped_gradients_are_counted_by_block_and_by_layer():
    params = {"w": jnp.zeros((8, 4)), "s": jnp.zeros((3, 5))}
    tx = zoo.scale_by_shampoo(blocks=zoo.Blocks(size=4), layer_axes={"w": 0, "s": 1})
    grads = {"w": params["w"].at[:, 0].set(jnp.nan), "s": params["s"].at[:2, 0].set(jnp.inf)}
    state = update(tx)(grads, tx.init(params))
    found = zoo.inspect(state, params)
    assert (found["w"]["skipped"], found["s"]["skipped"]) == (2, 2)


# --- the other optimizers: each quantity against NumPy, from the gradients alone -----------------

RATES = ("rate_p10", "rate_p50", "rate_p90")
LEAVES = {"w": (40, 5), "b": (7,)}


def gradients(steps: int = 4) -> list[Any]:
    """Coordinates between 1e-5 and 1e3 in size; the first row of w is never touched."""
    scales = 10.0 ** np.linspace(-5, 3, 40)[:, None] * (np.arange(40)[:, None] > 0)
    found = [random_tree(1 + t, shapes=LEAVES) for t in range(steps)]
    return [{**g, "w": g["w"] * jnp.asarray(scales, jnp.float32)} for g in found]


def after(tx: optax.GradientTransformation, grads: list[Any]) -> dict[str, dict[str, float]]:
    params = random_tree(0, shapes=LEAVES)
    return zoo.inspect(train(tx, params, grads)[1], params)


def wide(grads: list[Any], name: str) -> np.ndarray:
    return np.stack([np.asarray(g[name], np.float64) for g in grads])


def averages(xs: np.ndarray, decay: float) -> np.ndarray:
    """decay·a + (1 − decay)·x after each of `xs`, as a weighted sum."""
    weights = [
        [(1 - decay) * decay ** (t - i) if i <= t else 0.0 for i in range(len(xs))]
        for t in range(len(xs))
    ]
    return np.tensordot(weights, xs, 1)


def assert_numbers(found: dict[str, float], expected: dict[str, Any], rtol: float = 2e-5) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)


def quantiles(label: str, x: np.ndarray) -> dict[str, Any]:
    places = (10, 50, 90)
    return {f"{label}_p{q}": np.percentile(x.ravel(), q) for q in places}


@pytest.mark.parametrize("amsbound", [False, True])
def test_rates_between_bounds(amsbound):
    grads, t = [*gradients(5), jax.tree.map(lambda g: 1e-3 * g, gradients(6)[5])], 6
    tx = zoo.adaboundw(lambda c: 1e-2 / (1 + c), 0.05, base_lr=1e-2, gamma=0.02, amsbound=amsbound)
    found = after(tx, grads)
    for name in LEAVES:
        moments = averages(wide(grads, name) ** 2, 0.999)
        v = moments.max(0) if amsbound else moments[-1]
        eta = 1e-2 / t
        rate = eta * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (np.sqrt(v) + 1e-8)
        ends = [0.05 * (eta / 1e-2) * x for x in (1 - 1 / (0.02 * t + 1), 1 + 1 / (0.02 * t))]
        expected = {
            **quantiles("rate", np.clip(rate, ends[0], ends[1])),
            "at_lower": np.mean(rate < ends[0]),
            "at_upper": np.mean(rate > ends[1]),
        }
        assert_numbers(found[name], expected)
    assert 0 < found["w"]["at_lower"] < 1
    assert 0 < found["w"]["at_upper"] < 1
    assert found["b"]["rate_p10"] < found["b"]["rate_p50"] < found["b"]["rate_p90"]


def test_without_bounds_rates_are_adams():
    found = after(zoo.adabound(1e-2, bounds=lambda t: (0.0, jnp.inf)), gradients())
    g = wide(gradients(), "b")
    v = averages(g**2, 0.999)[-1]
    rate = 1e-2 * np.sqrt(1 - 0.999**4) / (1 - 0.9**4) / (np.sqrt(v) + 1e-8)
    assert_numbers(found["b"], {**quantiles("rate", rate), "at_lower": 0.0, "at_upper": 0.0})


def test_rates_of_a_second_moment_that_forgets_nothing():
    grads = gradients()
    found = after(zoo.adaxw(b2=1e-2), grads)
    for name in LEAVES:
        v = 0.0
        for g in wide(grads, name):
            v = 1.01 * v + 0.01 * g**2
        v = np.asarray(v) / (1.01**4 - 1)
        unseen = {"w": 5 / 200, "b": 0.0}[name]
        assert_numbers(found[name], {**quantiles("rate", v[v > 0] ** -0.5), "unseen": unseen})


@pytest.mark.parametrize("axes", [0, 1])
def test_trust_ratios_are_means_over_layer_slices(axes):
    params = random_tree(0, shapes=LEAVES)
    (g,) = gradients(1)
    mask = {"w": True, "b": False}
    tx = zoo.lars(1.0, 0.1, trust_coefficient=0.02, trust_ratio_mask=mask, layer_axes=axes)
    found = zoo.inspect(tx.update(g, tx.init(params), params)[1], params)
    p, u = np.asarray(params["w"], np.float64), np.asarray(g["w"], np.float64)
    ratio = references.trust_ratio(p, u, 0.02, 0.1, 0.0, axes=axes)
    np.testing.assert_allclose(found["w"]["trust_ratio"], np.mean(ratio), rtol=1e-5)
    assert found["b"] == {"trust_ratio": 1.0}
    assert zoo.inspect(tx.init(params), params)["w"] == {"trust_ratio": 1.0}


def test_the_trust_ratio_of_lamb():
    params = random_tree(0, shapes=LEAVES)
    (g,) = gradients(1)
    tx = zoo.lamb(0.1, weight_decay=0.3)
    found = zoo.inspect(tx.update(g, tx.init(params), params)[1], params)
    for name in LEAVES:
        p, u = (np.asarray(x[name], np.float64) for x in (params, g))
        direction = u / (np.abs(u) + 1e-6) + 0.3 * p  # Adam's in the first step
        expected = np.linalg.norm(p) / np.linalg.norm(direction)
        assert_numbers(found[name], {"trust_ratio": expected}, rtol=1e-4)


def test_slots_of_amos():
    grads, xi, beta = gradients(3), 0.1, 0.9
    tx = zoo.amos(xi, lambda name, shape: 0.5, lambda name, shape: (1, *shape[1:]), beta=beta)
    found = after(tx, grads)
    for name in LEAVES:
        v = b = np.zeros(())
        for t, g in enumerate(wide(grads, name), start=1):
            g2 = np.mean(g**2, 0, keepdims=True)
            v = beta * v + (1 - beta) * g2
            r = (1 - beta**t) / v
            gamma = xi**2 * r * g2 / np.sqrt(1 + 0.25 * np.sqrt(xi) * b)
            b = b + gamma * (1 + b)
        assert_numbers(found[name], {"second_moment": np.mean(v), "decayed": np.mean(b)})
        assert found[name]["decayed"] > 0


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_gains_and_scales(scope):
    grads, gains = gradients(), {}
    found = after(zoo.egdd(0.1, gain_lr=0.5, scale_lr=0.3, momentum=0.0, scope=scope), grads)
    cosines = {name: [] for name in (*LEAVES, "all")}
    h = {}
    for name in LEAVES:
        g, gain = wide(grads, name), 1.0
        q = averages(g, 0.9)
        h[name] = []
        for t in range(4):
            gain = gain * np.exp(0.5 * np.sign(g[t] * q[t - 1])) if t else np.ones_like(g[0])
            h[name].append(gain * g[t])
            if t:
                a, b = g[t].ravel(), h[name][t - 1].ravel()
                cosines[name].append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        gains[name] = gain
    for t in range(1, 4):
        a = np.concatenate([wide(grads, name)[t].ravel() for name in LEAVES])
        b = np.concatenate([h[name][t - 1].ravel() for name in LEAVES])
        cosines["all"].append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for name in LEAVES:
        scale = np.exp(0.3 * np.sum(cosines["all" if scope == "global" else name]))
        assert_numbers(found[name], {"scale": scale, **quantiles("gain", gains[name])}, rtol=1e-4)
    assert found["b"]["gain_p10"] < found["b"]["gain_p90"]


def test_rates_in_the_signed_domain():
    tx = zoo.exponentiated_gradient(0.1, domain="signed", weight_decay=0.5)
    found = after(tx, [random_tree(t, shapes=LEAVES) for t in range(4)])
    for name, p in random_tree(0, shapes=LEAVES).items():
        p = np.asarray(p, np.float64)
        u, v = np.maximum(p, 0) + 0.5, np.maximum(-p, 0) + 0.5
        beta = 2 * np.sqrt(u * v) * np.exp(-0.1 * 0.5) ** 4
        assert_numbers(found[name], quantiles("rate", beta))


def test_positive_parameters_have_no_state_to_show():
    params = {"w": jnp.ones(3)}
    assert zoo.inspect(zoo.exponentiated_gradient(0.1).init(params), params) == {}


@pytest.mark.parametrize("mu_dtype", [None, jnp.bfloat16])
def test_the_momentum_of_lion(mu_dtype):
    found = after(zoo.lion(0.1, b2=0.9, mu_dtype=mu_dtype), gradients())
    for name in LEAVES:
        m = averages(wide(gradients(), name), 0.9)[-1]
        rms = np.linalg.norm(m) / np.sqrt(m.size)
        assert_numbers(found[name], {"momentum_rms": rms}, 1e-5 if mu_dtype is None else 2e-2)


def test_moments_that_accumulate():
    grads = gradients()
    momentum = after(zoo.accumulate_in_momentum(2, 0.8), grads)
    adam = after(zoo.accumulate_in_adam(2, 0.8, 0.9), grads)
    for name in LEAVES:
        g = wide(grads, name)
        m = averages((g[::2] + g[1::2]) / 2, 0.8)[-1]
        v = averages((g[::2] ** 2 + g[1::2] ** 2) / 2, 0.9)[-1]
        rms = {"momentum_rms": np.sqrt(np.mean(m**2))}
        assert_numbers(momentum[name], rms)
        assert_numbers(adam[name], {**rms, "second_moment": np.mean(v)})


# --- every optimizer --------------------------------------------------------------------------

MORE: dict[str, dict[str, Any]] = {
    "amos": {"eta_fn": lambda name, shape: 0.5},
    "exponentiated_gradient": {"domain": "signed"},
    "accumulate_in_momentum": {"every_k": 2},
    "accumulate_in_adam": {"every_k": 2},
}
MAKERS = {
    **{
        name: functools.partial(zoo.create, name, 0.01, **MORE.get(name, {}))
        for name in zoo.list_optimizers()
    },
    "accumulate_in_momentum": functools.partial(zoo.accumulate_in_momentum, 2),
    "accumulate_in_adam": functools.partial(zoo.accumulate_in_adam, 2),
}
every = pytest.mark.parametrize("name", MAKERS)
QUICK = ("lion", "lamb", "adabound")


@every
def test_no_reader_is_missing(name):
    report = zoo.inspect(MAKERS[name]().init(PARAMS), PARAMS)
    assert report, f"give the state of {name} a line in _READERS of optax_zoo/_inspection.py"


@pytest.mark.parametrize("name", some(MAKERS, *QUICK))
def test_plain_finite_floats_before_and_after_a_step(name):
    params = {
        "w": jnp.ones((2, 3), jnp.bfloat16),
        "none": None,
        "s": jnp.ones(()),
        "e": jnp.ones(0),
    }
    tx = MAKERS[name]()
    _, state = tx.update(jax.tree.map(lambda p: 0.1 * p, params), tx.init(params), params)
    for found in (zoo.inspect(tx.init(params), params), zoo.inspect(state, params)):
        assert set(found) == {"w", "s", "e"}
        assert len({tuple(layer) for layer in found.values()}) == 1
        numbers = [x for layer in found.values() for x in layer.values()]
        assert {type(x) for x in numbers} == {float}
        assert np.isfinite(numbers).all()
        assert json.loads(json.dumps(found)) == found


@every
def test_nothing_in_an_empty_tree(name):
    assert zoo.inspect(MAKERS[name]().init({}), {}) == {}


@every
def test_no_traced_state(name):
    state = MAKERS[name]().init(PARAMS)
    with pytest.raises(TypeError, match=r"opt_state holds the traced .*outside jit"):
        jax.jit(lambda s: zoo.inspect(s) and s)(state)


@pytest.mark.parametrize("name", ["lamb", "adabound", "egdd", "shampoo", "soap"])
def test_stacked_states_are_refused(name):
    tx = MAKERS[name]()
    params = {"w": jnp.ones((3, 2, 2))}
    stacked = jax.vmap(tx.init)(params)
    with pytest.raises(ValueError, match=r"opt_state holds 1 axes before .*one by one"):
        zoo.inspect(stacked, params)
    one = jax.tree.map(lambda x: x[0], stacked)
    assert set(zoo.inspect(one, params)) == {"w"}


MASK = {"block": {"kernel": True, "bias": False}, "head": [True]}


@pytest.mark.parametrize("name", some(MAKERS, *QUICK))
def test_every_wrapping_shows_the_same(name):
    params = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    grads = jax.tree.map(lambda p: 0.3 * p, params)

    def shown(tx):
        return zoo.inspect(tx.update(grads, tx.init(params), params)[1], params)

    tx = MAKERS[name]()
    alone = shown(tx)
    labels = {"a": {"kernel": "one", "bias": "two"}}
    partition = optax.partition({"one": tx, "two": optax.sgd(0.1)}, labels)
    for wrapped, leaves in (
        (tx, {"a/kernel", "a/bias"}),
        (optax.chain(optax.clip(1.0), tx), {"a/kernel", "a/bias"}),
        (optax.apply_if_finite(tx, 3), {"a/kernel", "a/bias"}),
        (partition, {"a/kernel"}),
        (optax.masked(tx, {"a": {"kernel": False, "bias": True}}), {"a/bias"}),
    ):
        found = shown(wrapped)
        assert set(found) == leaves
        for leaf in leaves:
            assert_numbers(found[leaf], alone[leaf])


@pytest.mark.parametrize("name", ["lion", "egdd", *slow("lars", "adabound", "adax")])
def test_hyper_parameters_injected(name):
    factory = zoo.info(name).factory
    kinds = tuple(key for key, v in zoo.info(name).defaults.items() if isinstance(v, bool | tuple))
    injected = optax.inject_hyperparams(factory, static_args=kinds)(learning_rate=0.01)
    tx, grads = factory(0.01), jax.tree.map(lambda p: 0.3 * p, PARAMS)
    pair = [zoo.inspect(t.update(grads, t.init(PARAMS), PARAMS)[1], PARAMS) for t in (tx, injected)]
    assert set(pair[0]) == set(pair[1]) == NAMES
    for leaf in NAMES:
        assert_numbers(pair[1][leaf], pair[0][leaf])


# --- names and wrappings ----------------------------------------------------------------------

PARAMS = {"block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "head": [jnp.ones((2, 2))]}
NAMES = {"block/kernel", "block/bias", "head/0"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(-1.0)),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: zoo.graft(optax.identity(), tx),
    ],
    ids=["alone", "chain", "masked", "apply_if_finite", "multi_steps", "graft"],
)
def test_a_wrapped_state_is_found_by_name(wrap):
    state = wrap(zoo.scale_by_shampoo()).init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == NAMES
    assert set(zoo.inspect(state)) == {"0", "1", "2"}


def test_under_inject_hyperparams():
    tx = optax.inject_hyperparams(zoo.shampoo)(learning_rate=0.1, b2=0.9)
    state = tx.init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == NAMES


@pytest.mark.slow
def test_the_state_of_a_compiled_step():
    tx = optimizer()
    state = update(tx)(PARAMS, tx.init(PARAMS))
    assert set(zoo.inspect(state, PARAMS)) == NAMES


def test_a_mask_leaves_only_its_leaves():
    mask = {"block": {"kernel": True, "bias": False}, "head": [True]}
    state = optax.masked(zoo.scale_by_shampoo(), mask).init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == {"block/kernel", "head/0"}


def test_a_partition_names_the_leaves_of_each_part():
    labels = {"block": {"kernel": "fast", "bias": "plain"}, "head": ["slow"]}
    tx = optax.partition(
        {"fast": zoo.shampoo(0.1), "slow": zoo.shampoo(0.01), "plain": optax.sgd(0.1)}, labels
    )
    state = tx.init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == {"block/kernel", "head/0"}
    assert len(zoo.inspect(state)) == 2


def test_a_mask_is_no_obstacle_without_momentum():
    mask = {"block": {"kernel": True, "bias": False}, "head": [True]}
    state = optax.masked(zoo.scale_by_shampoo(b1=0.0, graft_to="adam"), mask).init(PARAMS)
    assert len(zoo.inspect(state, PARAMS)) == 2


def test_two_shampoos_on_the_same_leaves_are_both_shown():
    tx = optax.chain(zoo.scale_by_shampoo(), zoo.scale_by_shampoo())
    found = zoo.inspect(tx.init(PARAMS), PARAMS)
    assert len(found) == 6
    assert set(found) > NAMES


def test_what_several_states_say_of_a_leaf_comes_together():
    tx = optax.chain(zoo.scale_by_sign_momentum(), zoo.scale_by_layerwise_trust_ratio())
    for params in (PARAMS, None):
        found = zoo.inspect(tx.init(PARAMS), params)
        assert len(found) == 3
        assert {tuple(layer) for layer in found.values()} == {("momentum_rms", "trust_ratio")}


def test_a_state_inside_a_known_one_is_found():
    tx = zoo.accumulate_in_momentum(1, then=zoo.scale_by_layerwise_trust_ratio())
    found = zoo.inspect(tx.init(PARAMS), PARAMS)
    assert found["head/0"] == {"momentum_rms": 0.0, "trust_ratio": 1.0}
    grafted = zoo.scale_by_shampoo(graft_to=zoo.scale_by_adax())
    found = zoo.inspect(grafted.init(PARAMS), PARAMS)
    assert set(found["head/0"]) == QUANTITIES | {*RATES, "unseen"}


def test_places_under_different_masks_are_different_leaves():
    labels = {"block": {"kernel": "sign", "bias": "ratio"}, "head": ["none"]}
    parts: dict[Any, Any] = {
        "sign": zoo.scale_by_sign_momentum(),
        "ratio": zoo.scale_by_layerwise_trust_ratio(),
        "none": optax.identity(),
    }
    found = zoo.inspect(optax.partition(parts, labels).init(PARAMS))
    assert sorted(map(tuple, found.values())) == [("momentum_rms",), ("trust_ratio",)]


@pytest.mark.parametrize("make", [zoo.lars, zoo.lamb])
def test_trust_ratios_under_a_mask_take_the_names_of_the_moments_beside_them(make):
    state = optax.masked(make(0.1), MASK).init(PARAMS)
    assert set(zoo.inspect(state, PARAMS)) == {"block/kernel", "head/0"}


def test_trust_ratios_alone_under_a_mask_have_but_places():
    state = optax.masked(zoo.scale_by_layerwise_trust_ratio(), MASK).init(PARAMS)
    assert zoo.inspect(state, PARAMS) == {"0": {"trust_ratio": 1.0}, "1": {"trust_ratio": 1.0}}


def test_complex_parameters():
    tx = zoo.accumulate_in_momentum(1, 0.5)
    g = jnp.array([3 + 4j, 0j])
    _, state = tx.update(g, tx.init(g))
    assert zoo.inspect(state, g)["()"]["momentum_rms"] == pytest.approx(2.5 / np.sqrt(2))


def test_a_bare_array_is_called_by_its_empty_path():
    state = zoo.scale_by_shampoo().init(jnp.ones((2, 2)))
    assert set(zoo.inspect(state, jnp.ones((2, 2)))) == {"()"}


@pytest.mark.parametrize("tx", [optax.adam(0.1), optax.sgd(0.1, 0.9), optax.identity()])
def test_a_state_of_others_says_nothing(tx):
    assert zoo.inspect(tx.init(PARAMS), PARAMS) == {}


@pytest.mark.parametrize("params", [{}, {"a": None}])
def test_an_empty_tree(params):
    assert zoo.inspect(zoo.shampoo(0.1).init(params), params) == {}


@pytest.mark.slow
def test_abstract_parameters_name_as_well():
    state = zoo.scale_by_shampoo().init(PARAMS)
    assert set(zoo.inspect(state, jax.eval_shape(lambda: PARAMS))) == NAMES


@pytest.mark.slow
def test_the_optimizer_of_nnx():
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, zoo.shampoo(0.1), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    names = {"layers/0/kernel", "layers/0/bias"}
    assert set(zoo.inspect(optimizer.opt_state, params)) == names
    assert set(zoo.inspect(optimizer, params)) == names

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    step(model, optimizer, params)
    found = zoo.inspect(optimizer, params)
    assert set(found) == names
    assert set(found["layers/0/kernel"]) == QUANTITIES


@pytest.mark.parametrize("name", ["lamb", *slow("amos", "lion", "adabound", "adaxw", "egdd")])
def test_others_in_the_optimizer_of_nnx(name):
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    tx = MAKERS[name]()
    plain = {"layers": {"0": {k: v[...] for k, v in params["layers"][0].items()}}}
    _, state = tx.update(plain, tx.init(plain), plain)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    step(model, optimizer, jax.tree.map(jnp.copy, params))
    found, expected = zoo.inspect(optimizer, params), zoo.inspect(state, plain)
    assert set(found) == set(expected) == {"layers/0/kernel", "layers/0/bias"}
    for leaf in found:
        assert_numbers(found[leaf], expected[leaf])


@pytest.mark.slow
def test_a_partition_in_the_optimizer_of_nnx():
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    tx = optax.partition(
        {"ratio": zoo.lars(0.1), "sign": zoo.lion(0.1)},
        lambda tree: jax.tree.map(lambda x: "ratio" if x.ndim > 1 else "sign", tree),
    )
    assert zoo.inspect(nnx.Optimizer(model, tx, wrt=nnx.Param), params) == {
        "layers/0/kernel": {"trust_ratio": 1.0},
        "layers/0/bias": {"momentum_rms": 0.0},
    }
