"""Drift correction of Shampoo's roots: against exact arithmetic, fresh roots and its own laws."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_shampoo_fidelity import ours, updates, worst

import optax_zoo as zoo
import shampoo_reference as reference
from helpers import assert_close, assert_finite, assert_same, enable_x64, random_tree, slow
from optax_zoo import _host, _triangles
from optax_zoo._shampoo import _drift, _statistics
from optax_zoo._shampoo._schedule import Schedule
from shampoo_reference import Setting

SHAPES = {"w": (6, 4), "k": (2, 3, 4), "b": (5,)}  # blocks of the same orders: fewer programs
SIGN = optax.stateless(lambda g, _: jax.tree.map(jnp.sign, g))
REFRESH = zoo.Refresh(every=6, delay=4, start=2, drift_every=3)


def turning(shapes: dict[str, tuple[int, ...]], steps: int = 40) -> dict[str, np.ndarray]:
    """Gradients whose covariance grows and turns slowly: statistics drift, spectra stay near."""
    rng = np.random.default_rng(len(shapes))
    found = {}
    for name, shape in shapes.items():
        noise = rng.normal(size=(steps, *shape))
        for axis, n in enumerate(shape, start=1):
            phase = np.arange(steps)[:, None] / 15 + np.arange(n)
            scale = 1 + 0.6 * np.sin(phase)
            noise = noise * scale.reshape(
                steps, *(n if i == axis else 1 for i in range(1, noise.ndim))
            )
        found[name] = noise
    return found


# --- against exact arithmetic ------------------------------------------------------------------

SLOW = Setting(b2=0.98, exponent=2, every=8, delay=5, start=4, drift_every=3, ridge=1e-2)
TOLERANCE = 0.02  # the polynomials' 0.8 % for each of two axes, the ridge's
FORMS = {
    "p_2": SLOW,
    "p_4": dataclasses.replace(SLOW, exponent=None),
    "every_step": dataclasses.replace(SLOW, drift_every=1),
    "one_sided": dataclasses.replace(SLOW, one_sided_above=5),
    "adam_norm_without_delay": dataclasses.replace(SLOW, graft="adam", delay=0),
    "a_sum": dataclasses.replace(SLOW, b2=1.0),
}


def compare(s: Setting, shapes: Any, *, tolerance: float, dtype: str = "float64", **roots: Any):
    grads = turning(shapes)
    with enable_x64(dtype == "float64"):
        found = updates(ours(s, **roots), grads, dtype)
    desired = reference.directions(grads, s)
    error, where = worst(found, desired)
    assert error <= tolerance, f"{error:.2g} in {where}"
    without = reference.directions(grads, dataclasses.replace(s, drift_every=None))
    error, _ = worst(without, desired)
    assert error > 3 * tolerance, "the correction moves nothing here"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_formula_comes_out_again(form):
    compare(FORMS[form], SHAPES, tolerance=TOLERANCE)


@pytest.mark.slow
def test_on_the_device_and_in_single_precision():
    compare(SLOW, SHAPES, tolerance=TOLERANCE, on="device", dtype="float32")


@pytest.mark.slow
def test_layers_are_corrected_apart():
    s = dataclasses.replace(SLOW, layer_axes={"w": 1})
    grads = turning({"w": (3, 5, 4)})
    tx = zoo.scale_by_shampoo(
        exponent=2,
        b2=s.b2,
        layer_axes=1,
        refresh=zoo.Refresh(s.every, s.delay, s.start, drift_every=s.drift_every),
        roots=zoo.Roots(ridge=s.ridge),
    )
    error, where = worst(updates(tx, grads, "float32"), reference.directions(grads, s))
    assert error <= TOLERANCE, where


# --- what a correction is for ------------------------------------------------------------------


def distances(s: Setting, **refresh: Any) -> float:
    """From the directions of fresh roots, the mean over the last steps."""
    grads = turning({"w": (16, 12)}, steps=60)
    fresh = reference.directions(grads, dataclasses.replace(s, every=1, delay=0, start=1))
    found = updates(ours(dataclasses.replace(s, **refresh)), grads, "float32")
    errors = [np.linalg.norm(a - d) / np.linalg.norm(d) for a, d in zip(found["w"], fresh["w"])]  # noqa: B905
    return float(np.mean(errors[20:]))


@pytest.mark.slow
def test_corrected_roots_are_nearer_to_fresh_ones():
    s = Setting(b2=0.98, exponent=2, every=20, delay=20, start=5, graft="sgd", ridge=1e-2)
    stale = distances(s)
    every_fifth, every_step = distances(s, drift_every=5), distances(s, drift_every=1)
    assert every_fifth < 0.5 * stale
    assert every_step < every_fifth


@pytest.mark.slow
def test_where_nothing_moves_a_correction_changes_nothing():
    g = random_tree(0, shapes=SHAPES)
    grads = {name: np.stack([x] * 12) for name, x in g.items()}
    s = Setting(graft="sgd", exponent=2, every=4, delay=2, start=2, ridge=1e-2)
    found = updates(ours(dataclasses.replace(s, drift_every=1)), grads, "float32")
    error, where = worst(found, updates(ours(s), grads, "float32"))
    assert error < 0.01, where


# --- laws --------------------------------------------------------------------------------------


@functools.cache
def optimizer(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    return zoo.shampoo(0.03, **{"refresh": REFRESH, **arguments})


def run(tx: Any, grads: list[Any], state: Any = None, *, jit: bool = True) -> tuple[list[Any], Any]:
    """The updates of all steps and the last state."""
    step = jax.jit(tx.update) if jit else tx.update
    state = tx.init(grads[0]) if state is None else state
    found = []
    for g in grads:
        u, state = step(g, state, g)
        found.append(u)
    return found, state


def noise(steps: int, dtype: Any = jnp.float32) -> list[Any]:
    return [random_tree(t, dtype, SHAPES) for t in range(steps)]


@pytest.mark.slow
def test_the_scale_of_the_gradients_does_not_matter():
    grads = noise(14)
    tx = optimizer(graft_to=SIGN)
    plain, _ = run(tx, grads)
    scaled, _ = run(tx, [jax.tree.map(lambda g: 2.0**-27 * g, g) for g in grads])
    assert_close(scaled, plain, rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_inline_prefetched_and_restored_in_mid_refresh_are_the_same_to_the_bit():
    grads = noise(20)
    tx = optimizer()
    with _host.inline():
        inline = run(tx, grads)
    assert_same(run(tx, grads), inline)
    for stop in (7, 9, 12):  # begun but not adopted; just corrected; begun
        first, state = run(tx, grads[:stop])
        restored = jax.tree.map(lambda x: jnp.asarray(np.array(x)), state)
        with _host.inline():  # forgets what was begun
            rest, state = run(tx, grads[stop:], restored)
        assert_same((first + rest, state), inline)


@pytest.mark.slow
def test_compiled_and_not_compiled_are_the_same():
    grads = noise(12)
    assert_close(run(optimizer(), grads, jit=False), run(optimizer(), grads), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scanned_with_a_donated_state_it_is_the_same():
    grads, tx = noise(12), optimizer()
    updates, state = run(tx, grads)
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731

    def advance(state: Any, g: Any) -> tuple[Any, Any]:
        u, state = tx.update(g, state, g)
        return state, u

    scanned = jax.jit(lambda state, grads: jax.lax.scan(advance, state, grads), donate_argnums=0)
    found_state, found = scanned(tx.init(grads[0]), jax.tree.map(stack, *grads))
    # Another program than the step alone: the last bits may differ, and grow.
    assert_close(found, jax.tree.map(stack, *updates), rtol=1e-3, atol=1e-5)
    assert jax.tree.structure(found_state) == jax.tree.structure(state)


def test_the_state_grows_by_the_corrected_roots_alone():
    params = random_tree(0, shapes={"w": (8, 8)})
    without = zoo.scale_by_shampoo(refresh=dataclasses.replace(REFRESH, drift_every=None))
    with_drift = zoo.scale_by_shampoo(refresh=REFRESH)
    state: Any = without.init(params)
    assert state.factors[0].corrected is None
    assert state.report.drift is None
    sizes = [sum(x.nbytes for x in jax.tree.leaves(t.init(params))) for t in (with_drift, without)]
    assert (
        sizes[0] - sizes[1] == 8 * 9 * 4 + 2 * 4 + 4
    )  # a pair of roots, two factors' drift, one leaf's


@pytest.mark.slow
def test_updates_keep_bfloat16():
    grads = noise(12, jnp.bfloat16)
    found, state = run(optimizer(), grads)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    assert_finite((found, state))


@pytest.mark.slow
def test_roots_in_half_precision_are_corrected_nearly_as_well():
    grads = noise(14)
    found, _ = run(optimizer(roots=zoo.Roots(ridge=1e-2, dtype=jnp.bfloat16)), grads)
    wanted, _ = run(optimizer(roots=zoo.Roots(ridge=1e-2)), grads)
    for a, d in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(a - d) < 0.03 * np.linalg.norm(d)


@pytest.mark.slow
def test_gradients_that_vanish_or_are_not_finite_leave_finite_updates():
    grads = noise(30)
    for t in (5, 8):
        grads[t]["w"] = grads[t]["w"].at[0, 0].set([jnp.nan, 1e30][t % 2])
    zeros = jax.tree.map(jnp.zeros_like, grads[0])
    found, state = run(optimizer(), [zeros] * 7 + grads[:14] + [zeros] * 40)
    assert_finite((found, jax.tree.leaves(state[0].mu)))


@pytest.mark.slow
def test_under_vmap_each_steps_as_alone():
    grads = [{"w": g["w"]} for g in noise(5)]
    roots = zoo.Roots(method="eigh", on="device", ridge=1e-2)
    tx = optimizer(roots=roots, refresh=zoo.Refresh(2, 1, 2, drift_every=3))
    both = [jax.tree.map(lambda x: jnp.stack([x, 2 * x.T.reshape(x.shape)]), g) for g in grads]
    state = jax.vmap(tx.init)(both[0])
    step = jax.jit(jax.vmap(tx.update))
    for g in both:
        found, state = step(g, state, g)
    alone, _ = run(tx, [jax.tree.map(lambda x: x[1], g) for g in both])
    assert_close(jax.tree.map(lambda x: x[1], found), alone[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_all_factors_at_once_are_corrected_as_one_after_the_other(monkeypatch):
    grads = noise(9)
    found, _ = run(optimizer(), grads)

    def as_on_an_accelerator(*args, default, cpu):
        del cpu
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_an_accelerator)
    # Other words for the same schedule, for which nothing is compiled yet.
    other = optimizer(refresh=dataclasses.replace(REFRESH, statistics_every=np.int64(1)))
    assert_close(run(other, grads)[0], found, rtol=1e-3, atol=1e-5)


# --- refusals, the report ----------------------------------------------------------------------


def factors_with(statistic: np.ndarray, snapshot: np.ndarray, age: int = 3) -> Any:
    """One factor whose root is that of the snapshot and whose statistic is another now."""
    n = len(statistic)
    stack = _statistics.Stack(0, n, (0,), 1, 2)
    half = reference.symmetric_power(snapshot, -1 / 4)
    factors = _statistics.init(stack, 0.0, jnp.float32, None, None, drifts=True)
    return stack, factors._replace(
        statistics=jnp.asarray(_triangles.pack(statistic, snapshot), jnp.float32)[None, None],
        weight=jnp.ones(1),
        roots=_triangles.pack_pairs(jnp.asarray(half, jnp.float32)[None]),
        age=jnp.full((1, 1), age),
    )


def correct(statistic, snapshot, age: int = 3) -> tuple[np.ndarray, float]:
    stack, factors = factors_with(statistic, snapshot, age)
    (found,) = _drift.corrected_if(jnp.array(True), [stack], [factors], 0.0)
    return np.asarray(_triangles.unpack_pairs(found.corrected, 1)[0]), float(found.drift[0, 0])


def wishart(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, 3 * n))
    return x @ x.T / (3 * n)


@pytest.mark.slow
def test_the_residual_is_the_largest_entry_of_w_minus_one():
    snapshot = wishart(12)
    root = reference.symmetric_power(snapshot, -1 / 2)
    statistic = snapshot + 0.3 * wishart(12, seed=1)
    found, drift = correct(statistic, snapshot)
    wanted = np.abs(root @ statistic @ root - np.eye(12)).max()
    assert drift == pytest.approx(wanted, rel=1e-3)
    assert not np.allclose(found, root, rtol=0.01)


@pytest.mark.parametrize("kind", ["indefinite", *slow("not finite", "zero")])
def test_what_is_not_certified_leaves_the_adopted_root(kind):
    snapshot = wishart(12)
    statistic = {
        "indefinite": snapshot - 0.9 * np.eye(12),
        "not finite": np.full((12, 12), np.nan),
        "zero": np.zeros((12, 12)),
    }[kind]
    found, drift = correct(statistic, snapshot)
    np.testing.assert_allclose(found, reference.symmetric_power(snapshot, -1 / 2), rtol=1e-4)
    assert drift == math.inf


def test_a_fresh_root_is_used_as_it_is():
    snapshot = wishart(12)
    found, drift = correct(snapshot, snapshot, age=0)
    wanted = reference.symmetric_power(snapshot, -1 / 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert drift < 1e-4


@pytest.mark.slow
def test_inspect_shows_the_drift_of_the_last_correction():
    grads = [random_tree(t, shapes=SHAPES) for t in range(12)]
    tx = optimizer()
    step, state, found = jax.jit(tx.update), tx.init(grads[0]), []
    for g in grads:
        _, state = step(g, state, g)
        found.append(zoo.inspect(state, g))
    drifts = [report["w"]["drift"] for report in found]
    assert drifts[:3] == [0.0] * 3, "no root is in use before the first adoption in step 4"
    assert all(math.isfinite(d) and d > 0.01 for d in drifts[3:])
    changes = [t for t in range(2, 13) if drifts[t - 1] != drifts[t - 2]]
    assert changes == [4, 6, 9, 10, 12]  # adopted in 4, 6 and 10, every third besides
    assert {report["b"]["drift"] for report in found} == {0.0}
    without = zoo.shampoo(0.1)
    assert "drift" not in zoo.inspect(without.init(grads[0]), grads[0])["w"]


# --- when, and at what cost ---------------------------------------------------------------------


def test_corrections_come_every_so_often_and_with_every_adoption():
    schedule = Schedule(zoo.Refresh(every=8, delay=5, start=2, drift_every=3), on_host=True)
    steps = [t for t in range(1, 30) if bool(schedule.corrects(jnp.int32(t)))]
    adopted = [4, 8, 13, 21, 29]
    assert steps == sorted({*range(3, 30, 3), *adopted})


def test_the_interval_of_corrections_is_kept_across_the_end_of_int32():
    schedule = Schedule(zoo.Refresh(every=4, drift_every=7), on_host=True)
    last = np.iinfo(np.int32).max
    assert (last + 1 - int(schedule.next_count(jnp.int32(last)))) % 28 == 0


@pytest.mark.parametrize(("p", "products"), [(2, 13), (4, 14)])
def test_the_products_of_one_correction(p, products):
    n = 24
    matrix = jax.ShapeDtypeStruct((n, n), jnp.float32)
    one = functools.partial(_drift._corrected_root, p=p, ridge=1e-4)
    age = jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(one).lower(matrix, matrix, age).compile().as_text() or ""
    assert len(re.findall(rf"f32\[{n},{n}\]\S* dot\(", text)) == products
