"""What the three estimators promise alike: drop-in use, trees, dtypes, batches, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from helpers import assert_close, assert_finite, assert_same, slow, some


def total(params):
    return sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(params)), 0.0)


def objective(params, x):
    return (total(params) - x) ** 2


def mean_of_normal(**arguments):
    return zoo.policy_gradient(
        lambda params, key, x: total(params) + jax.random.normal(key),
        lambda params, y, x: -((y - total(params)) ** 2) / 2,
        lambda y, x: (y - x) ** 2,
        **arguments,
    )


zeroth = functools.partial(zoo.zeroth_order_grad, objective, sigma=0.1)
search = functools.partial(zoo.guided_search, objective, objective, alpha=0.1)
MAKERS = {
    "antithetic": zeroth,
    "score": functools.partial(zeroth, kind="score", baseline="optimal"),
    "policy": functools.partial(mean_of_normal, baseline="optimal"),
    "guided": functools.partial(search, sigma="uniform"),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
KEY = jax.random.key(0)
PARAMS = {
    "w": jnp.ones((2, 3)),
    "scalar": jnp.float32(0.5),
    "empty": jnp.zeros((0, 4)),
    "none": None,
    "half": (jnp.ones(3, jnp.bfloat16),),
}


@pytest.mark.parametrize("name", some(MAKERS, "score"))
def test_structure_shapes_and_dtypes_are_those_of_the_parameters(name):
    estimate = jax.jit(MAKERS[name](num_samples=4))
    value, grads = estimate(PARAMS, KEY, 1.0)
    assert value.shape == ()
    assert jax.tree.structure(grads) == jax.tree.structure(PARAMS)
    for g, p in zip(jax.tree.leaves(grads), jax.tree.leaves(PARAMS), strict=True):
        assert (g.shape, g.dtype) == (p.shape, p.dtype)
    assert_finite(grads)
    assert_same(estimate(PARAMS, KEY, 1.0), (value, grads))
    other = estimate(PARAMS, jax.random.key(1), 1.0)[1]
    assert (other["w"] != grads["w"]).any()


@pytest.mark.slow
@each
def test_batches_change_nothing_but_rounding(make):
    params = jnp.linspace(-1, 1, 6).reshape(2, 3)
    found, plain = (
        jax.jit(make(num_samples=5, batch_size=batch_size))(params, KEY, 2.0)
        for batch_size in (3, None)
    )
    assert_close(found, plain, rtol=2e-4, atol=2e-4)


@each
@pytest.mark.parametrize("batch_size", [2, *slow(None, 1)])
def test_what_can_be_traced(make, batch_size):
    """Arguments by name, old keys, bare arrays and numbers, no parameters at all."""
    estimate = make(num_samples=4, batch_size=batch_size)
    old = jax.random.PRNGKey(0)
    for params in (np.float32(2.0), 2.0, jnp.ones(0), {}, (None,)):
        _, grads = jax.eval_shape(lambda params=params: estimate(params, key=old, x=1.0))
        assert jax.tree.structure(grads) == jax.tree.structure(params)
    with pytest.raises(TypeError, match="x"):
        estimate(1.0, KEY)


@each
def test_double_precision_is_kept(make, x64):
    params = {"w": jnp.ones(3), "v": jnp.ones(2, jnp.float32)}
    _, grads = jax.eval_shape(make(num_samples=4), params, KEY, 1.0)
    assert (grads["w"].dtype, grads["v"].dtype) == (jnp.float64, jnp.float32)


DESCENDING = {"ranks": zeroth(num_samples=16, kind="ranks"), "guided": search(sigma="uniform")}


@pytest.mark.parametrize("kind", ["ranks", *slow("guided")])
def test_what_it_returns_is_to_be_descended(kind):
    estimate = DESCENDING[kind]
    tx = optax.adam(0.05)

    def step(carry, key):
        params, state = carry
        _, grads = estimate(params, key, 1.0)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(KEY, 100))[0][0]

    assert objective(train(jnp.ones(3)), 1.0) < 0.1 * objective(jnp.ones(3), 1.0)


@pytest.mark.slow
def test_hyperparameters_may_be_traced():
    def both(sigma, alpha, baseline):
        return (
            zeroth(sigma=sigma, num_samples=2, kind="score", baseline=baseline)(1.0, KEY, 1.0),
            search(alpha=alpha, sigma=sigma, mix=alpha, step=sigma, clip_norm=sigma)(1.0, KEY, 1.0),
            mean_of_normal(num_samples=2, baseline=baseline)(1.0, KEY, 1.0),
        )

    assert_close(
        jax.jit(both)(0.3, 0.4, 1.5),
        jax.jit(lambda: both(0.3, 0.4, 1.5))(),
        rtol=1e-4,
        atol=1e-5,
    )


def guided(**arguments):
    return zoo.guided_search(objective, objective, **{"alpha": 1.0, **arguments})


def measured(**arguments):
    return zoo.zeroth_order_grad(objective, **{"sigma": 0.1, "num_samples": 2, **arguments})


def drawn(**arguments):
    return mean_of_normal(**{"num_samples": 2, **arguments})


NAN, INF = float("nan"), float("inf")
BAD = [
    *((measured, "sigma", value, "pass e.g. 0.1") for value in (0.0, -1.0, NAN, INF, None, "0.1")),
    *((guided, "sigma", value, "pass e.g. 0.1") for value in (0.0, -1.0, NAN, None, "normal")),
    *((guided, "alpha", value, "pass e.g. 0.1") for value in (0.0, -1, NAN, INF, None)),
    *((guided, "mix", value, "usual value is 0.5") for value in (-0.1, 1.1, NAN, "half")),
    *((guided, "step", value, "usual value is 1.0") for value in (-0.1, NAN, None)),
    *((guided, "clip_norm", value, "or None") for value in (0.0, -1.0, NAN)),
    *((make, "num_samples", 0, "pass e.g. 16") for make in (measured, guided, drawn)),
    *((make, "num_samples", 2.0, "pass e.g. 16") for make in (measured, guided, drawn)),
    *((make, "batch_size", 0, "None for all") for make in (measured, guided, drawn)),
    (measured, "kind", "central", "pass one of these"),
    (measured, "baseline", "mean", "kind='score'"),
    (functools.partial(measured, kind="score"), "baseline", "median", "pass one of these"),
    (drawn, "baseline", "median", "pass one of these"),
    (drawn, "baseline", NAN, "pass a number, None"),
    (drawn, "baseline", [1.0], "pass a number, None"),
]


@pytest.mark.parametrize(("make", "name", "value", "remedy"), BAD)
def test_a_bad_argument_is_named_with_its_value_and_a_remedy(make, name, value, remedy):
    with pytest.raises((ValueError, TypeError)) as error:
        make(**{name: value})
    message = str(error.value)
    assert message.startswith(f"{name} must be ")
    assert repr(value) in message
    assert remedy in message


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "optimal"])
@pytest.mark.parametrize("make", [drawn, functools.partial(measured, kind="score")])
def test_a_baseline_from_the_samples_needs_two(make, baseline):
    with pytest.raises(ValueError, match=r"^num_samples must be >= 2 with baseline=.*, got 1; "):
        make(num_samples=1, baseline=baseline)


NO_KEYS = {"none": None, "int": 0, "array": jnp.ones(2), "keys": jax.random.split(KEY, 2)}


@pytest.mark.parametrize("key", NO_KEYS.values(), ids=NO_KEYS)
@pytest.mark.parametrize("make", [measured, guided, drawn])
def test_a_missing_key_is_noticed(make, key):
    arguments = () if key is None else (key,)
    with pytest.raises(TypeError, match=r"(?s)^key must be one PRNG key, got .*jax.random.key"):
        make()(jnp.ones(2), *arguments)


@pytest.mark.parametrize("leaf", [jnp.arange(2), jnp.ones(2, complex), True], ids=repr)
@pytest.mark.parametrize("make", [measured, guided, drawn])
def test_parameters_are_real_and_floating(make, leaf):
    with pytest.raises(TypeError, match=r"^params\['w'\] has dtype .*; (close over|pass real)"):
        make()({"w": leaf}, KEY)


BAD_VALUES = {
    "vector": lambda *_: jnp.ones(3),
    "pair": lambda *_: (jnp.ones(()), jnp.ones(())),
    "nothing": lambda *_: None,
    "complex": lambda *_: jnp.ones((), complex),
}


def ok(*_):
    return 0.0


BAD_FUNCTIONS = {
    "fun": lambda bad: zoo.zeroth_order_grad(bad, sigma=0.1, num_samples=2),
    "surrogate": lambda bad: zoo.guided_search(bad, ok, alpha=1.0),
    "objective": lambda bad: zoo.guided_search(ok, bad, alpha=1.0),
    "log_prob": lambda bad: zoo.policy_gradient(lambda p, k: p, bad, ok, num_samples=2),
    "loss": lambda bad: zoo.policy_gradient(lambda p, k: p, ok, bad, num_samples=2),
}


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_a_function_that_does_not_return_a_real_scalar_is_named(name, bad):
    with pytest.raises(TypeError, match=rf"^{name} must return a (real )?scalar, got .*; "):
        jax.eval_shape(BAD_FUNCTIONS[name](bad), jnp.ones(2), KEY)


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_what_is_not_a_function_is_named(name):
    with pytest.raises(TypeError, match=rf"^{name} must be a function, got 3; pass a function"):
        BAD_FUNCTIONS[name](3)


@pytest.mark.parametrize("returned", [True, 3, 2.5, jnp.int32(3), jnp.float16(3)], ids=repr)
def test_counts_and_flags_are_objectives_too(returned):
    estimate = zoo.zeroth_order_grad(lambda x: returned, sigma=0.1, num_samples=2)
    _, grads = jax.eval_shape(lambda: estimate(jnp.ones(2), KEY))
    assert grads.dtype == jnp.float32
