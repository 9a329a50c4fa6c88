"""When Shampoo gathers, begins and adopts; its calls to the host; its composition; its bytes."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import assert_close, assert_finite, assert_same, one_step, random_tree
from optax_zoo import _host
from optax_zoo._shampoo._schedule import Schedule

LAST = np.iinfo(np.int32).max

# --- the schedule against its definition ------------------------------------------------------


def begin_steps(every: int, start: int, until: int) -> list[int]:
    """S, 2S, 4S … while below N, then N and every multiple of it."""
    ramp = itertools.takewhile(lambda t: t < every, (start * 2**i for i in itertools.count()))
    return [*ramp, *range(every, until + 1, every)]


def simulated(every: int, delay: int, start: int, until: int) -> dict[int, tuple[int, bool]]:
    """Step by step: (age of the root in use or -1, whether it was adopted in this step)."""
    begins = begin_steps(every, start, until + 2 * every)
    age, flying, found = -1, None, {}
    for t in range(1, until + 1):
        age += age >= 0
        adopted = False
        if flying is not None and t == min(flying + delay, min(b for b in begins if b > flying)):
            age, flying, adopted = t - flying, None, True
        if t in begins:
            assert flying is None, "one refresh is in flight at most"
            flying = t
            if delay == 0:
                age, flying, adopted = 0, None, True
        found[t] = age, adopted
    return found


def asked(refresh: zoo.Refresh, steps: np.ndarray) -> Any:
    """What a `Schedule` says of many steps: begins, adopts, ages, gathers."""
    schedule = Schedule(refresh, on_host=True)

    def one(t):  # not jitted: its few operations are compiled once for all settings
        adopts, age = schedule.adopts(t) if schedule.delay else (False, -1)
        return schedule.begins(t), adopts, age, schedule.gathers(t)

    found = jax.vmap(one)(jnp.asarray(steps, jnp.int32))
    return [np.broadcast_to(x, steps.shape) for x in found]


GRID = [
    (every, delay, start)
    for every in (1, 2, 3, 5, 8, 10, 13)
    for delay in sorted({0, 1, every // 2, every - 1, every})
    for start in sorted({1, 2, 3, every // 2, every - 1, every})
    if 1 <= start <= every
]


@pytest.mark.parametrize("every", sorted({every for every, _, _ in GRID}))
def test_begin_and_adopt_steps_and_ages(every):
    until = 80
    steps = np.arange(1, until + 1)
    for _, delay, start in (setting for setting in GRID if setting[0] == every):
        begins, adopts, ages, _ = asked(zoo.Refresh(every, delay, start), steps)
        assert steps[begins].tolist() == [
            b for b in begin_steps(every, start, until) if b <= until
        ], (every, delay, start)
        expected = simulated(every, delay, start, until)
        if delay == 0:  # adopted where it is begun
            assert not adopts.any()
            continue
        adopted = {t: age for t, (age, now) in expected.items() if now}
        found = dict(zip(steps[adopts].tolist(), ages[adopts].tolist(), strict=True))
        assert found == adopted, (every, delay, start)


@pytest.mark.parametrize(
    ("every", "start", "ramp"),
    [
        (200, None, [10, 20, 40, 80, 160]),
        (200, 1, [1, 2, 4, 8, 16, 32, 64, 128]),
        (160, 10, [10, 20, 40, 80]),
        (161, 10, [10, 20, 40, 80, 160]),
        (10, None, []),
        (3, None, []),
        (11, None, [10]),
        (8, 8, []),
        (8, 5, [5]),
        (1, 1, []),
        (2**29 + 1, 1, [2**i for i in range(30)]),
    ],
)
def test_the_ramp_doubles_below_the_interval(every, start, ramp):
    assert Schedule(zoo.Refresh(every=every, start=start), on_host=True).ramp == ramp


@pytest.mark.parametrize(("on_host", "delay"), [(True, 7), (False, 0)])
def test_the_delay_is_the_interval_on_the_host_and_none_on_the_device(on_host, delay):
    assert Schedule(zoo.Refresh(every=7), on_host=on_host).delay == delay
    assert Schedule(zoo.Refresh(every=7, delay=3), on_host=on_host).delay == 3


@pytest.mark.parametrize("statistics_every", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("every", [1, 5])
def test_statistics_grow_in_the_first_step_and_every_so_often(every, statistics_every):
    steps = np.arange(1, 61)
    *_, gathers = asked(zoo.Refresh(every, statistics_every=statistics_every), steps)
    assert steps[gathers].tolist() == list(range(1, 61, statistics_every))


# --- the end of int32 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "statistics_every"),
    [(1, 1), (7, 1), (10, 3), (6, 4), (2**20, 3), (1_000_003, 7), (2**29, 1), (2**30 - 1, 1)],
)  # fmt: skip
def test_the_count_goes_back_by_whole_periods(every, statistics_every):
    refresh = zoo.Refresh(every=every, statistics_every=statistics_every)
    schedule = Schedule(refresh, on_host=True)
    next_count = jax.jit(schedule.next_count)
    assert int(next_count(jnp.int32(0))) == 1
    assert int(next_count(jnp.int32(LAST - 1))) == LAST
    after = int(next_count(jnp.int32(LAST)))
    period = math.lcm(every, statistics_every)
    assert every < after < LAST, "beyond the ramp and the first refresh"
    assert (LAST + 1 - after) % period == 0


@pytest.mark.parametrize(
    ("every", "delay", "statistics_every"), [(5, 2, 1), (6, 6, 4), (7, 7, 3), (4, 0, 3), (1, 1, 1)]
)
def test_every_phase_is_kept_across_the_end(every, delay, statistics_every):
    refresh = zoo.Refresh(every, delay, statistics_every=statistics_every)
    schedule = Schedule(refresh, on_host=True)
    period = math.lcm(every, statistics_every)
    true = np.arange(LAST - 3 * period, LAST + 3 * period)  # int64: beyond the end
    count, counts = jnp.int32(LAST - 3 * period - 1), []
    next_count = jax.jit(schedule.next_count)
    for _ in true:
        count = next_count(count)
        counts.append(int(count))
    assert min(counts) > every
    begins, adopts, _, gathers = asked(refresh, np.array(counts))
    np.testing.assert_array_equal(begins, true % every == 0)
    np.testing.assert_array_equal(gathers, (true - 1) % statistics_every == 0)
    if delay:
        np.testing.assert_array_equal(adopts, (true - delay) % every == 0)


# --- small runs -------------------------------------------------------------------------------

SHAPES = {"w": (4, 3), "k": (4, 4), "b": (3,)}


@functools.cache
def optimizer(
    every: int = 5, delay: int | None = 2, start: int | None = 1, **options: Any
) -> optax.GradientTransformationExtraArgs:
    return zoo.shampoo(
        0.01,
        refresh=zoo.Refresh(every=every, delay=delay, start=start),
        roots=options.pop("roots", zoo.Roots(method="eigh")),
        **options,
    )


@functools.cache
def compiled(tx: optax.GradientTransformation) -> Any:
    return jax.jit(one_step(tx))


def gradient(t: int) -> Any:
    return random_tree(t, shapes=SHAPES)


def run(tx, steps: int, state: Any = None, first: int = 1) -> tuple[Any, Any]:
    params = gradient(0)
    state = tx.init(params) if state is None else state
    for t in range(first, first + steps):
        params, state = compiled(tx)(params, state, gradient(t))
    return params, state


def with_count(state: Any, count: int) -> Any:
    shampoo, *others = state
    return (shampoo._replace(count=jnp.int32(count)), *others)


@pytest.mark.slow
def test_a_run_across_the_end_of_int32_is_like_any_other():
    tx, (_, state) = optimizer(), run(optimizer(), 16)
    # The same phase of the interval, long after bias correction has ended.
    near = LAST - 4
    far, _ = run(tx, 9, with_count(state, near - 10**9), first=17)
    across, after = run(tx, 9, with_count(state, near), first=17)
    assert 0 < int(after[0].count) < LAST
    assert_same(across, far)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "delay", "start"), [(5, 2, 1), (4, 4, 1), (3, 0, 2)])
def test_the_host_is_called_in_begin_and_adopt_steps_alone(monkeypatch, every, delay, start):
    calls = []
    for name in ("begin", "redeem"):
        original = getattr(_host, name)

        def counted(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(_host, name, counted)
    tx = optimizer(every, delay, start)
    params, state, found, ages = gradient(0), tx.init(gradient(0)), {}, {}
    until = 3 * every + 2
    for t in range(1, until + 1):
        calls.clear()
        params, state = jax.block_until_ready(compiled(tx)(params, state, gradient(t)))
        jax.effects_barrier()
        found[t] = sorted(calls)
        ages[t] = zoo.inspect(state)["1"]["age"]
    expected = simulated(every, delay, start, until)
    begun = begin_steps(every, start, until) if delay else []
    for t in range(1, until + 1):
        assert ages[t] == expected[t][0]
        assert found[t] == ["begin"] * (t in begun) + ["redeem"] * expected[t][1], t
    assert compiled(tx)._cache_size() == 1


@pytest.mark.slow
def test_statistics_every_leaves_gradients_out():
    tx = zoo.scale_by_shampoo(
        refresh=zoo.Refresh(every=6, statistics_every=3), roots=zoo.Roots(method="eigh")
    )
    update, state = jax.jit(tx.update), tx.init(gradient(0))
    weights = []
    for t in range(1, 6):
        _, state = update(gradient(t), state)
        weights.append(float(state.factors[0].weight[0]))
    np.testing.assert_allclose(weights, [0.05] * 3 + [1 - 0.95**2] * 2, rtol=1e-5)


# --- under transformations --------------------------------------------------------------------


@pytest.mark.slow
def test_under_vmap_each_run_is_like_alone():
    def gradient(t):
        return random_tree(t, shapes={"k": (4, 4), "b": (3,)})

    tx = optimizer()
    params = jax.vmap(lambda i: jax.tree.map(lambda p: p + i, gradient(0)))(jnp.arange(3.0))
    state: Any = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(one_step(tx)))
    alone: list[Any] = [jax.tree.map(lambda x, i=i: x[i], (params, state)) for i in range(3)]
    for t in range(1, 9):
        grads = [jax.tree.map(lambda g, i=i: (1 + i) * g, gradient(10 * t + i)) for i in range(3)]
        params, state = step(params, state, jax.tree.map(lambda *g: jnp.stack(g), *grads))
        alone = [compiled(tx)(*carry, g) for carry, g in zip(alone, grads, strict=True)]
    for i, (expected, last) in enumerate(alone):
        assert_close(jax.tree.map(lambda x, i=i: x[i], params), expected, rtol=1e-4, atol=1e-5)
        assert int(last[0].report.age[1]) == int(state[0].report.age[i, 1]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("on", "delay"), [("host", 0), ("host", 1), ("device", 0)])
def test_gradients_flow_through_update_and_roots_are_constants(on, delay):
    shapes = {"k": (3, 3), "b": (3,)}
    tx = optimizer(1, delay, 1, roots=zoo.Roots(method="eigh", on=on))
    grads, weights = random_tree(1, shapes=shapes), random_tree(2, shapes=shapes)
    _, state = jax.jit(tx.update)(grads, tx.init(grads))

    def loss(grads: Any) -> Any:  # an update that adopts and begins
        updates: Any = tx.update(grads, state)[0]
        return jnp.vdot(updates["k"], weights["k"]) + jnp.vdot(updates["b"], weights["b"])

    found = jax.jit(jax.grad(loss))(grads)
    assert_finite(found)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in found.values())


@pytest.mark.slow
def test_the_derivative_is_that_of_a_fixed_preconditioner():
    tx = zoo.scale_by_shampoo(
        b1=0.0, refresh=zoo.Refresh(every=1, delay=1), roots=zoo.Roots(method="eigh")
    )
    update = jax.jit(tx.update)
    start, grads, tangent = (random_tree(t, shapes=(3, 3)) for t in range(3))
    _, state = update(start, tx.init(start))
    # Linear in the gradient, as the roots come from the step before.
    _, change = jax.jit(lambda g, v: jax.jvp(lambda g: tx.update(g, state)[0], (g,), (v,)))(
        grads, tangent
    )
    np.testing.assert_allclose(change, update(tangent, state)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_multi_steps_are_steps_on_averages():
    tx = optimizer(2, 1, 1)
    accumulated = optax.MultiSteps(tx, 2).gradient_transformation()
    params, state = gradient(0), accumulated.init(gradient(0))
    expected = params, tx.init(params)
    for t in range(1, 7):
        for half in (0.5, 1.5):
            scaled = jax.tree.map(lambda g, half=half: half * g, gradient(t))
            params, state = compiled(accumulated)(params, state, scaled)
        expected = compiled(tx)(*expected, gradient(t))
        assert_close(params, expected[0])
    assert zoo.inspect(state)["1"]["age"] == zoo.inspect(expected[1])["1"]["age"] >= 0


@pytest.mark.slow
def test_roots_on_the_device_without_delay_are_close_to_the_hosts():
    shapes = {"stack": (3, 4, 4), "k": (4, 4), "b": (3,)}
    found = {}
    for on in ("host", "device"):
        tx = zoo.scale_by_shampoo(
            graft_to="adam",
            refresh=zoo.Refresh(every=3, delay=0, start=1),
            roots=zoo.Roots(on=on),
            layer_axes=lambda path, leaf: int(path == ("stack",)),
        )
        update, state = jax.jit(tx.update), tx.init(random_tree(0, shapes=shapes))
        found[on] = []
        for t in range(1, 10):
            updates, state = update(random_tree(t, shapes=shapes), state)
            found[on].append((updates, state.report.age, state.report.failures))
    for (a, *record_a), (b, *record_b) in zip(found["host"], found["device"], strict=True):
        assert_same(record_a, record_b)
        for name in shapes:
            norm = float(jnp.linalg.norm(a[name]))
            assert float(jnp.linalg.norm(a[name] - b[name])) <= 2e-3 * norm


# --- bytes ------------------------------------------------------------------------------------

TRANSFORMER = {
    **{f"square_{i}": (512, 512) for i in range(6)},
    **{f"bias_{i}": (512,) for i in range(6)},
    **{f"wide_{i}": (512, 2048) for i in range(4)},
}


def state_bytes(tx: optax.GradientTransformation, shapes: Any = TRANSFORMER) -> int:
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize(
    ("options", "bar"),
    [
        ({}, 2.55),
        ({"graft_to": None}, 2.05),
        ({"graft_to": optax.identity()}, 2.05),
        ({"graft_to": None, "b1": 0.0}, 1.55),
        ({"roots": zoo.Roots(dtype=jnp.bfloat16)}, 2.3),
        ({"roots": zoo.Roots(on="device")}, 2.55),
    ],
    ids=["default", "no_graft", "sgd", "no_momentum", "bfloat16_roots", "device"],
)
def test_the_state_over_adams(options, bar):
    assert state_bytes(zoo.shampoo(1e-3, **options)) <= bar * state_bytes(optax.adam(1e-3))


def test_depth_adds_bytes_and_no_arrays():
    shapes = {f"{i}": (64, 64) for i in range(48)}
    few = jax.eval_shape(
        zoo.scale_by_shampoo(graft_to=None, b1=0.0).init,
        {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()},
    )
    one = jax.eval_shape(
        zoo.scale_by_shampoo(graft_to=None, b1=0.0).init,
        {"0": jax.ShapeDtypeStruct((64, 64), jnp.float32)},
    )
    # All but the text that names the parameters.
    few, one = (state._replace(parameters=None) for state in (few, one))
    assert jax.tree.structure(few) == jax.tree.structure(one)
