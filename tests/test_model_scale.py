"""The usual scales and slots of Flax's layers, and the rates that keep weights at a scale."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import optax_zoo as zoo
from optax_zoo import _layers


class Linen(linen.Module):
    """One of each kind of layer."""

    @linen.compact
    def __call__(self, tokens):
        x = linen.Embed(11, 8)(tokens)
        x = linen.MultiHeadDotProductAttention(num_heads=2)(linen.LayerNorm()(x))
        x = linen.relu(linen.Conv(6, (3,))(x))
        x = linen.relu(linen.Dense(5)(x))
        return linen.Dense(3, name="head")(x)


class Nnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.conv = nnx.Conv(8, 6, (3,), rngs=rngs)
        self.dense = nnx.Linear(6, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)


# the end of the name in Linen, in NNX -> shape, squared scale, slot
PARAMETERS = {
    ("Embed_0/embedding", "embed/embedding"): ((11, 8), 2 / 8, (11, 1)),
    ("LayerNorm_0/scale", "norm/scale"): ((8,), 1, ()),
    ("LayerNorm_0/bias", "norm/bias"): ((8,), 0.25, ()),
    ("query/kernel", "query/kernel"): ((8, 2, 4), 1 / 8, (1, 2, 4)),
    ("key/bias", "key/bias"): ((2, 4), 0.25, ()),
    ("out/kernel", "out/kernel"): ((2, 4, 8), 1 / 8, (1, 1, 8)),
    ("Conv_0/kernel", "conv/kernel"): ((3, 8, 6), 2 / 24, (1, 1, 6)),
    ("Dense_0/kernel", "dense/kernel"): ((6, 5), 2 / 6, (1, 5)),
    ("Dense_0/bias", "dense/bias"): ((5,), 0.25, ()),
    ("head/kernel", "head/kernel"): ((5, 3), 1 / 5, (1, 3)),
}


def linen_params():
    return jax.eval_shape(Linen().init, jax.random.key(0), jnp.zeros((1, 4), int))


def nnx_params():
    return nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param)


@pytest.mark.parametrize(("tree", "column"), [(linen_params, 0), (nnx_params, 1)])
def test_each_kind_of_layer_has_its_scale_and_slot(tree, column):
    leaves = jax.tree_util.tree_flatten_with_path(tree())[0]
    names = {_layers.path_names(path): leaf.shape for path, leaf in leaves}
    assert len(names) == 17
    for keys, (shape, squared, slot) in PARAMETERS.items():
        (name,) = [n for n in names if "/".join(n).endswith(keys[column])]
        assert names[name] == shape
        assert zoo.flax_scales(name, shape) == pytest.approx(math.sqrt(squared))
        assert zoo.flax_slots(name, shape) == slot
    for name, shape in names.items():
        assert zoo.flax_scales(name, shape) > 0
        assert np.broadcast_shapes(zoo.flax_slots(name, shape), shape) == shape


def test_weights_of_these_scales_keep_the_size_of_activations():
    scale = zoo.flax_scales(("Dense_0", "kernel"), (512, 512))
    x, *keys = jax.random.normal(jax.random.key(0), (5, 512, 512))
    for noise in keys:
        x = linen.relu(x) @ (scale * noise)
        assert jnp.mean(x**2) == pytest.approx(1, rel=0.1)


def test_an_empty_kernel_has_a_scale():
    assert zoo.flax_scales(("Dense_0", "kernel"), (0, 3)) > 0


# --- the rule ---------------------------------------------------------------------------------

A, SCALE = 0.1, 0.02


def at(rule: zoo.ModelScaleSchedules, step: int) -> float:
    return np.asarray(rule.learning_rate(step)).item()


def adamw_like(b1):
    def build(learning_rate, weight_decay):
        return optax.adamw(learning_rate, b1, weight_decay=weight_decay)

    return build


def signs(learning_rate, weight_decay):
    return zoo.lion(learning_rate, 0.0, 0.0, weight_decay=weight_decay)


def lamb(learning_rate, weight_decay):
    return zoo.lamb(learning_rate, 0.0, weight_decay=weight_decay)


def adaxw(learning_rate, weight_decay):
    return zoo.adaxw(learning_rate, 0.0, weight_decay=weight_decay)


def settled(tx, start, steps=1200):
    """RMS of 5,000 weights after twelve times 1 / a² steps under gradients of pure noise."""

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(jax.random.normal(key, params.shape), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = start * jax.random.normal(jax.random.key(1), (5_000,))
    keys = jax.random.split(jax.random.key(0), steps)
    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys))(params)
    return float(jnp.sqrt(jnp.mean(params**2)))


WALKS = [
    (signs, 0.3),
    (signs, 3.0),
    (lamb, 3.0),
    (adaxw, 0.3),
    (adamw_like(0.0), 3.0),
    (adamw_like(0.9), 0.3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "start"), WALKS)
def test_a_random_walk_settles_at_the_scale(build, start):
    rule = zoo.model_scale_schedules(SCALE, relative_step=A, trust_ratio=build is lamb)
    tx = build(rule.learning_rate, rule.weight_decay)
    assert settled(tx, start * SCALE) == pytest.approx(SCALE / math.sqrt(1 - A**2 / 4), rel=0.04)


def test_the_balance_is_exact_for_signs():
    rule = zoo.model_scale_schedules(SCALE, relative_step=A, update_rms=1.0)
    rate, decay = at(rule, 0), rule.weight_decay
    fixed = SCALE**2 / (1 - A**2 / 4)
    assert (1 - rate * decay) ** 2 * fixed + rate**2 == pytest.approx(fixed, rel=1e-6)


@pytest.mark.slow
def test_an_average_walks_further_than_its_rms_says():
    b1 = 0.9
    walk = math.sqrt((1 + b1) / (1 - b1))
    rule = zoo.model_scale_schedules(SCALE, relative_step=A, update_rms=walk)
    tx = optax.chain(
        optax.ema(b1, debias=False),
        optax.scale(walk),  # an RMS of 1
        optax.add_decayed_weights(rule.weight_decay),
        optax.scale_by_learning_rate(rule.learning_rate),
    )
    assert settled(tx, SCALE) == pytest.approx(SCALE, rel=0.03)


def test_the_rate_follows_the_error_that_it_was_derived_from():
    a, rms, cosine = 0.01, 3.0, 0.2
    half = 1 / (2 * a * cosine)
    rule = zoo.model_scale_schedules(SCALE, relative_step=a, steps_to_half=half, update_rms=rms)
    error = SCALE**2
    for t in range(int(4 * half)):
        rate = at(rule, t)
        assert error == pytest.approx(SCALE**2 / (1 + t / half), rel=0.01)
        learnt = 2 * rate * rms * cosine * error / SCALE
        error += -learnt + rate**2 * rms**2 - 2 * rate * rule.weight_decay * error


def test_bert_has_the_rates_of_the_article():
    rule = zoo.model_scale_schedules(768**-0.5)
    assert at(rule, 0) == pytest.approx(4e-5, rel=0.15)
    assert rule.weight_decay == pytest.approx(0.015, rel=0.15)


def test_the_rate_halves_when_asked_to():
    rule = zoo.model_scale_schedules(SCALE, steps_to_half=50)
    rates = [at(rule, t) / at(rule, 0) for t in (50, 100, 450)]
    np.testing.assert_allclose(rates, [1 / 2, 1 / 3, 1 / 10])


@pytest.mark.slow
def test_numbers_may_be_traced():
    def rates(scale, half):
        rule = zoo.model_scale_schedules(scale, steps_to_half=half)
        return rule.learning_rate(jnp.arange(3)), rule.weight_decay

    traced, plain = jax.jit(rates)(0.5, 2.0), rates(0.5, 2.0)
    jax.tree.map(np.testing.assert_allclose, traced, plain)
