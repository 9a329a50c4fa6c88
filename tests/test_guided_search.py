"""MGS: recordings, brute force in NumPy, limits, Newton's step, hard numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from test_golden import recording, settings

import optax_zoo as zoo
from helpers import assert_finite, assert_unbiased, replay
from optax_zoo import _guided_search, _sampling

X = {"w": jnp.array([[0.3, -1.0], [0.5, 2.0]]), "b": jnp.array([0.1, -0.2])}


@pytest.mark.parametrize("setting", ["unit", "small", "pi8"])
def test_the_recorded_noise_gives_the_recorded_step(setting, monkeypatch, x64):
    r, h, key = recording("mgs"), settings("mgs")[setting], jax.random.key(0)
    x0, losses, deltas = (jnp.asarray(r[k]) for k in ("x0", f"{setting}|dloss", f"{setting}|delta"))
    keys = jax.random.split(jax.random.split(key)[1], 6)
    replay(monkeypatch, keys, r[f"{setting}|noise"] / h["sigma"])
    if setting == "pi8":  # recorded with every other sample around the gradient, at a share of 0.8
        sides = jnp.arange(6) % 2 == 0
        monkeypatch.setattr(_guided_search, "guided_sides", lambda *_: sides)

    def surrogate(x):
        return 0.5 * (x - r["c"]) @ r["A"] @ (x - r["c"])

    def objective(x):
        distance = jnp.abs((x - x0)[None] - deltas).sum(-1)
        return jnp.where(distance.min() < 1e-9, losses[jnp.argmin(distance)], 0.0)

    estimate = zoo.guided_search(
        surrogate,
        objective,
        alpha=h["alpha"],
        sigma=h["sigma"],
        num_samples=6,
        mix=h["mix_mle"],
        step=h["mle_step"],
        clip_norm=None,
        batch_size=4,
    )
    _, grads = jax.jit(estimate)(x0, key)
    np.testing.assert_allclose(-grads, r[f"{setting}|update"], rtol=1e-10, atol=1e-12)


def square(x):
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(x))


def brute_force(x, points, losses, *, alpha, scales, mix, shift):
    """Weights and step in float64 from whole densities, constants and all."""
    jumps = points - x

    def density(centre):
        return np.prod(
            np.exp(-((jumps - centre) ** 2) / (2 * scales**2)) / np.sqrt(2 * np.pi) / scales, axis=1
        )

    q = mix * density(-shift) + (1 - mix) * density(0)
    weights = np.exp(-losses / alpha) / q
    return weights / weights.sum() @ jumps


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 3.0, "sigma": {"w": 0.5, "b": 0.2}, "step": 2.0, "clip_norm": None},
        {"alpha": 2.0, "sigma": "uniform", "clip_norm": 3.0, "mix": 0.7, "num_samples": 5},
    ],
    ids=str,
)
def test_the_step_agrees_with_brute_force(arguments, x64):
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), X)
    seen = []

    def objective(x):
        def host(flat):
            seen.append(np.array(flat))
            return np.abs(np.floor(4 * flat)).sum()

        flat = ravel_pytree(x)[0]
        return jax.pure_callback(
            host, jax.ShapeDtypeStruct((), flat.dtype), flat, vmap_method="sequential"
        )

    value, grads = jax.jit(zoo.guided_search(square, objective, **arguments))(x, jax.random.key(5))
    flat = ravel_pytree(x)[0]
    points = np.stack([point for point in seen if np.any(point != flat)])
    assert len(points) == arguments.get("num_samples", 4)
    gradient = jax.grad(square)(x)
    if (clip := arguments.get("clip_norm", 1.0)) is not None:
        gradient, _ = optax.clip_by_global_norm(clip).update(gradient, optax.EmptyState())
    sigma = arguments.get("sigma", 1.0)
    if sigma == "uniform":
        sigma = jax.tree.map(lambda g: float(jnp.abs(g).mean()), gradient)
    scales = jax.tree.map(lambda s, leaf: jnp.full_like(leaf, s), jax.tree.broadcast(sigma, x), x)
    ravel = ravel_pytree
    expected = brute_force(
        np.asarray(flat),
        points,
        np.abs(np.floor(4 * points)).sum(1),
        alpha=arguments["alpha"],
        scales=np.asarray(ravel(scales)[0]),
        mix=arguments.get("mix", 0.5),
        shift=arguments.get("step", 1.0) * np.asarray(ravel(gradient)[0]),
    )
    np.testing.assert_allclose(-np.asarray(ravel(grads)[0]), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(value, np.abs(np.floor(4 * flat)).sum())


@pytest.mark.slow
def test_a_quadratic_objective_gives_newtons_step():
    """exp(−l/α) is then a Gaussian, whose mean is the minimum whatever the surrogate says."""
    x, minimum, curvature = jnp.array([0.5, -0.3]), jnp.array([0.2, 0.1]), jnp.array([1.0, 3.0])
    estimate = zoo.guided_search(
        lambda x: jnp.sum(jnp.sin(x)),
        lambda x: 0.5 * jnp.sum(curvature * (x - minimum) ** 2),
        alpha=0.5,
        num_samples=4000,
        mix=0.3,
    )
    keys = jax.random.split(jax.random.key(0), 16)
    _, grads = jax.jit(jax.vmap(functools.partial(estimate, x)))(keys)
    assert_unbiased(grads, x - minimum)


def test_low_temperatures_take_the_best_candidate_and_high_ones_ignore_the_losses():
    losses, log_q = jnp.array([3.0, 1.0, 2.0]), jnp.log(jnp.array([1.0, 1e-3, 1e3]))
    weigh = functools.partial(_guided_search.importance_weights, losses, log_q)
    np.testing.assert_allclose(weigh(1e-12), [0, 1, 0])
    np.testing.assert_allclose(weigh(1e12), jax.nn.softmax(-log_q), rtol=1e-6)


@pytest.mark.slow
def test_half_of_the_candidates_lie_around_the_gradient():
    sides = functools.partial(_guided_search.guided_sides, jax.random.key(0))
    assert sides(4, 0.5).tolist() == [True, False, True, False]
    assert sides(4, 0.0).tolist() == [False] * 4
    assert sides(4, 1.0).tolist() == [True] * 4
    assert int(sides(10, 0.2).sum()) == 2


@pytest.mark.slow
def test_a_share_that_is_not_whole_is_right_on_average():
    keys = jax.random.split(jax.random.key(0), 4000)
    counts = jax.vmap(lambda key: _guided_search.guided_sides(key, 5, 0.3).sum())(keys)
    assert set(counts.tolist()) == {1, 2}
    assert_unbiased(counts, 1.5)


@pytest.mark.slow
def test_large_trees_and_losses_do_not_underflow():
    """Where exp(−|D|²/2) and exp(−loss) are 0 in float32 and float64 alike."""
    x = jnp.ones(100_000)
    estimate = zoo.guided_search(
        lambda x: jnp.sum(x), lambda x: 1e5 + jnp.abs(x).sum(), alpha=1.0, num_samples=6
    )
    _, grads = jax.jit(estimate)(x, jax.random.key(0))
    assert_finite(grads)
    assert float(jnp.abs(grads).max()) > 0.3


@pytest.mark.slow
def test_log_q_keeps_its_digits_in_large_trees():
    keys = jax.random.split(jax.random.key(0), 3)
    noise = np.asarray(jax.vmap(lambda k: jax.random.normal(k, (1_000_000,)))(keys))
    shift = np.float32(1e-3) * np.ones(1_000_000, np.float32)
    found = [
        _guided_search.log_proposal(jnp.asarray(e), jnp.asarray(shift), jnp.array(False), 0.5)
        for e in noise
    ]
    noise, shift = noise.astype(float), shift.astype(float)
    exact = np.logaddexp(0, -noise @ shift - shift @ shift / 2) - (noise**2).sum(1) / 2
    np.testing.assert_allclose(np.diff(found), np.diff(exact), atol=5e-3)


def test_candidates_without_a_finite_loss_weigh_nothing():
    weights = _guided_search.importance_weights(
        jnp.array([jnp.nan, 1.0, jnp.inf, 2.0]), jnp.zeros(4), 1.0
    )
    np.testing.assert_allclose(
        weights, [0, 1 / (1 + np.exp(-1)), 0, 1 / (1 + np.exp(1))], rtol=1e-6
    )
    none = _guided_search.importance_weights(jnp.full(3, jnp.nan), jnp.zeros(3), 1.0)
    assert none.tolist() == [0.0, 0.0, 0.0]


def test_uniform_noise_of_a_surrogate_without_slope_stays_where_it_is():
    estimate = zoo.guided_search(lambda x: 0.0 * x, jnp.square, alpha=1.0, sigma="uniform")
    assert jax.jit(estimate)(jnp.ones(()), jax.random.key(0)) == (1.0, 0.0)


def test_sigma_must_fit_the_parameters():
    estimate = zoo.guided_search(square, square, alpha=1.0, sigma={"other": 1.0})
    with pytest.raises(ValueError, match=r"^sigma does not fit the parameters"):
        jax.eval_shape(estimate, X, jax.random.key(0))


@pytest.mark.slow
def test_an_array_that_no_candidate_moves_does_not_weigh(monkeypatch):
    drawn = _sampling.standard_normal
    # The same noise for w, whatever lies beside it.
    monkeypatch.setattr(
        _sampling,
        "standard_normal",
        lambda key, tree: {name: drawn(key, x) for name, x in tree.items()},
    )
    estimate = zoo.guided_search(
        lambda p: jnp.sum(p["w"] ** 2),
        lambda p: jnp.sum(jnp.abs(p["w"])),
        alpha=0.3,
        sigma="uniform",
        num_samples=16,
    )
    alone = {"w": jnp.array([1.0, -2.0])}
    _, wanted = estimate(alone, jax.random.key(0))
    _, found = estimate({**alone, "frozen": jnp.ones(10_000)}, jax.random.key(0))
    np.testing.assert_allclose(found["w"], wanted["w"], rtol=1e-5)
    assert not found["frozen"].any()


@pytest.mark.slow
def test_a_surrogate_without_a_finite_gradient_guides_nowhere():
    wild = zoo.guided_search(lambda x: jnp.nan * x.sum(), lambda x: jnp.sum(x**2), alpha=1.0)
    flat = zoo.guided_search(lambda x: 0 * x.sum(), lambda x: jnp.sum(x**2), alpha=1.0)
    x, key = jnp.array([1.0, 2.0]), jax.random.key(0)
    np.testing.assert_array_equal(wild(x, key)[1], flat(x, key)[1])
    assert flat(x, key)[1].any()
