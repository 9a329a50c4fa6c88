"""The laws that every transformation keeps, over the table of `laws.py`.

Laws that are not about compiling run without: the operations of small trees are compiled once for
all of them, a program would be for each.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

import helpers
import optax_zoo as zoo
from helpers import (
    assert_close,
    assert_finite,
    assert_same,
    problem,
    random_tree,
    slow,
    some,
    train,
)
from laws import TABLE, WITHIN, Entry


# Of the module, so that pytest runs the laws of a name one after the other: what they compile is
# needed no more when the next one's turn comes.
@pytest.fixture(scope="module", params=list(TABLE))
def entry(request) -> Entry:
    return TABLE[request.param]


@pytest.fixture(scope="module")
def tx(entry) -> optax.GradientTransformationExtraArgs:
    return entry.tx


def compiled(*more: str) -> Any:
    """For laws that compile much: slow where another name has the same link or more."""
    later = {"lion", "lars", "adabound", "adaboundw", "adax", "adaxw", "accumulate_in_adam", *more}
    assert later <= set(TABLE)
    # In the table's order: pytest takes names at the same place for the same.
    names = [slow(name)[0] if name in later else name for name in TABLE]
    return pytest.mark.parametrize("entry", names, indirect=True, scope="module")


floats = pytest.mark.parametrize("dtype", ["bfloat16", *slow("float64", "float32", "float16")])


def test_no_transformation_is_missing():
    public = {name: getattr(zoo, name) for name in zoo.__all__ if name != "create"}
    transformations = {
        name
        for name, value in public.items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation is optax.GradientTransformationExtraArgs
    }
    assert set(WITHIN.values()) <= set(TABLE)
    missing = transformations - set(TABLE) - set(WITHIN)
    assert not missing, f"give {missing} a line in TABLE of tests/laws.py"


# --- purity, shapes, dtypes -------------------------------------------------------------------


def test_update_is_pure(tx):
    params, grads = problem()
    state = helpers.train(tx, params, grads[:1])[1]
    before = jax.tree.map(np.array, (grads[1], state, params))
    first = tx.update(grads[1], state, params)
    second = tx.update(grads[1], state, params)
    assert_same(first, second)
    assert_same((grads[1], state, params), before)


@floats
def test_updates_have_the_structure_shape_and_dtype_of_the_gradients(tx, dtype):
    with helpers.enable_x64(dtype == "float64"):
        params, grads = problem(dtype)
        updates, _ = tx.update(grads[0], tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(grads[0])
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, grads[0])
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        assert_finite(updates)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_may_not_promote_each_other(entry, dtype):
    """Under strict promotion JAX complains while a program is traced, so none need run."""
    if entry is TABLE["lamb"]:
        return  # Optax's Adam inside it divides by a power of an integer
    tx = entry.tx if entry is not TABLE["accumulate_in_momentum"] else entry.make(then=None)
    params, grads = problem(dtype)
    with jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(tx.init, params)
        for _ in range(2):
            _, state = jax.eval_shape(tx.update, grads[0], state, params)


@pytest.mark.parametrize(
    ("params_dtype", "grads_dtype"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), *slow(("float32", "float64"))],
)
def test_updates_follow_the_gradients_dtype_where_the_parameters_differ(
    tx, params_dtype, grads_dtype
):
    with helpers.enable_x64(grads_dtype == "float64"):
        params, grads = random_tree(0, params_dtype), random_tree(1, grads_dtype)
        state = tx.init(params)
        updates, after = tx.update(grads, state, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(grads_dtype)}
        assert helpers.specification(after) == helpers.specification(state)


@floats
def test_the_state_keeps_structure_dtype_weak_type_and_sharding_from_init_on(tx, dtype):
    with helpers.enable_x64(dtype == "float64"):
        params, grads = problem(dtype)
        state = tx.init(params)
        structure, specification = jax.tree.structure(state), helpers.specification(state)
        for g in grads:
            _, state = tx.update(g, state, params)
            assert jax.tree.structure(state) == structure
            assert helpers.specification(state) == specification


def test_jit_keeps_the_state_as_init_made_it(tx):
    params, grads = problem()
    state = tx.init(params)
    _, after = train(tx, params, grads)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert helpers.specification(after) == helpers.specification(state)


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float16")])
def test_moments_are_float32_for_narrow_parameters(tx, dtype):
    params, grads = problem(dtype)
    _, state = train(tx, params, grads, jit=False)
    moments = helpers.parameter_leaves(tx, state)
    assert {leaf.dtype for leaf in moments} <= {jnp.dtype("float32")}


@pytest.mark.slow
def test_moments_are_float64_for_float64_parameters(tx, x64):
    params, grads = problem("float64")
    moments = helpers.parameter_leaves(tx, train(tx, params, grads, jit=False)[1])
    assert {leaf.dtype for leaf in moments} <= {jnp.dtype("float64")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mu_dtype", ["bfloat16", jnp.float32])
def test_the_first_moment_follows_mu_dtype(entry, dtype, mu_dtype):
    if not entry.takes("mu_dtype"):
        return
    params, grads = problem(dtype)
    tx = entry.make(mu_dtype=mu_dtype)
    initial = tx.init(params)
    _, state = train(tx, params, grads, jit=False)
    mu = optax.tree.get(state, "mu")
    assert {leaf.dtype for leaf in jax.tree.leaves(mu)} == {jnp.dtype(mu_dtype)}
    assert helpers.specification(state) == helpers.specification(initial)


@compiled("shampoo", "soap")
def test_bfloat16_follows_float32(entry):
    params, grads = problem("bfloat16", steps=1)
    wide = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))
    actual = first_step(entry, entry.tx, params, grads[0])
    desired = first_step(entry, entry.tx, wide(params), wide(grads[0]))
    assert_close(wide(actual), desired, rtol=1e-2, atol=1e-6)


def first_step(entry: Entry, tx: optax.GradientTransformation, params: Any, grads: Any) -> Any:
    """The first update that moves."""
    return helpers.updates_of(tx, params, [grads] * entry.calls_per_step)[-1]


# --- tracing and compiling --------------------------------------------------------------------


def test_init_runs_on_shapes_alone(tx):
    params = random_tree(0)
    state, shapes = tx.init(params), jax.eval_shape(tx.init, params)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    same = jax.tree.map(lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype), state, shapes)
    assert all(jax.tree.leaves(same))


def test_init_is_the_same_under_jit(tx):
    params = random_tree(0)
    assert_same(jax.jit(tx.init)(params), tx.init(params))


def test_jitted_equals_unjitted(tx):
    assert_close(train(tx, *problem()), train(tx, *problem(), jit=False), rtol=2e-6, atol=5e-7)


@compiled()
def test_several_steps_with_donation_from_init_on_compile_once_and_change_nothing(tx):
    params, grads = problem(steps=4)
    desired, traces = train(tx, params, grads), []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        traces.append(None)
        return helpers.one_step(tx)(params, state, grads)

    params, state = jax.tree.map(jnp.copy, params), tx.init(params)
    for g in grads:
        params, state = step(params, state, g)
    assert_same((params, state), desired)
    assert len(traces) == 1


def test_no_two_arrays_of_a_fresh_state_share_a_buffer(tx):
    params = random_tree(0)
    leaves = jax.tree.leaves((params, tx.init(params)))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@compiled()
def test_scan_equals_the_python_loop(tx):
    params, grads = problem()
    step = helpers.one_step(tx)
    scanned, _ = jax.lax.scan(
        lambda carry, g: (step(*carry, g), None),
        (params, tx.init(params)),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads),
    )
    assert_close(scanned, train(tx, params, grads), rtol=2e-6, atol=1e-7)


@pytest.mark.slow  # with traced hyper-parameters below
def test_vmap_equals_separate_runs(tx):
    problems = [(random_tree(i), random_tree(10 + i), random_tree(20 + i)) for i in range(3)]
    params, *grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    step, together = jax.jit(jax.vmap(helpers.one_step(tx))), (params, jax.vmap(tx.init)(params))
    for g in grads:
        together = step(*together, g)
    for i, one in enumerate(problems):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_close(mine, train(tx, one[0], one[1:]), rtol=2e-6, atol=1e-6)


@compiled("shampoo", "soap")
def test_update_can_be_differentiated_also_at_zero(entry):
    # Optax's Adam, inside LAMB, needs a positive eps_root for that.
    tx = entry.make(eps_root=1e-12) if entry.takes("eps_root") else entry.tx

    def loss(params, grads):
        params, state = helpers.one_step(tx)(params, tx.init(params), grads)
        params, state = helpers.one_step(tx)(params, state, grads)
        return optax.tree.norm(params, squared=True)

    params, grads = problem(steps=1)
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    found = slopes(params, grads[0])
    assert_finite(found)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found[0]))
    nothing = optax.tree.zeros_like(params)
    assert_finite(slopes(params, nothing))
    assert_finite(slopes(nothing, nothing))


# --- hyper-parameters -------------------------------------------------------------------------


def numbers(entry: Entry) -> dict[str, float]:
    return {name: value for name, value in entry.values.items() if type(value) is float}


@compiled()
def test_traced_hyper_parameters_under_vmap_and_scan_give_the_same_steps(entry):
    problems = [(random_tree(i), random_tree(10 + i), random_tree(20 + i)) for i in range(3)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    params, grads = stack(*(p for p, *_ in problems)), stack(*(stack(*g) for _, *g in problems))

    def run(numbers, params, grads):
        tx = entry.make(**numbers)
        step = helpers.one_step(tx)
        start = params, tx.init(params)
        return jax.lax.scan(lambda carry, g: (step(*carry, g), None), start, grads)[0]

    together, _ = jax.jit(jax.vmap(run, (None, 0, 0)))(numbers(entry), params, grads)
    for i, one in enumerate(problems):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_close(mine, train(entry.tx, one[0], one[1:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_traced_hyper_parameters_give_the_same_steps(entry):
    params, grads = problem()
    init = jax.jit(lambda numbers: entry.make(**numbers).init(params))
    step = jax.jit(lambda numbers, *state: helpers.one_step(entry.make(**numbers))(*state))
    found, state = params, init(numbers(entry))
    for g in grads:
        found, state = step(numbers(entry), found, state, g)
    assert_close(found, train(entry.tx, params, grads)[0], rtol=1e-4, atol=1e-5)


@compiled("shampoo", "soap")
def test_numpy_scalars_are_hyper_parameters_too(entry):
    scalars = {name: np.float32(value) for name, value in numbers(entry).items()}
    assert_close(
        train(entry.make(**scalars), *problem(), jit=False),
        train(entry.tx, *problem(), jit=False),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_constant_schedule_equals_its_number(entry):
    if not entry.takes("learning_rate"):
        return
    base = {"base_lr": 1e-2} if entry.takes("base_lr") else {}
    schedule = entry.make(learning_rate=lambda step: jnp.where(step < 0, 0.0, 1e-2), **base)
    number = entry.make(learning_rate=1e-2, **base)
    assert_close(train(schedule, *problem(), jit=False)[0], train(number, *problem(), jit=False)[0])


def test_the_schedule_counts_from_its_first_step(entry):
    if not entry.takes("learning_rate"):
        return
    base = {"base_lr": 1e-2} if entry.takes("base_lr") else {}
    params, grads = problem(steps=2)

    def trajectory(rate):
        decay = {"weight_decay": 0.0} if entry.takes("weight_decay") else {}
        tx = entry.make(learning_rate=rate, **decay, **base)
        return helpers.trajectory(tx, params, grads, jit=False)

    rate = lambda step: jnp.where(step == entry.first_step, 0.0, 1e-2)  # noqa: E731
    start, first, second = trajectory(rate)
    assert_same(first, start)
    assert not np.allclose(second["w"], first["w"])


@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16")])
def test_inject_hyperparams_gives_the_same_steps(entry, dtype):
    params, grads = problem(dtype)
    inject = optax.inject_hyperparams(entry.factory, hyperparam_dtype=jnp.dtype("float32"))
    injected, state = train(inject(**entry.arguments), params, grads, jit=False)
    plain, _ = train(entry.tx, params, grads, jit=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(injected)} == {jnp.dtype(dtype)}
    coarse = 1e-2 if dtype == "bfloat16" else 1e-4
    assert_close(injected, plain, rtol=coarse, atol=0.1 * coarse)
    assert set(numbers(entry)) <= set(state.hyperparams)


@pytest.mark.parametrize("jit", [False, *slow(True)])
def test_inject_hyperparams_keeps_the_state_constant(entry, jit):
    params, grads = problem()
    tx = optax.inject_hyperparams(entry.factory)(**entry.arguments)
    state = jax.jit(tx.init)(params)
    _, after = train(tx, params, grads, jit=jit)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert helpers.specification(after) == helpers.specification(state)


# --- parameters and extra arguments -----------------------------------------------------------


def test_unknown_keyword_arguments_are_ignored(tx):
    params, grads = problem()
    state = tx.init(params)
    desired = tx.update(grads[0], state, params)
    assert_same(tx.update(grads[0], state, params, value=1.0, value_fn=abs, step=3), desired)


def test_it_is_a_gradient_transformation_with_extra_arguments(tx):
    assert isinstance(tx, optax.GradientTransformationExtraArgs)


def test_parameters_may_come_by_keyword(tx):
    params, grads = problem()
    state = tx.init(params)
    assert_same(
        tx.update(grads[0], state, params=params),
        tx.update(updates=grads[0], state=state, params=params),
    )


def test_update_without_parameters_works_or_asks_for_them(entry):
    params, grads = problem()
    tx = entry.tx
    state = tx.init(params)
    if entry.needs_params == "never":
        assert_same(tx.update(grads[0], state), tx.update(grads[0], state, params))
        return
    with pytest.raises(ValueError, match=r"params is None.*call update\(gradients, state, p"):
        tx.update(grads[0], state)


def test_no_decay_needs_no_parameters(entry):
    if not entry.takes("weight_decay") or entry.needs_params == "always":
        return
    params, grads = problem()
    tx = entry.make(weight_decay=0)
    state = tx.init(params)
    assert_same(tx.update(grads[0], state), tx.update(grads[0], state, params))


# --- compositions -----------------------------------------------------------------------------


def test_masked_leaves_the_other_leaves_alone(entry):
    params, grads = problem()
    params["n"], grads[0]["n"] = jnp.arange(3), jnp.ones(3)
    masked = optax.masked(entry.tx, {"w": True, "b": True, "n": False})
    updates = first_step(entry, masked, params, grads[0])
    assert_same(updates.pop("n"), grads[0].pop("n"))
    params.pop("n")
    assert_close(updates, first_step(entry, entry.tx, params, grads[0]))


@compiled("soap")
def test_partition_runs_it_on_its_share(tx):
    params, grads = problem()
    labels = {"w": "tx", "b": "sgd"}
    both = optax.partition({"tx": tx, "sgd": optax.sgd(0.5)}, labels)
    together, _ = train(both, params, grads, jit=False)
    mine = lambda tree: {"w": tree["w"]}  # noqa: E731
    alone, _ = train(tx, mine(params), [mine(g) for g in grads], jit=False)
    assert_close(mine(together), alone)


def test_chain_after_a_clip_equals_clipping_by_hand(tx):
    params, grads = problem()
    clip = optax.clip_by_global_norm(0.5)
    clipped = [clip.update(g, optax.EmptyState())[0] for g in grads]
    after, _ = train(optax.chain(clip, tx), params, grads, jit=False)
    assert_close(after, train(tx, params, clipped, jit=False)[0], atol=1e-5)


@compiled()
def test_multi_steps_over_a_broken_gradient_equals_a_step_on_the_mean(tx):
    params, grads = problem(steps=4)
    broken = jax.tree.map(lambda g: g * jnp.nan, grads[0])
    accumulated = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    guarded = optax.apply_if_finite(accumulated, max_consecutive_errors=3)
    pairs = [(grads[0], grads[1]), (grads[2], grads[3])]
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in pairs]
    actual, _ = train(guarded, params, [grads[0], broken, *grads[1:]])
    assert_close(actual, train(tx, params, means)[0], atol=1e-5)


@pytest.mark.slow
def test_multi_steps_equals_a_step_on_the_mean(tx):
    params, grads = problem(steps=4)
    accumulated = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    pairs = [(grads[0], grads[1]), (grads[2], grads[3])]
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in pairs]
    assert_close(train(accumulated, params, grads)[0], train(tx, params, means)[0], atol=1e-5)


@pytest.mark.slow
def test_apply_if_finite_steps_over_a_broken_gradient(tx):
    params, grads = problem()
    broken = jax.tree.map(lambda g: g * jnp.nan, grads[0])
    guarded = optax.apply_if_finite(tx, max_consecutive_errors=3)
    actual, _ = train(guarded, params, [grads[0], broken, *grads[1:]])
    assert_close(actual, train(tx, params, grads)[0])


def test_map_params_visits_the_moments_and_nothing_else(tx):
    params, grads = problem()
    _, state = train(tx, params, grads)
    zeroed = optax.tree.map_params(
        tx, jnp.zeros_like, state, transform_non_params=lambda x: jax.tree.map(jnp.ones_like, x)
    )
    assert jax.tree.structure(zeroed) == jax.tree.structure(state)
    for (path, old), new in zip(
        jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(zeroed), strict=True
    ):
        is_moment = isinstance(path[-1], jax.tree_util.DictKey)
        assert bool(jnp.all(new == (0 if is_moment else 1))), jax.tree_util.keystr(path)
        assert old.shape == new.shape


def test_map_params_takes_another_tree_along(tx):
    """By which shardings of the parameters are laid over the moments."""
    params, _ = problem()
    state = tx.init(params)
    assert_same(optax.tree.map_params(tx, lambda x, _: x, state, params), state)


def test_flax_train_state_steps(tx):
    params, grads = problem()
    state = train_state.TrainState.create(apply_fn=abs, params=params, tx=tx)
    for g in grads:
        state = state.apply_gradients(grads=g)
    assert_close((state.params, state.opt_state), train(tx, params, grads), rtol=2e-6)


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def train_nnx(tx: optax.GradientTransformation) -> dict[str, jax.Array]:
    """Two updates of a linear model; the gradients are its own parameters."""
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(half_square)(model))
    return linear_params(model)


def half_square(model: nnx.Linear) -> jax.Array:
    return optax.tree.norm(linear_params(model), squared=True) / 2


def linear_params(model: nnx.Linear) -> dict[str, jax.Array]:
    assert model.bias is not None
    return {"kernel": model.kernel[...], "bias": model.bias[...]}


def train_plain(tx: optax.GradientTransformation) -> Any:
    params: Any = linear_params(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    state = tx.init(params)
    for _ in range(2):
        params, state = helpers.one_step(tx)(params, state, params)
    return params


@compiled()
def test_nnx_optimizer_steps(tx):
    assert_close(train_nnx(tx), train_plain(tx))


def test_nnx_optimizer_takes_a_callable_mask(entry):
    masks = [name for name in entry.values if name.endswith("mask")]
    if not masks:
        return
    tx = entry.make(**dict.fromkeys(masks, matrices))
    prefix = entry.make(**{name: {"kernel": True, "bias": False} for name in masks})
    assert_close(train_nnx(tx), train_plain(prefix))


@pytest.mark.parametrize("names", [["lion", "lamb"], *slow(list(TABLE))], ids=["two", "all"])
def test_orbax_brings_back_the_bits(names, tmp_path):
    params, grads = problem(steps=4)
    txs = {name: TABLE[name].tx for name in names}
    saved = {name: train(tx, params, grads[:2]) for name, tx in txs.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda: {n: (params, tx.init(params)) for n, tx in txs.items()})
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
        )
        restored = checkpointer.restore(tmp_path / "state", abstract)
    for name, tx in txs.items():
        assert_same(restored[name], saved[name])
        step = helpers.jitted_step(tx)
        assert_same(step(*restored[name], grads[2]), step(*saved[name], grads[2]))


# --- trees ------------------------------------------------------------------------------------


class Layer(NamedTuple):
    kernel: Any
    bias: Any


TREES: dict[str, Any] = {
    "scalar": {"s": ()},
    "empty_leaf": {"e": (0,), "f": (2, 0, 3), "w": (3, 4)},
    "none_leaf": {"w": (2, 2), "n": None},
    "tuple": ((2,), ((2, 2),), [(3,), ()]),
    "named_tuple": Layer((2, 3), None),
    "bare_array": (3, 4),
    "empty_dict": {},
    "empty_subtree": {"a": {}, "b": [(2,)]},
    "nested": {"a": {"b": {"c": (2,)}}, "d": [{"e": (1, 1)}]},
}


FEW = ["empty_leaf", "empty_dict"]


@compiled("shampoo", "soap")
@pytest.mark.parametrize("tree", some(TREES, *FEW))
def test_any_tree_of_parameters_works(tx, tree):
    params, grads = problem(shapes=TREES[tree])
    state = tx.init(params)
    after, new_state = train(tx, params, grads, jit=False)
    assert jax.tree.structure((after, new_state)) == jax.tree.structure((params, state))
    assert_finite((after, new_state))
    moved = jax.tree.map(lambda a, p: p.size == 0 or bool(jnp.any(a != p)), after, params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16", "float16")])
@pytest.mark.parametrize("zero", ["gradients", "parameters", "both"])
def test_zeros_stay_finite(tx, zero, dtype):
    params, grads = problem(dtype)
    if zero != "gradients":
        params = optax.tree.zeros_like(params)
    if zero != "parameters":
        grads = [optax.tree.zeros_like(g) for g in grads]
    after = train(tx, params, grads, jit=False)
    assert_finite(after)
    if zero == "both":
        assert_same(after[0], params)


def test_complex_parameters_work_or_are_refused_at_init(entry):
    params, grads = problem("complex64")
    tx = entry.tx
    if not entry.complex_ok:
        with pytest.raises(TypeError, match=r"params\['b'\] has dtype complex64"):
            tx.init(params)
        return
    state = tx.init(params)
    after, new_state = train(tx, params, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("complex64")}
    assert_finite((after, new_state))
    assert helpers.specification(new_state) == helpers.specification(state)


def test_real_numbers_in_complex_clothes_take_the_same_steps(entry):
    if not entry.complex_ok:
        return
    params, grads = problem()
    dress = functools.partial(jax.tree.map, lambda x: x.astype(jnp.complex64))
    actual, _ = train(entry.tx, dress(params), [dress(g) for g in grads])
    assert_close(actual, dress(train(entry.tx, params, grads)[0]))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integer_parameters_are_refused_by_name(tx, dtype):
    params = {"w": jnp.ones(2), "layers": [jnp.ones(2, dtype)]}
    with pytest.raises(TypeError, match=rf"params\['layers'\]\[0\] has dtype {dtype}.*cast it"):
        tx.init(params)


# --- many devices -----------------------------------------------------------------------------


@compiled("shampoo", "soap")
@pytest.mark.parametrize("axis_type", ["Auto", *slow("Explicit")])
def test_sharded_parameters_keep_the_states_sharding_and_the_result(tx, axis_type, request):
    scatters = any(name in request.node.name for name in ("shampoo", "soap"))
    if axis_type == "Explicit" and scatters and jax.__version_info__ < (0, 8):
        pytest.skip("JAX 0.7 has no sharding rule for scatters")
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((3,), ("x",), axis_types=(kind,), devices=jax.devices("cpu")[:3])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = {"w": spread, "b": everywhere}
    params, grads = problem()
    desired, _ = train(tx, params, grads)
    params, grads = jax.device_put((params, grads), (shardings, [shardings] * len(grads)))

    @jax.jit
    def step(params, state, grads):
        return helpers.one_step(tx)(params, state, grads)

    state = tx.init(params)
    for g in [None, *grads]:
        if g is not None:
            params, state = step(params, state, g)
        for leaf in helpers.parameter_leaves(tx, state):
            own = spread if leaf.shape == params["w"].shape else everywhere
            assert leaf.sharding.is_equivalent_to(own, leaf.ndim)
    assert params["w"].sharding.is_equivalent_to(spread, 2)
    assert_close(jax.device_get(params), jax.device_get(desired))
