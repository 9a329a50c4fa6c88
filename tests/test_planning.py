"""plan_refresh: from the time of roots on this host to method, interval and delay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from optax_zoo import _host
from optax_zoo._shampoo import _planning

PARAMS = {"a": jnp.ones((8, 8)), "b": jnp.ones(8), "c": jnp.ones((8, 4))}
FACTORS = 4  # 8 and 8, 8 and 4
PER_FACTOR = {"schur_newton": 0.25, "eigh": 0.5}


@pytest.fixture
def asked(monkeypatch):
    """Roots take what `PER_FACTOR` says; the list of what was timed."""
    asked = []

    def seconds(stack, roots):
        asked.append((stack, roots))
        return PER_FACTOR[roots.method] * stack.factors

    monkeypatch.setattr(_planning, "_seconds", seconds)
    monkeypatch.setattr(_host, "workers", lambda: 3)
    return asked


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("step_seconds", "delay", "every"),
    [
        (2.0, 1, 10),  # 1.25 * 1 / 2
        (1.25, 1, 10),  # just in time
        (1.2, 2, 10),
        (0.125, 10, 10),
        (0.0625, 20, 20),
        (1 / 1024, 1280, 1280),
        (np.float32(0.125), 10, 10),
        (1, 2, 10),
    ],
)
def test_the_delay_is_the_hosts_time_and_a_quarter_in_steps(step_seconds, delay, every):
    plan = zoo.plan_refresh(PARAMS, step_seconds)
    assert plan.refresh == zoo.Refresh(every=every, delay=delay)
    assert plan.root_seconds == 1.0
    # What the delay is for: the host is done, and one step less would not do.
    needed = 1.25 * plan.root_seconds / float(step_seconds)
    assert delay == max(1, math.ceil(needed))


@pytest.mark.usefixtures("asked")
def test_the_faster_method_is_proposed(monkeypatch):
    assert zoo.plan_refresh(PARAMS, 0.1).roots == zoo.Roots(method="schur_newton")
    monkeypatch.setitem(PER_FACTOR, "eigh", 0.125)
    plan = zoo.plan_refresh(PARAMS, 0.1)
    assert (plan.roots, plan.root_seconds) == (zoo.Roots(method="eigh"), 0.5)


@pytest.mark.usefixtures("asked")
def test_the_explanation_names_every_figure():
    explanation = zoo.plan_refresh(PARAMS, 0.0625).explanation
    assert explanation == (
        "4 roots on 3 worker(s) take schur_newton 1 s, eigh 2 s; at 0.0625 s a step schur_newton "
        "is done after 16.0 steps, so roots are adopted after 20 and renewed every 20."
    )


def test_every_stack_is_timed_with_both_methods(asked):
    zoo.plan_refresh(PARAMS, 1.0)
    found = {(stack.order, stack.factors, stack.exponent, r.method) for stack, r in asked}
    methods = ("schur_newton", "eigh")
    expected = {(n, f, 2, m) for n, f in ((8, 2), (8, 1), (4, 1)) for m in methods}
    assert found == expected
    assert len(asked) == 6
    assert sum(stack.factors for stack, _ in asked) == 2 * FACTORS


def test_given_roots_are_planned_for(asked):
    roots = zoo.Roots(method="eigh", ridge=1e-6, dtype=jnp.bfloat16)
    plan = zoo.plan_refresh(PARAMS, 0.0625, roots=roots)
    assert plan.roots is roots
    assert {r for _, r in asked} == {roots}
    assert plan.refresh == zoo.Refresh(every=40, delay=40)
    assert "schur_newton" not in plan.explanation


@pytest.mark.usefixtures("asked")
def test_blocks_are_cut_as_asked():
    whole = zoo.plan_refresh(PARAMS, 1.0)
    halves = zoo.plan_refresh(PARAMS, 1.0, blocks=zoo.Blocks(size=4))
    assert whole.root_seconds == FACTORS * PER_FACTOR["schur_newton"]
    assert halves.root_seconds == 2 * (4 + 2) * PER_FACTOR["schur_newton"]
    skipped = zoo.plan_refresh(PARAMS, 1.0, blocks=zoo.Blocks(skip_above=4))
    assert skipped.root_seconds == 0


@pytest.mark.usefixtures("asked")
def test_shapes_are_enough():
    abstract = jax.eval_shape(lambda: PARAMS)
    assert zoo.plan_refresh(abstract, 0.0625) == zoo.plan_refresh(PARAMS, 0.0625)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("params", [{}, {"b": jnp.ones(8)}, jnp.ones(3)])
def test_nothing_to_precondition_takes_no_time(params):
    plan = zoo.plan_refresh(params, 0.1)
    assert plan.root_seconds == 0
    assert plan.refresh == zoo.Refresh(every=10, delay=1)
    assert plan.explanation.startswith("0 roots on 3 worker(s)")


@pytest.mark.usefixtures("asked")
def test_the_proposal_is_taken_by_shampoo():
    plan = zoo.plan_refresh(PARAMS, 0.0625)
    tx = zoo.shampoo(1e-3, refresh=plan.refresh, roots=plan.roots)
    jax.eval_shape(tx.update, PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS)


@pytest.mark.slow
def test_a_real_measurement_is_positive_and_grows_with_the_stack():
    roots = zoo.Roots(method="eigh")
    small = zoo.plan_refresh(PARAMS, 0.1, roots=roots)
    assert 0 < small.root_seconds < 10
    many = zoo.plan_refresh(
        {"k": jnp.ones((4000, 8, 8))}, 0.1, roots=roots, blocks=zoo.Blocks(merge_below=1)
    )
    assert 0 < many.root_seconds < 60
    assert small.root_seconds < many.root_seconds
