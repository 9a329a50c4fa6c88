"""Inverse p-th roots against NumPy's eigendecomposition in float64."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from helpers import enable_x64, slow, some
from optax_zoo import _host_roots, _matrix_roots, _minimax
from optax_zoo._matrix_roots import inverse_pth_root

compiled = jax.jit(inverse_pth_root, static_argnames=("p", "method", "ridge"))
METHODS = ("schur_newton", "eigh")
methods = pytest.mark.parametrize("method", METHODS)
one_method = pytest.mark.parametrize("method", some(METHODS, "eigh"))
with np.load(Path(__file__).parent / "golden" / "inverse_pth_roots.npz") as file:
    RECORDED = dict(file)


def matrix(spectrum, seed=0):
    """A symmetric matrix with these eigenvalues."""
    n = len(spectrum)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    a = (q * np.asarray(spectrum)) @ q.T
    return (a + a.T) / 2


def ridged(a, ridge):
    a = np.asarray(a, np.float64)
    return a + ridge * np.linalg.eigvalsh(a)[-1] * np.eye(len(a))


def reference(a, p, ridge=0.0):
    eigenvalues, vectors = np.linalg.eigh(np.asarray(a, np.float64))
    shifted = np.maximum(eigenvalues, 0) + ridge * eigenvalues[-1]
    return (vectors * shifted ** (-1 / p)) @ vectors.T


def error(root, expected):
    return np.max(np.abs(np.asarray(root, np.float64) - expected)) / np.max(np.abs(expected))


@methods
@pytest.mark.parametrize("p", [2, 4, *slow(1, 6, 8)])
@pytest.mark.parametrize("n", [3, *slow(1, 8)])
def test_the_recorded_roots_come_out_again(n, p, method, x64):
    # Rounding moves the least eigenvalue by eps times the condition.
    tolerances = {"c1": 1e-13, "c4": 1e-11, "c8": 1e-7}
    batch = jnp.asarray(np.stack([RECORDED[f"A|n{n}|{condition}"] for condition in tolerances]))
    roots, info = compiled(batch, p, method=method, ridge=0.0)
    for i, (condition, tolerance) in enumerate(tolerances.items()):
        assert error(roots[i], RECORDED[f"root|n{n}|{condition}|p{p}"]) < tolerance
        assert info.residual[i] < 100 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_growth_of_the_error_at_first_does_not_stop_the_iteration(ridge, x64):
    """Condition 27, 7 x 7: one step of Newton's raises the entries' error by a third."""
    a = np.eye(7) + 26 / 7 * np.ones((7, 7))
    m = 2.5 * a / np.linalg.norm(a)
    after = np.linalg.matrix_power((5 * np.eye(7) - m) / 4, 4) @ m
    assert np.max(np.abs(after - np.eye(7))) > 1.2 * np.max(np.abs(m - np.eye(7)))
    root, _ = inverse_pth_root(jnp.asarray(a), 4, ridge=jnp.asarray(ridge))
    assert error(root, reference(a, 4, ridge)) < 1e-12


@pytest.mark.slow
@methods
@pytest.mark.parametrize("ridge", [1e-4, 1e-6, 1e-11])
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("n", [130])
def test_roots_are_accurate_in_double_precision(n, p, ridge, method, x64):
    a = matrix(np.geomspace(1e-8, 3.0, n))
    root, info = compiled(jnp.asarray(a), p, method=method, ridge=ridge)
    assert root.dtype == jnp.float64
    assert error(root, reference(a, p, ridge)) < (1e-6 if ridge > 1e-10 else 1e-5)
    assert info.residual < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", ["wishart", "flat", "uniform", "log"])
def test_the_largest_eigenvalue_is_accurate(spectrum, x64):
    n = 200
    g = np.random.default_rng(1).normal(size=(n, n))
    a = {
        "flat": np.eye(n),
        "uniform": matrix(np.linspace(0, 1, n)),
        "wishart": g @ g.T,
        "log": matrix(np.geomspace(1e-9, 1, n)),
    }[spectrum]
    found = _matrix_roots._largest_eigenvalue(jnp.asarray(a))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(a)[-1], rtol=1e-7)


@one_method
@pytest.mark.parametrize("p", [3, *slow(1, 2)])
@pytest.mark.parametrize("ridge", [1e-4, *slow(0.0)])
@pytest.mark.parametrize("n", [60, *slow(1)])
def test_the_hosts_roots_are_the_same_function(n, ridge, p, method, x64):
    batch = np.stack([matrix(np.geomspace(1e-4, 1e3, n), seed) for seed in range(2)])
    batch = np.concatenate([batch, 0 * batch[:1], batch[:1] * np.nan, batch[:1] * 1e-30])
    roots, residuals, iterations = _host_roots.inverse_pth_roots(batch, p, method, ridge)
    np.testing.assert_array_equal(np.isnan(roots).any((1, 2)), [False, False, True, True, False])
    np.testing.assert_array_equal(np.isinf(residuals), [False, False, True, True, False])
    for i in (0, 1, 4):
        assert error(roots[i], reference(batch[i], p, ridge)) < 1e-7
        assert residuals[i] < 1e-5
        assert (iterations[i] > 0) == (method == "schur_newton")
    theirs, info = compiled(jnp.asarray(batch), p, method=method, ridge=ridge)
    for i in (0, 1, 4):
        assert error(theirs[i], roots[i]) < 1e-7
    np.testing.assert_array_equal(np.isinf(info.residual), np.isinf(residuals))


@pytest.mark.parametrize("n", [49, 200])
def test_the_hosts_largest_eigenvalue_is_accurate(n):
    g = np.random.default_rng(1).normal(size=(n, n))
    stack = np.stack([np.eye(n), g @ g.T, matrix(np.linspace(0, 1, n))])
    found = _host_roots._largest_eigenvalues(stack)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(stack)[:, -1], rtol=1e-7)


@pytest.mark.slow
@methods
@pytest.mark.parametrize(("ridge", "bound"), [(1e-4, 1e-1), (1e-6, 2e-1)])
def test_single_precision_is_as_good_as_rounding_allows(method, ridge, bound):
    a = matrix(np.geomspace(1e-3, 1.0, 64)).astype(np.float32)
    root, info = inverse_pth_root(jnp.asarray(a), 2, method=method, ridge=ridge)
    assert root.dtype == jnp.float32
    assert error(root, reference(a, 2, ridge)) < 2e-5 + 20 * ridge
    assert info.residual < bound


@pytest.mark.slow
@methods
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(method, dtype):
    a = jnp.asarray(np.diag([1.0, 4.0, 16.0]), dtype)
    root, info = inverse_pth_root(a, 2, method=method, ridge=0.0)
    assert root.dtype == dtype
    assert info.residual.dtype == jnp.float32
    np.testing.assert_allclose(root.astype(jnp.float32), np.diag([1, 0.5, 0.25]), atol=1e-3)


@methods
@pytest.mark.parametrize("scale", [1e-30, *slow(1e30)])
@pytest.mark.parametrize("p", [2, *slow(1, 3, 40)])
def test_the_scale_is_no_matter(scale, p, method):
    a = (scale * matrix(np.geomspace(0.1, 1, 5))).astype(np.float32)
    root, info = compiled(jnp.asarray(a), p, method=method, ridge=1e-4)
    assert error(root, reference(a, p, 1e-4)) < 1e-5
    assert info.residual < 1e-4


@pytest.mark.slow
@methods
def test_one_by_one(method, x64):
    root, info = inverse_pth_root(jnp.array([[16.0]]), 4, method=method, ridge=0.0)
    np.testing.assert_allclose(root, [[0.5]], rtol=1e-7)
    assert info.residual < 1e-6


@one_method
@pytest.mark.parametrize("ridge", [1e-6, *slow(1e-4, 1e-9)])
def test_rank_one(method, ridge, x64):
    v = np.random.default_rng(0).normal(size=60)
    a = np.outer(v, v)
    root, _ = compiled(jnp.asarray(a), 2, method=method, ridge=ridge)
    assert error(root, reference(a, 2, ridge)) < 1e-6


@pytest.mark.slow
@methods
def test_condition_1e14_without_ridge_is_finite_and_the_residual_tells(method, x64):
    a = matrix(np.geomspace(1e-14, 1, 20))
    root, info = inverse_pth_root(jnp.asarray(a), 2, method=method, ridge=0.0)
    assert np.isfinite(root).all()
    assert info.residual > 1e-9


@pytest.mark.slow
@methods
@pytest.mark.parametrize("ridge", [1e-4, jnp.float32(1e-4)])
def test_an_unusable_matrix_spoils_only_its_own_root(method, ridge):
    good = matrix(np.geomspace(0.01, 1, 5)).astype(np.float32)
    nan, inf = good.copy(), good.copy()
    nan[1, 2] = np.nan
    inf[0, 0] = np.inf
    batch = jnp.asarray(np.stack([good, np.zeros_like(good), nan, inf, 2 * good]))
    roots, info = inverse_pth_root(batch, 2, method=method, ridge=ridge)
    for i in (1, 2, 3):
        assert np.isnan(roots[i]).all()
        assert info.residual[i] == np.inf
        assert info.iterations[i] == 0
    for i, scale in ((0, 1), (4, 2)):
        assert error(roots[i], reference(scale * good, 2, 1e-4)) < 1e-5
        assert info.residual[i] < 1e-3


@pytest.mark.slow
@given(
    n=st.integers(1, 9),
    p=st.integers(1, 5),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    ridge=st.sampled_from([1e-2, 1e-5, 0.0]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 1000),
)
@settings(max_examples=5, phases=[Phase.generate])
def test_batches_of_any_shape(n, p, batch, ridge, method, seed):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(*batch, n, n + 3)) * 10 ** rng.uniform(-3, 3)
    a = g @ np.swapaxes(g, -1, -2)
    with enable_x64():
        roots, info = compiled(jnp.asarray(a), p, method=method, ridge=ridge)
    assert roots.shape == a.shape
    assert info.residual.shape == info.iterations.shape == batch
    assert info.iterations.dtype == jnp.int32
    for place in np.ndindex(*batch):
        root, m = np.asarray(roots[place]), ridged(a[place], ridge)
        np.testing.assert_array_equal(root, root.T)
        assert error(root, reference(a[place], p, ridge)) < 1e-6
        residual = np.max(np.abs(np.linalg.matrix_power(root, p) @ m - np.eye(n)))
        np.testing.assert_allclose(info.residual[place], residual, rtol=1e-2, atol=1e-7)


@pytest.mark.slow
def test_the_residual_is_the_true_one_where_the_iteration_was_cut(x64):
    a = matrix(np.geomspace(1e-3, 1, 10))
    for ridge in (1e-4, jnp.asarray(1e-4)):
        root, info = inverse_pth_root(jnp.asarray(a), 2, ridge=ridge, max_iterations=1)
        true = np.max(np.abs(np.asarray(root) @ root @ ridged(a, 1e-4) - np.eye(10)))
        assert info.iterations == 1
        assert info.residual > 0.1
        np.testing.assert_allclose(info.residual, true, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True])
def test_a_tighter_tolerance_is_more_accurate(traced, x64):
    a = jnp.asarray(matrix(np.geomspace(1e-3, 1, 10)))
    ridge = jnp.asarray(1e-4) if traced else 1e-4
    loose, tight = (inverse_pth_root(a, 2, ridge=ridge, tolerance=t) for t in (1e-2, 1e-12))
    assert loose[1].iterations <= tight[1].iterations
    assert tight[1].residual < 1e-9 < loose[1].residual < 0.1


@pytest.mark.slow
@methods
def test_a_traced_ridge_vmap_and_jit_change_nothing(method, x64):
    batch = jnp.asarray(np.stack([matrix(np.geomspace(1e-3, 1, 6), seed) for seed in range(3)]))

    def root(a, ridge):
        return inverse_pth_root(a, 2, method=method, ridge=ridge)[0]

    expected = root(batch, 1e-3)
    np.testing.assert_allclose(jax.jit(root)(batch, 1e-3), expected, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(root, static_argnums=1)(batch, 1e-3), expected, rtol=1e-11, atol=1e-12
    )
    each = jax.vmap(root, in_axes=(0, None))(batch, 1e-3)
    np.testing.assert_allclose(each, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(root(batch[0], 1e-3), expected[0], rtol=1e-11, atol=1e-12)


@one_method
def test_no_call_of_lapack_has_a_batch(method):
    # On CPUs several of those at once, or one beside collectives, wait for ever.
    roots = jax.jit(jax.vmap(lambda a: inverse_pth_root(a, 2, method=method)[0]))
    program = roots.lower(jnp.zeros((2, 3, 140, 140))).as_text()
    calls = [line for line in program.splitlines() if "lapack" in line]
    assert bool(calls) == (method == "eigh")
    assert all(re.search(r": \(tensor<\d+x\d+xf32>\) ->", line) for line in calls)


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="no context of explicit axes")
def test_a_batch_that_devices_share_stays_with_them():
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices("cpu")[:4])
    a = jnp.asarray(np.stack([matrix(np.geomspace(1e-2, 1, 6), seed) for seed in range(4)]))
    wanted = inverse_pth_root(a, 2, method="eigh")[0]
    with jax.set_mesh(mesh):
        shared = jax.device_put(a, NamedSharding(mesh, PartitionSpec("x")))
        found = jax.jit(lambda a: inverse_pth_root(a, 2, method="eigh")[0])(shared)
    assert found.sharding.shard_shape(found.shape) == (1, 6, 6)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_roots_by_eigh_have_derivatives(x64):
    a = jnp.asarray(matrix(np.array([1.0, 2.0, 4.0])))
    root = functools.partial(inverse_pth_root, p=2, method="eigh", ridge=0.0)
    found = jax.jit(jax.grad(lambda a: jnp.trace(root(a)[0])))(a)
    np.testing.assert_allclose(
        found, -0.5 * inverse_pth_root(a, 2, ridge=0.0)[0] @ jnp.linalg.inv(a), atol=1e-6
    )


@pytest.mark.slow
@methods
def test_negative_eigenvalues_have_a_true_residual(method):
    root, info = inverse_pth_root(-jnp.eye(3), 1, method=method)
    np.testing.assert_allclose(root, -jnp.eye(3), rtol=1e-5)
    assert info.residual < 1e-5


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0)])
def test_an_empty_stack_has_empty_roots(shape):
    roots, info = inverse_pth_root(jnp.zeros(shape), 2)
    assert roots.shape == shape
    assert info.residual.shape == info.iterations.shape == shape[:-2]


@pytest.mark.parametrize("p", [2, 4, *slow(3, 8, 17)])
@pytest.mark.parametrize("ridge", [1e-4, *slow(1e-2, 1e-7)])
def test_the_polynomials_keep_what_they_promise(p, ridge):
    x = np.geomspace(ridge / (1 + ridge), 1, 10_001)
    m, h = x, np.ones_like(x)
    for step in _minimax.schedule(p, ridge, 1e-7):
        s = step.slope * m + step.shift
        t = _minimax.polynomial(step.coefficients, s, 1.0, np.multiply)
        m, h = t**p * m, h * t
    assert np.max(np.abs(h * x ** (1 / p) - 1)) < 1.1e-7


@pytest.mark.parametrize(("p", "ridge", "products"), [(2, 1e-4, 14), (2, 1e-6, 20), (4, 1e-6, 21)])
def test_how_many_products_the_polynomials_take(p, ridge, products):
    steps = _minimax.schedule(p, ridge, 1e-7)
    degrees = [len(step.coefficients) - 1 for step in steps]
    evaluated = sum(_minimax.PRODUCTS[degree] for degree in degrees)
    power = {2: 1, 4: 2}[p]
    assert evaluated + (len(steps) - 1) * (1 + power + 1) == products


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"matrix": jnp.ones((2, 3))}, ValueError, r"matrix must be square.*\(2, 3\).*pass"),
        ({"matrix": jnp.ones(3)}, ValueError, r"matrix must be square.*\(3,\)"),
        ({"matrix": jnp.eye(2, dtype=int)}, TypeError, "matrix must be floating.*int32.*cast"),
        ({"matrix": jnp.eye(2, dtype=complex)}, TypeError, "matrix must be floating.*complex64"),
        ({"p": 0}, ValueError, "p must be >= 1, got 0; pass"),
        ({"p": 2.0}, TypeError, "p must be an int, got 2.0"),
        ({"p": jnp.array(2)}, TypeError, "p must be a Python int.*static_args"),
        ({"method": "svd"}, ValueError, "method must be one of 'schur_newton', 'eigh', got 'svd'"),
        ({"ridge": -1e-3}, ValueError, "ridge must be >= 0.0, got -0.001; pass"),
        ({"ridge": "much"}, TypeError, "ridge must be a number, got 'much'"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be > 0.0, got 0.0; pass"),
        ({"tolerance": jnp.array(1e-3)}, TypeError, "tolerance must be a Python number.*pass"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(change, kind, words):
    arguments = {"matrix": jnp.eye(2), "p": 2} | change
    with pytest.raises(kind, match=words):
        inverse_pth_root(arguments.pop("matrix"), arguments.pop("p"), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("slope", [-1, -4])
@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.03])
def test_a_coarse_root_is_as_good_as_asked_for(p, slope, tolerance):
    n, ridge = 48, 1e-4
    half = np.random.default_rng(p).normal(size=(n, 2 * n)) * np.logspace(0, slope, n)[:, None]
    values, vectors = np.linalg.eigh(half @ half.T)
    values = np.maximum(values, 0) + ridge * values[-1]
    root, info = inverse_pth_root(
        jnp.asarray(half @ half.T, jnp.float32), p, ridge=ridge, tolerance=tolerance
    )
    found = vectors.T @ np.asarray(root, float) @ vectors
    relative = np.diag(found) * values ** (1 / p)
    assert abs(relative - 1).max() <= tolerance
    assert abs(relative - 1).max() > 1e-4  # or nothing was saved
    assert info.residual <= (1 + tolerance) ** p - 1
    assert info.iterations <= 3


@pytest.mark.slow
def test_newton_is_not_stopped_at_its_start_by_a_coarse_tolerance():
    badly = jnp.asarray(matrix(np.geomspace(1e-6, 1, 32)), jnp.float32)
    root, info = inverse_pth_root(badly, 2, ridge=1e-6, tolerance=0.3)
    exact = reference(matrix(np.geomspace(1e-6, 1, 32)), 2, 1e-6)
    assert np.linalg.norm(root - exact) < 0.05 * np.linalg.norm(exact)
    assert info.residual < 0.1
