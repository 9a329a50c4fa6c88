"""Shampoo under faults: broken workers, broken gradients, degenerate statistics, bad arguments."""

import functools
import itertools
import logging
import math
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import AlteredTask, assert_finite, assert_same, random_tree, slow, some
from optax_zoo import _host

SHAPES = {"weight": (6, 4), "other": (4, 4, 3), "bias": (5,)}
EVERY = 5


@functools.cache
def optimizer(on: str = "host", method: str = "schur_newton", statistics_every: int = 1):
    return zoo.shampoo(
        0.01,
        refresh=zoo.Refresh(every=EVERY, delay=2, start=EVERY, statistics_every=statistics_every),
        roots=zoo.Roots(method=method, on=on),
    )


@functools.cache
def step(tx: optax.GradientTransformation):
    def advance(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(advance)


@functools.cache
def scanned(tx: optax.GradientTransformation):
    one = step(tx)
    return jax.jit(
        lambda carry, grads, steps: jax.lax.scan(
            lambda c, _: (one(c, grads), None), carry, length=steps
        )[0],
        static_argnums=2,
    )


def begin(tx) -> Any:
    params = random_tree(0, shapes=SHAPES)
    return params, tx.init(params)


def gradient(t: int, scale: float = 1.0) -> Any:
    return jax.tree.map(lambda g: scale * g, random_tree(100 + t, shapes=SHAPES))


def go(tx, carry, first: int, last: int, change=lambda grads: grads) -> Any:
    for t in range(first, last):
        carry = step(tx)(carry, change(gradient(t)))
    return jax.block_until_ready(carry)


def report(carry: Any, leaf: str) -> dict[str, float]:
    """What `inspect` says of a leaf."""
    params, state = carry
    found = [v for name, v in zoo.inspect(state, params).items() if leaf in name]
    assert len(found) == 1, f"one layer is named after {leaf!r}"
    return {key: float(value) for key, value in found[0].items()}


def complaints(carry: Any, leaf: str) -> float:
    """Refreshes that failed and gradients left out."""
    found = report(carry, leaf)
    return found["failures"] + found.get("skipped", 0.0)


def assert_recovered(carry: Any, leaves=("weight", "other")) -> None:
    assert_finite(carry)
    for leaf in leaves:
        found = report(carry, leaf)
        assert 0 <= found["age"] <= 2 * EVERY, found
        assert 0 <= found["residual"] < 0.1, found
        assert 1 <= found["condition"] < 2e4, found


def assert_moves(tx, carry: Any, t: int) -> None:
    """Every parameter still learns."""
    (after, _) = step(tx)(carry, gradient(t))
    for name, p in carry[0].items():
        assert np.any(np.asarray(after[name]) != np.asarray(p)), name


# --- the host ---------------------------------------------------------------------------------


def alter(monkeypatch, function) -> None:
    """Lets another function run the items of all host tasks."""

    def altered(real):
        return lambda task, *rest: real(AlteredTask(task, function), *rest)

    for name in ("begin", "redeem"):
        monkeypatch.setattr(_host, name, altered(getattr(_host, name)))


@functools.cache
def undisturbed() -> Any:
    """The carry after four intervals."""
    return go(optimizer(), begin(optimizer()), 0, 4 * EVERY)


def raises_once(calls=itertools.count()):  # noqa: B008
    if next(calls) % 20 == 0:
        raise RuntimeError("injected")


def raises_in_workers():
    if threading.current_thread().name.startswith("optax_zoo"):
        raise MemoryError("injected")


def is_slow():
    time.sleep(0.05)


@pytest.mark.parametrize("disturb", [raises_in_workers, *slow(raises_once, is_slow)])
def test_a_failing_or_slow_worker_changes_nothing(disturb, monkeypatch, caplog):
    wanted = undisturbed()

    def run(task, item):
        disturb()
        return task.run(item)

    alter(monkeypatch, run)
    with caplog.at_level(logging.DEBUG, "optax_zoo"):
        found = go(optimizer(), begin(optimizer()), 0, 4 * EVERY)
    assert_same(found, wanted)
    assert disturb is is_slow or "injected" in caplog.text


def test_a_dead_pool_changes_nothing(monkeypatch, caplog):
    wanted = undisturbed()

    def start(self):
        raise RuntimeError("cannot start new thread after shutdown")

    with _host.inline():  # forgets what is known
        pass
    carry = go(optimizer(), begin(optimizer()), 0, EVERY + 1)
    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "optax_zoo"):
        patch.setattr(threading.Thread, "start", start)
        carry = go(optimizer(), carry, EVERY + 1, 3 * EVERY)
    assert_same(go(optimizer(), carry, 3 * EVERY, 4 * EVERY), wanted)
    assert caplog.records


def to_nan(x: Any) -> Any:
    x = np.asarray(x)
    return np.full_like(x, np.nan) if np.issubdtype(x.dtype, np.floating) else x


@pytest.mark.slow
def test_roots_that_are_not_numbers_are_not_adopted(monkeypatch):
    tx = optimizer()
    with monkeypatch.context() as patch:
        alter(patch, lambda task, item: jax.tree.map(to_nan, task.run(item)))
        carry = go(tx, begin(tx), 0, 2 * EVERY + 4)
    assert_finite(carry)
    before = complaints(carry, "weight")
    assert before > 0
    carry = go(tx, carry, 2 * EVERY + 4, 5 * EVERY)
    assert_recovered(carry)
    assert complaints(carry, "weight") == before


# --- gradients --------------------------------------------------------------------------------


def spoil(value: float, *leaves: str):
    return lambda grads: {
        name: g.at[(1,) * g.ndim].set(value) if name in leaves else g for name, g in grads.items()
    }


@pytest.mark.parametrize(
    ("on", "value", "steps"),
    some(
        [("host", v, s) for v in (math.nan, math.inf, -math.inf, 1e30) for s in (1, 100)]
        + [("device", math.nan, 1)],
        ("host", math.nan, 1),
    ),
)
def test_a_bad_gradient_in_one_leaf_is_survived_and_counted(on, value, steps):
    tx = optimizer(on)
    carry = go(tx, begin(tx), 0, 7)
    carry = go(tx, carry, 7, 7 + steps, spoil(value, "weight"))
    assert_finite(carry)
    assert complaints(carry, "weight") >= 1
    assert complaints(carry, "other") == 0
    before = complaints(carry, "weight")
    carry = go(tx, carry, 7 + steps, 7 + steps + 2 * EVERY)
    assert_recovered(carry)
    assert complaints(carry, "weight") == before
    assert_moves(tx, carry, 500)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_from_the_start_leaves_the_others_alone(value):
    tx = optimizer()
    carry = go(tx, begin(tx), 0, 3 * EVERY, spoil(value, "weight", "bias"))
    assert_finite(carry)
    assert complaints(carry, "weight") > 0
    clean = go(tx, begin(tx), 0, 3 * EVERY)
    np.testing.assert_array_equal(carry[0]["other"], clean[0]["other"])
    assert_recovered(go(tx, carry, 3 * EVERY, 6 * EVERY))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "trained"), [("host", 0), ("host", 3 * EVERY), ("device", 3 * EVERY)]
)
def test_a_thousand_zero_gradients(on, trained):
    tx = optimizer(on)
    carry = go(tx, begin(tx), 0, trained)
    zeros = jax.tree.map(jnp.zeros_like, carry[0])
    carry = jax.block_until_ready(scanned(tx)(carry, zeros, 1000))
    assert_finite(carry)
    if not trained:
        assert_same(carry[0], begin(tx)[0])
    carry = go(tx, carry, trained, trained + 3 * EVERY)
    assert_recovered(carry)
    assert_moves(tx, carry, 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "method"),
    [
        ("host", "schur_newton"),
        ("host", "eigh"),
        ("device", "schur_newton"),
        ("device", "eigh"),
    ],
)
def test_statistics_of_rank_one(on, method):
    tx = optimizer(on, method)
    grads = {
        name: functools.reduce(jnp.multiply.outer, [jnp.arange(1.0, n + 1) for n in shape])
        for name, shape in SHAPES.items()
    }
    carry = jax.block_until_ready(scanned(tx)(begin(tx), grads, 50))
    assert_finite(carry)
    for leaf in ("weight", "other"):
        assert report(carry, leaf)["failures"] == 0
        assert report(carry, leaf)["residual"] < 0.1
    assert_recovered(go(tx, carry, 0, 10 * EVERY))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "scale", "statistics_every"),
    [("host", 1e-30, 1), ("host", 1e30, 2), ("device", 1e-30, 1)],
)
def test_gradients_out_of_all_proportion(on, scale, statistics_every):
    tx = optimizer(on, statistics_every=statistics_every)
    carry = go(tx, begin(tx), 0, 3 * EVERY, functools.partial(jax.tree.map, lambda g: scale * g))
    assert_finite(carry)
    assert complaints(carry, "weight") > 0 or report(carry, "weight")["residual"] < 0.1
    if scale > 1:
        assert complaints(carry, "weight") > 0
    carry = go(tx, carry, 3 * EVERY, 8 * EVERY)
    assert_recovered(carry)
    assert_moves(tx, carry, 500)


@pytest.mark.slow
def test_a_factor_without_a_root_keeps_to_the_scale_of_its_neighbours():
    """Half of a blocked leaf sees no gradient until the roots of the other half are in use."""
    tx = zoo.scale_by_shampoo(
        b1=0.0,
        exponent=2,
        blocks=zoo.Blocks(size=4, merge_below=1),
        refresh=zoo.Refresh(every=10, delay=0, start=10),
    )
    update = jax.jit(tx.update)
    state = tx.init({"w": jnp.zeros((8, 4))})
    for t in range(14):
        g = 1e-3 * random_tree(t, shapes={"w": (8, 4)})["w"]
        u, state = update({"w": g if t >= 11 else g.at[:4].set(0)}, state)
        assert_finite(u)
    without, with_roots = np.linalg.norm(u["w"][:4]), np.linalg.norm(u["w"][4:])
    assert 0.05 < without / with_roots < 20  # the identity: 1e-6


# --- arguments --------------------------------------------------------------------------------

BAD: dict[str, dict[str, list[Any]]] = {
    "scale_by_shampoo": {
        "exponent": [0, -2, 1.5],
        "b2": [1.5],
        "init_epsilon": [-1.0],
        "graft_to": ["sgd"],
    },
    "inverse_pth_root": {"p": [0, 0.5], "method": ["newton"], "ridge": [-1e-6]},
    "Refresh": {
        "every": [0, 2.5],
        "delay": [11, -1],
        "start": [0, 11],
        "statistics_every": [0],
        "drift_every": [0, 2.5],
    },
    "Blocks": {"size": [1, -4, 2.5], "merge_below": [0], "one_sided_above": [-1]},
    "Roots": {"method": ["newton"], "on": ["tpu"], "ridge": [-1e-6, math.nan]},
}
BAD_CASES = [
    (name, argument, value)
    for name, arguments in BAD.items()
    for argument, values in arguments.items()
    for value in values
]


@pytest.mark.parametrize(("name", "argument", "value"), BAD_CASES)
def test_a_bad_argument_is_named_with_its_value_and_a_remedy(name, argument, value):
    arguments = {"matrix": jnp.eye(3), "p": 2} if name == "inverse_pth_root" else {}
    with pytest.raises((ValueError, TypeError), match=f"^{argument} must") as error:
        getattr(zoo, name)(**{**arguments, argument: value})
    assert repr(value) in str(error.value)
    assert ";" in str(error.value), "no remedy"


FIXES_THE_PROGRAM = {
    "size": lambda value: {"blocks": zoo.Blocks(size=value)},
    "every": lambda value: {"refresh": zoo.Refresh(every=value)},
    "delay": lambda value: {"refresh": zoo.Refresh(every=4, delay=value)},
    "ridge": lambda value: {"roots": zoo.Roots(ridge=value)},
    "exponent": lambda value: {"exponent": value},
    "layer_axes": lambda value: {"layer_axes": value},
}


@pytest.mark.parametrize("name", FIXES_THE_PROGRAM)
def test_a_traced_value_that_fixes_the_program_names_static_args(name):
    def build(learning_rate, value):
        return zoo.shampoo(learning_rate, **FIXES_THE_PROGRAM[name](value))

    tx = optax.inject_hyperparams(build)(learning_rate=1e-3, value=2)
    with pytest.raises((TypeError, ValueError), match=f"{name}.*static_args"):
        tx.init({"w": jnp.ones((4, 3))})


@pytest.mark.slow
def test_numbers_may_be_traced():
    tx = optax.inject_hyperparams(zoo.shampoo)(
        learning_rate=lambda t: 1e-3 / (1 + t), refresh=zoo.Refresh(every=2, delay=0)
    )
    params = {"w": jnp.ones((4, 3))}
    params, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert_finite((params, state))
