"""SOAP against an independent NumPy reference, under faults, and to the bit wherever it runs."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soap_reference as reference
from flax import nnx
from soap_reference import Setting

import optax_zoo as zoo
from helpers import (
    AlteredTask,
    assert_close,
    assert_finite,
    assert_same,
    enable_x64,
    random_tree,
    some,
)
from optax_zoo import _host
from optax_zoo._shampoo import _bases
from optax_zoo._shampoo._statistics import Stack
from shampoo_reference import gradients

TREE = {
    "matrix": (6, 5),
    "order_3": (4, 3, 5),
    "order_4": (2, 3, 2, 3),
    "vector": (5,),
    "scalar": (),
    "row": (1, 7),
}
SMALL = {"matrix": (6, 5), "order_3": (4, 3, 5), "vector": (5,)}


def ours(s: Setting, on: str = "host", dtype: Any = None) -> optax.GradientTransformation:
    axes = s.layer_axes
    return zoo.scale_by_soap(
        b1=s.b1,
        b2=s.b2,
        nesterov=s.nesterov,
        eps=s.eps,
        layer_axes=axes if axes else None,
        blocks=zoo.Blocks(
            size=s.size,
            merge_below=s.merge_below,
            skip_above=s.skip_above,
            one_sided_above=s.one_sided_above,
        ),
        refresh=zoo.Refresh(
            every=s.every, delay=s.delay, start=s.start, statistics_every=s.statistics_every
        ),
        roots=zoo.Roots(method="eigh", on=on, dtype=dtype),
    )


def updates(tx, grads: dict[str, np.ndarray], dtype: str = "float64") -> dict[str, np.ndarray]:
    """The updates of all steps; the gradients are given, so no error feeds back."""
    leaves = {name: jnp.asarray(g, dtype) for name, g in grads.items()}

    def step(state, g):
        u, state = tx.update(g, state)
        return state, u

    state = tx.init({name: g[0] for name, g in leaves.items()})
    found = jax.jit(lambda state, g: jax.lax.scan(step, state, g)[1])(state, leaves)
    return {name: np.asarray(u, float) for name, u in found.items()}


def worst(actual: dict[str, np.ndarray], desired: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest |error| / |x|, both norms of one leaf at one step, and where."""
    errors = {}
    for name, want in desired.items():
        for t, (a, d) in enumerate(zip(actual[name], want, strict=True), start=1):
            error = np.linalg.norm(a - d) / np.linalg.norm(d)
            errors[f"{name} at step {t}"] = error if np.isfinite(error) else np.inf
    where = max(errors, key=lambda place: errors[place])
    return errors[where], where


def compare(s: Setting, shapes=SMALL, *, tolerance=1e-8, dtype="float64", on="host") -> None:
    grads = gradients(shapes)
    with enable_x64(dtype == "float64"):
        found = updates(ours(s, on), grads, dtype)
    error, where = worst(found, reference.directions(grads, s))
    assert error <= tolerance, f"{error:.2g} in {where}"


# --- the paper --------------------------------------------------------------------------------

# Where a gradient's rounding errors meet a second moment of nothing else, eps is to cover them.
FORMS: dict[str, tuple[Setting, dict[str, Any]]] = {
    "defaults": (Setting(), TREE),
    "unmerged": (Setting(every=7, delay=0, start=4, merge_below=1), {"order_4": (2, 3, 2, 3)}),
    "nesterov": (Setting(nesterov=True, every=7, delay=3, start=3), SMALL),
    "no_momentum": (Setting(b1=0.0, every=5, delay=5, start=3), SMALL),
    "at_once": (Setting(every=1, delay=0, start=1, eps=1e-3), {"square": (5, 5), "vector": (3,)}),
    "sparse_statistics": (Setting(every=20, delay=3, start=5, statistics_every=2), SMALL),
}


@pytest.mark.parametrize("form", some(FORMS, "nesterov"))
def test_the_reference_comes_out_again(form):
    compare(*FORMS[form])


SHAPED: dict[str, tuple[Setting, dict[str, tuple[int, ...]]]] = {
    "blocked": (
        Setting(size=4, merge_below=1),
        {"matrix": (6, 7), "order_3": (5, 2, 4)},
    ),
    "merged_then_blocked": (
        Setting(size=5, merge_below=12),
        {"joins": (2, 5, 3, 4), "never_a_vector": (3, 4), "ones": (1, 6, 1, 2)},
    ),
    "one_sided": (
        Setting(size=64, one_sided_above=8),
        {"vocabulary": (12, 5), "last": (4, 3, 11), "none_left": (9, 10), "small": (8, 8)},
    ),
    "skipped": (Setting(skip_above=8), {"long": (9, 3), "wide": (3, 9), "kept": (8, 3)}),
    "stacked": (
        Setting(layer_axes=1),
        {"matrices": (3, 4, 5), "order_3": (2, 3, 2, 4), "vectors": (4, 6), "scalars": (3,)},
    ),
    "stacked_by_leaf": (
        Setting(layer_axes={"heads": 2, "plain": 0, "experts": 1}, size=4),
        {"heads": (2, 2, 5, 4), "plain": (3, 4), "experts": (3, 4, 3)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPED)
def test_every_shape_agrees(name):
    s, shapes = SHAPED[name]
    compare(dataclasses.replace(s, every=6, delay=2, start=4), shapes)


@pytest.mark.slow
def test_the_device_computes_the_same_bases():
    s = Setting(every=8, delay=3, start=4)
    compare(s, on="device")
    grads = gradients(SMALL)
    device, host = (updates(ours(s, on), grads, "float32") for on in ("device", "host"))
    error, where = worst(device, host)
    assert error <= 1e-4, f"{error:.2g} in {where}"


@pytest.mark.slow
@pytest.mark.parametrize("on", ["host", "device"])
def test_single_precision_follows_double(on):
    compare(Setting(every=6, delay=2, start=4), tolerance=1e-3, dtype="float32", on=on)


@pytest.mark.slow
def test_bases_in_bfloat16_stay_near():
    s, grads = Setting(every=6, delay=2, start=4), gradients(SMALL)
    narrow, wide = (updates(ours(s, dtype=d), grads, "float32") for d in (jnp.bfloat16, None))
    for name in SMALL:
        cosine = np.vdot(narrow[name], wide[name])
        cosine /= np.linalg.norm(narrow[name]) * np.linalg.norm(wide[name])
        assert cosine > 0.999


@pytest.mark.slow
def test_a_block_that_is_not_finite_counts_as_zeros():
    s = Setting(size=4, merge_below=1, every=5, delay=2, start=3)
    grads = gradients({"matrix": (8, 4), "vector": (5,)})
    grads["matrix"][13, 5, 2] = np.nan
    grads["matrix"][20, 1, 1] = np.inf
    grads["vector"][7, 3] = -np.inf
    with enable_x64():
        found = updates(ours(s), grads)
    error, where = worst(found, reference.directions(grads, s))
    assert error <= 1e-8, f"{error:.2g} in {where}"


@pytest.mark.slow
def test_before_the_first_basis_it_is_adam():
    grads = gradients(TREE, 9)
    adam = optax.scale_by_adam(0.95, 0.95, nesterov=True)
    found = updates(zoo.scale_by_soap(nesterov=True), grads, "float32")
    assert_close(found, updates(adam, grads, "float32"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_may_be_pythons_numbers():
    tx = zoo.scale_by_soap()
    params = {"w": jnp.ones((2, 2)), "s": 1.0}
    updates: Any = tx.update(params, tx.init(params))[0]
    np.testing.assert_allclose(updates["s"], 1.0, rtol=1e-5)


@pytest.mark.slow
def test_without_anything_to_precondition_it_is_adam():
    grads = gradients(TREE, 30)
    tx = zoo.scale_by_soap(blocks=zoo.Blocks(skip_above=1), refresh=zoo.Refresh(every=5))
    adam = optax.scale_by_adam(0.95, 0.95)
    assert_close(updates(tx, grads, "float32"), updates(adam, grads, "float32"), rtol=1e-5)


@pytest.mark.slow
def test_directions_do_not_know_the_scale():
    # Adam's own epsilon is absolute; beside gradients of 1e-8 it must not be the scale.
    tx = ours(Setting(every=5, delay=2, start=4, eps=1e-16))
    grads = gradients(SMALL, 20)
    one = updates(tx, grads, "float32")
    other = updates(tx, {name: 1e-8 * g for name, g in grads.items()}, "float32")
    error, where = worst(other, one)
    assert error <= 1e-2, f"{error:.2g} in {where}"


@pytest.mark.slow
def test_soap_is_the_chain_of_its_parts(x64):
    s = Setting(every=5, delay=5, start=4)
    tx = zoo.soap(0.01, weight_decay=0.1, refresh=zoo.Refresh(every=5, delay=5, start=4))
    grads = gradients(SMALL, 20)
    params = {name: jnp.asarray(g[0]) for name, g in grads.items()}
    state, update = tx.init(params), jax.jit(tx.update)
    wanted = {name: np.asarray(p) for name, p in params.items()}
    for t, directions in enumerate(zip(*reference.directions(grads, s).values(), strict=True)):
        step = {name: jnp.asarray(g[t]) for name, g in grads.items()}
        moves, state = update(step, state, params)
        params = optax.apply_updates(params, moves)
        for name, d in zip(grads, directions, strict=True):
            wanted[name] = wanted[name] - 0.01 * (d + 0.1 * wanted[name])
    assert_close(params, jax.tree.map(jnp.asarray, wanted), rtol=1e-8, atol=1e-10)


# --- from one basis to the next ---------------------------------------------------------------

STACKS = [
    Stack(group=0, order=4, axes=(0,), length=2, exponent=4),
    Stack(group=0, order=3, axes=(1,), length=2, exponent=4),
]


def moments() -> _bases.Moments:
    rng = np.random.default_rng(0)
    mu, nu = rng.normal(size=(2, 4, 3)), rng.uniform(size=(2, 4, 3))
    return _bases.Moments(jnp.asarray(mu), jnp.asarray(nu))


def carried(left: np.ndarray, right: np.ndarray) -> _bases.Moments:
    turns = [np.broadcast_to(turn, (2, 1, *turn.shape)) for turn in (left, right)]
    parts = [(stack, jnp.asarray(turn)) for stack, turn in zip(STACKS, turns, strict=True)]
    return _bases.carried(parts, moments())


@pytest.mark.slow
def test_other_signs_and_another_order_change_signs_and_order_alone(x64):
    left = np.eye(4)[[2, 0, 3, 1]] * np.array([1, -1, -1, 1])
    right = np.diag([-1.0, 1.0, -1.0])
    found, (mu, nu, _) = carried(left, right), moments()
    np.testing.assert_array_equal(found.mu, left[None] @ np.asarray(mu) @ right.T[None])
    np.testing.assert_array_equal(found.nu, np.asarray(nu)[:, [2, 0, 3, 1]])


def test_a_turn_keeps_the_norm_and_the_total_variance(x64):
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (4, 3))
    found, (mu, nu, _) = carried(left, right), moments()
    back = left.T[None] @ np.array(found.mu) @ right[None]
    np.testing.assert_allclose(back, np.asarray(mu), atol=1e-14)
    np.testing.assert_allclose(found.nu.sum((1, 2)), nu.sum((1, 2)), rtol=1e-13)
    assert np.all(np.asarray(found.nu) >= np.asarray(nu).min())
    assert np.all(np.asarray(found.nu) <= np.asarray(nu).max())


def test_no_first_moment_is_kept_without_momentum():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    states = [zoo.scale_by_soap(b1=b1).init(params) for b1 in (0.0, 0.9)]
    without, with_momentum = (sum(x.size for x in jax.tree.leaves(s)) for s in states)
    assert with_momentum - without == 4 * 3 + 3


# --- purity -----------------------------------------------------------------------------------

SHAPES = {"weight": (6, 4), "other": (4, 4, 3), "bias": (5,)}
EVERY = 5


@functools.cache
def optimizer(on: str = "host") -> optax.GradientTransformation:
    return zoo.soap(
        0.01,
        weight_decay=0.01,
        refresh=zoo.Refresh(every=EVERY, delay=2, start=EVERY),
        roots=zoo.Roots(method="eigh", on=on),
    )


@functools.cache
def step(tx: optax.GradientTransformation):
    def advance(carry, noise):
        params, state = carry
        grads = jax.tree.map(lambda p, n: p + 0.3 * n, params, noise)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(advance)


def begin(tx) -> Any:
    params = random_tree(0, shapes=SHAPES)
    return params, tx.init(params)


def go(tx, carry, first: int, last: int, change=lambda noise: noise) -> Any:
    for t in range(first, last):
        carry = step(tx)(carry, change(random_tree(100 + t, shapes=SHAPES)))
    return jax.block_until_ready(carry)


def test_inline_and_restored_it_is_the_same_to_the_bit():
    tx = optimizer()
    wanted = go(tx, begin(tx), 0, 8 * EVERY)
    with _host.inline():
        assert_same(go(tx, begin(tx), 0, 8 * EVERY), wanted)
    halfway = go(tx, begin(tx), 0, 4 * EVERY + 1)  # bases begun, not adopted
    restored = jax.tree.map(lambda x: jnp.asarray(np.array(x)), halfway)
    with _host.inline():  # forgets what was begun
        pass
    assert_same(go(tx, restored, 4 * EVERY + 1, 8 * EVERY), wanted)


@pytest.mark.slow
def test_scan_is_the_loop_to_the_bit():
    tx = optimizer()
    noises = [random_tree(100 + t, shapes=SHAPES) for t in range(4 * EVERY)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *noises)
    run = jax.jit(lambda c, n: jax.lax.scan(lambda c, n: (step(tx)(c, n), None), c, n)[0])
    beside = run(begin(tx), stacked)
    with _host.inline():
        assert_same(run(begin(tx), stacked), beside)
    assert_close(beside, go(tx, begin(tx), 0, 4 * EVERY), rtol=1e-4, atol=1e-5)


# --- faults -----------------------------------------------------------------------------------


def alter(monkeypatch, function) -> None:
    """Lets another function run the items of all host tasks."""

    def altered(real):
        return lambda task, *rest: real(AlteredTask(task, function), *rest)

    for name in ("begin", "redeem"):
        monkeypatch.setattr(_host, name, altered(getattr(_host, name)))


def report(carry: Any, leaf: str) -> dict[str, float]:
    """What `inspect` says of a leaf."""
    return zoo.inspect(carry[1], carry[0])[leaf]


def bases_of(carry: Any) -> list[jax.Array]:
    soap_state = carry[1][0]  # of the chain
    return [own.bases for own in soap_state.bases]


@contextlib.contextmanager
def other_eigh(eigh) -> Iterator[None]:
    """NumPy's `eigh` replaced; what it gave is not kept for later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.linalg, "eigh", eigh)
        with _host.inline():
            yield
    with _host.inline():
        pass


def without_convergence(matrices: np.ndarray) -> Any:
    raise np.linalg.LinAlgError("Eigenvalues did not converge")


@pytest.mark.slow
def test_a_decomposition_that_fails_keeps_the_last_bases():
    tx = optimizer()
    carry = go(tx, begin(tx), 0, EVERY + 2)
    assert report(carry, "weight")["age"] == 2
    before = bases_of(carry)
    with other_eigh(without_convergence):
        carry = go(tx, carry, EVERY + 2, 2 * EVERY + 4)
    assert_same(bases_of(carry), before)
    assert report(carry, "weight")["failures"] == 2  # both factors
    assert report(carry, "weight")["age"] == 2 + EVERY + 2
    assert_finite(carry)
    carry = go(tx, carry, 2 * EVERY + 4, 5 * EVERY)
    found = report(carry, "weight")
    assert found["failures"] == 2
    assert found["age"] < 2 * EVERY
    assert 0 < found["residual"] < 1e-12
    assert 1 <= found["condition"] < 1e6


@pytest.mark.parametrize("wrong", ["turned", "stretched"])
def test_a_wrong_basis_is_not_certified(wrong):
    def eigh(matrices):
        values, vectors = real(matrices)
        return values, vectors[..., ::-1, :] if wrong == "turned" else 1.01 * vectors

    real, tx = np.linalg.eigh, optimizer()
    start = begin(tx)
    with other_eigh(eigh):
        carry = go(tx, start, 0, 2 * EVERY)
    assert_same(bases_of(carry), bases_of(start))
    assert (report(carry, "weight")["failures"], report(carry, "weight")["age"]) == (2, -1)


def test_results_that_are_not_numbers_are_not_adopted(monkeypatch):
    tx = optimizer()
    with monkeypatch.context() as patch:
        alter(patch, lambda task, item: jax.tree.map(lambda x: x * np.nan, task.run(item)))
        carry = go(tx, begin(tx), 0, 2 * EVERY + 4)
    assert_finite(carry)
    assert report(carry, "weight")["failures"] == 4
    carry = go(tx, carry, 2 * EVERY + 4, 5 * EVERY)
    assert_finite(carry)
    assert report(carry, "weight")["failures"] == 4


@pytest.mark.slow
def test_no_call_of_lapack_on_the_device_has_a_batch():
    # On CPUs several of those at once, or one beside collectives, wait for ever.
    tx = zoo.scale_by_soap(roots=zoo.Roots(method="eigh", on="device"))
    params = {"w": jnp.ones((4, 3)), "k": jnp.ones((4, 3))}
    program = jax.jit(tx.update).lower(params, tx.init(params)).as_text()
    calls = [line for line in program.splitlines() if "lapack" in line]
    assert calls
    assert all(re.search(r": \(tensor<\d+x\d+xf32>\) ->", line) for line in calls)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["host", "device"])
def test_zero_gradients_have_no_basis_and_are_counted(on):
    tx = zoo.scale_by_soap(
        refresh=zoo.Refresh(every=2, delay=0), roots=zoo.Roots(method="eigh", on=on)
    )
    params = {"w": jnp.zeros((4, 3)), "k": jnp.ones((4, 3))}
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(4):
        found, state = update(params, state)
    assert_finite((found, state))
    reports = zoo.inspect(state, params)
    assert (reports["w"]["failures"], reports["k"]["failures"]) == (4, 0)
    assert (reports["w"]["age"], reports["k"]["age"]) == (-1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["host", "device"])
@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_a_bad_gradient_in_one_leaf_is_survived_and_counted(on, value):
    tx = optimizer(on)

    def spoil(noise):
        return {**noise, "weight": noise["weight"].at[1, 1].set(value)}

    carry = go(tx, begin(tx), 0, 7)
    carry = go(tx, carry, 7, 10, spoil)
    carry = go(tx, carry, 10, 4 * EVERY)
    assert_finite(carry)
    assert (report(carry, "weight")["skipped"], report(carry, "other")["skipped"]) == (3, 0)
    assert report(carry, "weight")["failures"] == 0


# --- reports ----------------------------------------------------------------------------------


def test_the_report_of_a_short_training():
    tx, ages = optimizer(), []
    carry = begin(tx)
    for t in range(13):
        carry = go(tx, carry, t, t + 1)
        ages.append(report(carry, "weight")["age"])
    # Begun at 5 and 10, adopted two steps later.
    assert ages == [-1] * 6 + [2, 3, 4, 5, 6, 2, 3]
    bias = report(carry, "bias")
    assert (bias["age"], bias["residual"], bias["condition"]) == (-1, 0, 0)
    assert report(carry, "weight")["iterations"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("on", ["host", "device"])
def test_the_condition_is_that_of_the_statistic(on):
    tx = zoo.scale_by_soap(
        refresh=zoo.Refresh(every=1, delay=0), roots=zoo.Roots(method="eigh", on=on)
    )
    grads = {"w": jnp.diag(jnp.array([10.0, 3.0, 2.0, 1.0])), "s": jnp.ones((3, 3))}
    found = zoo.inspect(tx.update(grads, tx.init(grads))[1], grads)
    np.testing.assert_allclose(found["w"]["condition"], 100, rtol=1e-5)
    np.testing.assert_allclose(found["s"]["condition"], 2.0**23, rtol=1e-5)  # nothing is left of 0


@pytest.mark.slow
def test_the_optimizer_of_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    assert model.bias is not None
    start = {"kernel": model.kernel[...], "bias": model.bias[...]}
    tx = zoo.soap(0.1, eps=1e-3, refresh=zoo.Refresh(every=1, delay=0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    grads = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))  # not the parameters themselves
    state = tx.init(start)
    wanted = start
    for _ in range(2):
        step(model, optimizer, grads)
        moves, state = tx.update(start, state)
        wanted = optax.apply_updates(wanted, moves)
    assert_close({"kernel": model.kernel[...], "bias": model.bias[...]}, wanted)
    found = zoo.inspect(optimizer, grads)
    assert (found["kernel"]["age"], found["bias"]["age"]) == (0, -1)


@pytest.mark.slow
def test_names_under_a_mask():
    params = {"block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "head": [jnp.ones(2)]}
    mask = {"block": {"kernel": True, "bias": False}, "head": [True]}
    state = optax.masked(zoo.scale_by_soap(), mask).init(params)
    assert set(zoo.inspect(state, params)) == {"block/kernel", "head/0"}
