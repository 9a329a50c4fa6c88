"""Shampoo against an independent NumPy reference, recorded runs and a table of its schedule."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
import shampoo_reference as reference
from helpers import assert_close, enable_x64, some, trajectory
from shampoo_reference import Setting, gradients

GOLDEN = Path(__file__).parent / "golden"
TREE = {
    "matrix": (6, 5),
    "order_3": (4, 3, 5),
    "order_4": (2, 3, 2, 3),
    "order_5": (2, 2, 1, 3, 2, 2),
    "vector": (5,),
    "scalar": (),
    "row": (1, 7),
}
SMALL = {"matrix": (6, 5), "order_3": (4, 3, 5), "vector": (5,)}
SMALLEST = {"matrix": (6, 5), "vector": (5,)}  # a program of Shampoo's takes a second an order


GRAFTS = {
    None: None,
    "adam": "adam",
    "sgd": optax.identity(),
    "sign": optax.stateless(lambda g, _: jax.tree.map(jnp.sign, g)),
}


def ours(
    s: Setting, method: str = "eigh", on: str = "host", root_dtype: Any = None
) -> optax.GradientTransformation:
    axes = s.layer_axes
    return zoo.scale_by_shampoo(
        b1=s.b1,
        b2=s.b2,
        nesterov=s.nesterov,
        eps=s.eps,
        exponent=s.exponent,
        init_epsilon=s.init_epsilon,
        graft_to=GRAFTS[s.graft],
        layer_axes=axes if axes else None,
        blocks=zoo.Blocks(
            size=s.size,
            merge_below=s.merge_below,
            skip_above=s.skip_above,
            one_sided_above=s.one_sided_above,
        ),
        refresh=zoo.Refresh(
            every=s.every,
            delay=s.delay,
            start=s.start,
            statistics_every=s.statistics_every,
            drift_every=s.drift_every,
        ),
        roots=zoo.Roots(method=method, ridge=s.ridge, on=on, dtype=root_dtype),
    )


def updates(tx, grads: dict[str, np.ndarray], dtype: str = "float64") -> dict[str, np.ndarray]:
    """The updates of all steps; the gradients are given, so no error feeds back."""
    steps = len(next(iter(grads.values())))
    step = jax.jit(tx.update)
    leaves = {name: jnp.asarray(g, dtype) for name, g in grads.items()}
    state, found = tx.init({name: g[0] for name, g in leaves.items()}), []
    for t in range(steps):
        out, state = step({name: g[t] for name, g in leaves.items()}, state)
        found.append(out)
    return {name: np.stack([np.asarray(u[name], float) for u in found]) for name in grads}


def worst(actual: dict[str, np.ndarray], desired: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest |error| / |x|, both norms of one leaf at one step, and where."""
    errors = {}
    for name, want in desired.items():
        for t, (a, d) in enumerate(zip(actual[name], want, strict=True), start=1):
            assert a.shape == d.shape
            error = np.linalg.norm(a - d) / max(np.linalg.norm(d), 1e-300)
            errors[f"{name} at step {t}"] = error if np.isfinite(error) else np.inf
    where = max(errors, key=lambda place: errors[place])
    return errors[where], where


def compare(s: Setting, shapes=SMALL, *, tolerance, dtype="float64", **roots) -> None:
    grads = gradients(shapes)
    with enable_x64(dtype == "float64"):
        found = updates(ours(s, **roots), grads, dtype)
    error, where = worst(found, reference.directions(grads, s))
    assert error <= tolerance, f"{error:.2g} in {where}"


PAPER = Setting(
    b1=0.0, b2=1.0, nesterov=False, init_epsilon=1e-4, ridge=0.0, every=1, delay=0, start=1
)
FORMS: dict[str, tuple[Setting, dict[str, Any]]] = {
    "2018": (PAPER, {**TREE}),
    "2018_merged": (dataclasses.replace(PAPER, merge_below=12, exponent=2), TREE),
    "sum_with_momentum": (Setting(b2=1.0, every=5, delay=0, start=5, ridge=1e-5), SMALL),
    "scalable": (Setting(every=7, delay=0, start=1, merge_below=1), TREE),
    "no_momentum": (Setting(b1=0.0, every=5, delay=5, start=2), SMALL),
    "adam_norm": (Setting(graft="adam", exponent=2, every=5, delay=5, start=2), SMALL),
    "adam_norm_plain": (
        Setting(graft="adam", nesterov=False, b2=0.99, every=7, delay=3, start=2),
        SMALL,
    ),
    "sgd_norm": (Setting(graft="sgd", every=6, delay=2, start=3), SMALL),
    "sign_norm": (Setting(graft="sign", exponent=4, every=6, delay=2, start=3), SMALL),
    "odd_exponent": (Setting(exponent=3, every=10, delay=4, start=10), SMALL),
    "small_ridge": (Setting(exponent=2, ridge=1e-6, every=10, delay=0, start=10), SMALL),
}


@pytest.mark.parametrize("form", some(FORMS, "adam_norm"))
def test_the_reference_comes_out_again(form):
    s, shapes = FORMS[form]
    compare(s, shapes, tolerance=1e-6, root_dtype=jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "on"),
    [("schur_newton", "host"), ("schur_newton", "device"), ("eigh", "host"), ("eigh", "device")],
)
def test_both_methods_agree_in_both_places(method, on):
    s = Setting(graft="adam", exponent=2, every=8, delay=3, start=2)
    shapes = SMALL if on == "host" else SMALLEST
    compare(s, shapes, tolerance=1e-6, method=method, on=on, root_dtype=jnp.float64)


@pytest.mark.slow
def test_narrow_roots_are_as_good_as_their_dtype():
    s = Setting(graft="adam", exponent=2, every=8, delay=3, start=2)
    compare(s, SMALLEST, tolerance=1e-5, root_dtype=jnp.float32)


@pytest.mark.slow
def test_the_paper_exponent_by_newtons_method():
    s = Setting(every=8, delay=8, start=2, merge_below=1)
    compare(s, TREE, tolerance=1e-6, method="schur_newton", root_dtype=jnp.float64)


TIMES = [
    # (every, delay, start, statistics_every)
    (1, 0, 1, 1),
    (1, 1, 1, 1),
    (2, 1, 1, 1),
    (10, 0, 10, 1),
    (10, 10, 10, 2),
    (10, 4, 3, 1),
    (20, 20, 1, 3),
    (20, 3, 5, 5),
    (24, 5, 7, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "delay", "start", "statistics_every"), TIMES[::4])
def test_schedules_agree(every, delay, start, statistics_every):
    s = Setting(
        graft="adam",
        exponent=2,
        every=every,
        delay=delay,
        start=start,
        statistics_every=statistics_every,
    )
    compare(s, SMALLEST, tolerance=1e-6, root_dtype=jnp.float64)


SHAPED: dict[str, tuple[Setting, dict[str, tuple[int, ...]]]] = {
    "blocked": (
        Setting(size=4, merge_below=1, graft="adam"),
        {"matrix": (10, 7), "tall": (9, 3), "order_3": (3, 2, 8), "vector": (9,)},
    ),
    "blocked_ungrafted": (Setting(size=3, merge_below=1), {"matrix": (8, 4), "same": (3, 4)}),
    "merged_then_blocked": (
        Setting(size=5, merge_below=12, graft="sgd"),
        {"joins": (2, 5, 3, 4), "never_a_vector": (3, 4), "ones": (1, 6, 1, 2)},
    ),
    "merged_by_size": (Setting(size=12), {"conv": (3, 3, 4, 5), "last": (7, 2, 2)}),
    "one_sided": (
        Setting(size=64, one_sided_above=8, graft="adam"),
        {"vocabulary": (12, 5), "last": (4, 3, 11), "none_left": (9, 10), "small": (8, 8)},
    ),
    "one_sided_ungrafted": (
        Setting(size=64, one_sided_above=8, merge_below=1),
        {"vocabulary": (12, 5), "last": (4, 3, 11)},
    ),
    "skipped": (
        Setting(skip_above=8, graft="adam", size=16, merge_below=20),
        {"long": (9, 3), "wide": (3, 9), "kept": (8, 3), "merged_is_not_long": (4, 5, 3)},
    ),
    "stacked": (
        Setting(layer_axes=1, graft="adam", exponent=2),
        {"matrices": (3, 4, 5), "order_3": (2, 3, 2, 4), "vectors": (4, 6), "scalars": (3,)},
    ),
    "stacked_by_leaf": (
        Setting(layer_axes={"heads": 2, "plain": 0, "experts": 1}, size=4, graft="sgd"),
        {"heads": (2, 3, 5, 4), "plain": (4, 4), "experts": (3, 6, 4)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPED)
def test_every_shape_agrees(name):
    s, shapes = SHAPED[name]
    s = dataclasses.replace(s, every=6, delay=2, start=3)
    compare(s, shapes, tolerance=1e-6, root_dtype=jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "on"),
    [("one_sided", "host"), ("stacked", "device")],
)
def test_single_precision_keeps_the_direction(name, on):
    s, shapes = SHAPED[name]
    s = dataclasses.replace(s, every=6, delay=2, start=3)
    compare(s, shapes, tolerance=1e-3, dtype="float32", method="schur_newton", on=on)


@pytest.mark.slow
def test_a_block_that_is_not_finite_counts_as_zeros():
    """A sum: whether the zeros enter the statistics or nothing does is the same."""
    s = Setting(b2=1.0, size=4, merge_below=1, graft="sgd", every=5, delay=2, start=1)
    grads = gradients({"matrix": (8, 4), "vector": (5,)})
    grads["matrix"][13, 5, 2] = np.nan
    grads["matrix"][20, 1, 1] = np.inf
    grads["vector"][7, 3] = -np.inf
    with enable_x64():
        found = updates(ours(s, root_dtype=jnp.float64), grads)
    error, where = worst(found, reference.directions(grads, s))
    assert error <= 1e-6, f"{error:.2g} in {where}"


@pytest.mark.slow
def test_shampoo_is_the_chain_of_its_parts(x64):
    s = Setting(graft="adam", exponent=2, every=5, delay=5, start=2)
    refresh = zoo.Refresh(every=5, delay=5, start=2)
    roots = zoo.Roots(method="eigh", dtype=jnp.float64)
    assembled = zoo.shampoo(0.01, weight_decay=0.1, refresh=refresh, roots=roots)
    grads = gradients(SMALL, 20)
    params = {name: jnp.asarray(g[0]) for name, g in grads.items()}
    steps = [{name: jnp.asarray(g[t]) for name, g in grads.items()} for t in range(20)]
    path = trajectory(assembled, params, steps)
    wanted = reference.directions(grads, s)
    for name, p in params.items():
        for t in range(20):
            p = p - 0.01 * (wanted[name][t] + 0.1 * p)
        assert_close(path[-1][name], jnp.asarray(p), rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4])
@pytest.mark.parametrize(("exponent", "graft"), [(2, None), (None, None), (2, "adam")])
def test_directions_do_not_know_the_scale(scale, exponent, graft):
    # Adam's own epsilon is absolute; beside gradients of 1e-8 it must not be the scale.
    s = Setting(graft=graft, exponent=exponent, every=5, delay=2, start=2, eps=1e-16)
    tx, grads = _scale_invariant(s), gradients(SMALL, 20)
    one = updates(tx, grads, "float32")
    other = updates(tx, {name: scale * g for name, g in grads.items()}, "float32")
    for name in SMALL:
        for a, b in zip(one[name], other[name], strict=True):
            assert np.vdot(a, b) >= 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


@functools.cache
def _scale_invariant(s: Setting) -> optax.GradientTransformation:
    return ours(s, method="schur_newton")


# --- recordings -------------------------------------------------------------------------------

ONE = {"b1": 0.0, "nesterov": False, "merge_below": 1, "every": 1, "delay": 0, "start": 1}
SCALABLE = Setting(b2=0.999, init_epsilon=1e-6, ridge=1e-6, **ONE)
# file, setting -> settings of ours, momentum after them, leaves. The recorded `blocks_nomerge`
# cuts `w` (5, 7) at multiples of 4, into 4 + 1 and 4 + 3; ours are balanced.
RECORDED: dict[tuple[str, str], tuple[Setting, float, str]] = {
    ("shampoo_2018", "default"): (
        Setting(b2=1.0, init_epsilon=1e-4, ridge=0.0, **ONE),
        0.0,
        "wkz",
    ),
    ("shampoo", "sqrtn"): (dataclasses.replace(SCALABLE, graft="sign", size=128), 0.9, "wkz"),
    ("shampoo", "blocks_nomerge"): (dataclasses.replace(SCALABLE, graft="sgd", size=4), 0.9, "kz"),
}


@pytest.mark.parametrize(
    ("file", "name"), some(RECORDED, ("shampoo_2018", "default"), ("shampoo", "sqrtn"))
)
def test_the_recorded_leaves_come_out_again(file, name, x64):
    s, b1, leaves = RECORDED[file, name]
    hyper = json.loads((GOLDEN / f"{file}.json").read_text())["settings"][name]["hyperparameters"]
    with np.load(GOLDEN / "problem.npz") as f, np.load(GOLDEN / f"{file}.npz") as g:
        params = {leaf: jnp.asarray(f[f"param|{leaf}"]) for leaf in leaves}
        steps = [{leaf: jnp.asarray(f[f"grad|{leaf}"][t]) for leaf in leaves} for t in range(20)]
        wanted = {leaf: g[f"{name}|float64|{leaf}"] for leaf in leaves}
    tx = optax.chain(
        ours(s, root_dtype=jnp.float64),
        optax.trace(b1, nesterov=True) if b1 else optax.identity(),
        optax.scale_by_learning_rate(hyper["lr"]),
    )
    path = trajectory(tx, params, steps)
    for leaf in leaves:
        found = np.stack([p[leaf] for p in path])
        error = np.max(np.abs(found - wanted[leaf]) / (1e-3 + np.abs(wanted[leaf])))
        assert error <= 1e-6, f"{error:.2g} in {leaf}"


# --- time -------------------------------------------------------------------------------------


def statistics_behind(every, delay, start, statistics_every=1, on="host", steps=45) -> list[int]:
    """How many gradients entered the statistics behind the root of each step, seen from outside.

    The gradient is always I and the statistics are a sum: after n gradients they are n·I, and
    with p = 2 the direction is I / n / (1 + ridge); before the first root it is I itself.
    """
    tx = zoo.scale_by_shampoo(
        b1=0.0,
        b2=1.0,
        exponent=2,
        refresh=zoo.Refresh(
            every=every, delay=delay, start=start, statistics_every=statistics_every
        ),
        roots=zoo.Roots(ridge=1e-4, on=on),
    )
    found = updates(tx, {"w": np.broadcast_to(np.eye(3), (steps, 3, 3))}, "float32")["w"][:, 0, 0]
    # n = 1 gives 1/1.0001, the gradient itself exactly 1.
    behind = np.where(found == 1, 0, 1 / (found * (1 + 1e-4)))
    np.testing.assert_allclose(behind, np.rint(behind), atol=1e-2)
    return [int(n) for n in np.rint(behind)]


def by_hand(every, delay, start, statistics_every=1, steps=45) -> list[int]:
    s = Setting(every=every, delay=delay, start=start, statistics_every=statistics_every)
    used = (reference.snapshot_in_use(t, s) for t in range(1, steps + 1))
    return [-(-b // statistics_every) for b in used]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "delay", "start", "statistics_every"), TIMES)
def test_roots_begin_and_are_adopted_by_the_table(every, delay, start, statistics_every):
    arguments = every, delay, start, statistics_every
    assert statistics_behind(*arguments) == by_hand(*arguments)


def test_the_table_is_what_the_contract_says():
    s = Setting(every=20, delay=6, start=3)
    begins = [t for t in range(1, 70) if reference.is_begin(t, s.every, s.start)]
    assert begins == [3, 6, 12, 20, 40, 60]
    assert [reference.adopted_at(b, s) for b in begins] == [6, 12, 18, 26, 46, 66]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "on", "delay", "start"),
    [(4, "host", 4, 4), (4, "device", 0, 4), (16, "host", 16, 10), (16, "device", 0, 10)],
)
def test_the_defaults_of_delay_and_start(every, on, delay, start):
    assert statistics_behind(every, None, None, on=on) == by_hand(every, delay, start)


@pytest.mark.slow
def test_coarse_roots_on_the_device_are_certified_and_nearly_the_same():
    grads = gradients({"w": (12, 8)}, steps=6)
    found = {}
    for tolerance in (None, 0.1):
        tx = zoo.scale_by_shampoo(
            refresh=zoo.Refresh(every=2, start=1),
            roots=zoo.Roots(on="device", tolerance=tolerance),
        )
        update = jax.jit(tx.update)
        state = tx.init(jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads))
        for t in range(6):
            updates, state = update({"w": jnp.float32(grads["w"][t])}, state)
        found[tolerance] = updates
        assert all(layer["failures"] == 0 for layer in zoo.inspect(state).values())
    assert max(layer["iterations"] for layer in zoo.inspect(state).values()) <= 3
    for exact, coarse in zip(*map(jax.tree.leaves, found.values()), strict=True):
        error = jnp.linalg.norm(coarse - exact) / jnp.linalg.norm(exact)
        assert 1e-4 < error < 0.2  # a tenth for each side
