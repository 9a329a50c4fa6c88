r"""Inverse p-th roots of symmetric matrices by matrix products, or by eigendecomposition.

With a ridge known when the program is traced, the spectrum of the scaled matrix lies in a known
interval, and a fixed list of polynomials brings it to 1: the coupled iteration of Guo and Higham
with, at each step, the best polynomial of its degree instead of Newton's. The list is found once,
in NumPy. Without such an interval Newton's own polynomial is the safe one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import _checks, _minimax, _moments

Matrix = jax.Array


class InverseRootInfo(NamedTuple):
    r"""How good a root is.

    Attributes:
      residual: :math:`\max |X^p A - I|` of each matrix, with its ridge; infinite without a root.
      iterations: Steps of the iteration, int32; 0 for `"eigh"` and without a root.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> root, info = zoo.inverse_pth_root(jnp.zeros((2, 2)), 2, method="eigh")
      >>> print(info.residual, info.iterations)  # there is no root
      inf 0
    """

    residual: jax.Array
    iterations: jax.Array


def inverse_pth_root(
    matrix: jax.Array,
    p: int,
    *,
    method: str = "schur_newton",
    ridge: Any = 1e-6,
    tolerance: float | None = None,
    max_iterations: int | None = None,
) -> tuple[jax.Array, InverseRootInfo]:
    r"""The inverse p-th root of symmetric positive semi-definite matrices, with a ridge.

    .. math::

      X = (A + \rho\,\lambda_{\max}(A)\,I)^{-1/p}

    `"schur_newton"` needs matrix products and, by Lanczos, the largest eigenvalue. It iterates,
    from :math:`M = A + \rho\lambda I` scaled to a largest eigenvalue of 1, and :math:`H = I`,

    .. math::

      M \leftarrow T(M)^p M, \qquad H \leftarrow H\,T(M)

    until :math:`M = I`, where :math:`H = X` up to the scale. Each :math:`T` minimises
    :math:`\max |T(x)\,x^{1/p} - 1|` over the interval that the step before leaves, the first
    from :math:`\rho / (1 + \rho)` to 1. With an array as `ridge`, or with one near the rounding
    error, :math:`T = ((p + 1) I - M) / p`, Newton's. `"eigh"` is LAPACK's decomposition; on CPUs
    the matrices of a batch are decomposed one after the other.

    Not meant to be differentiated: reverse mode fails on the loops of `"schur_newton"`, and where
    eigenvalues coincide `"eigh"` gives NaN. Of float16 and bfloat16 matrices the root is computed
    in float32.

    Args:
      matrix: Symmetric matrices, shape (..., n, n); only symmetry is taken for granted, and the
        residual tells what a matrix with negative eigenvalues gave.
      p: The root, an int of at least 1.
      method: `"schur_newton"` or `"eigh"`.
      ridge: :math:`\rho`, relative to the largest eigenvalue, at least 0; a number or an array.
      tolerance: Relative error of the root at which the iteration stops; Newton's, for a small or
        traced ridge, goes to 0.01 at least. None: 1e-7 where the polynomials are fixed, as far as
        rounding lets Newton's come.
      max_iterations: Most steps of the iteration; None: as many as the polynomials need, 100 of
        Newton's.

    Returns:
      The roots, in the shape and dtype of `matrix`, and an `InverseRootInfo` with one entry per
      matrix. The root of a matrix that is zero or not finite is NaN with an infinite residual;
      other matrices of the batch are untouched by it.

    Raises:
      ValueError: If `matrix` is not square, or an argument is out of range.
      TypeError: If `matrix` is not floating-point, or an argument has the wrong type.

    Examples:
      >>> import jax.numpy as jnp, optax_zoo as zoo
      >>> root, info = zoo.inverse_pth_root(jnp.diag(jnp.array([4.0, 16.0])), 2, ridge=0.0)
      >>> print(root.round(4), info.residual < 1e-6)
      [[0.5  0.  ]
       [0.   0.25]] True

    References:
      Guo and Higham, `A Schur-Newton Method for the Matrix pth Root and its Inverse
      <https://eprints.maths.manchester.ac.uk/850/>`_, 2006, the coupled iteration; Anil et al.,
      `Scalable Second Order Optimization for Deep Learning <https://arxiv.org/abs/2002.09018>`_,
      2021; Sastre, `Efficient evaluation of matrix polynomials
      <https://doi.org/10.1016/j.laa.2017.11.010>`_, 2018, for degree 8 in three products.
    """
    matrix = jnp.asarray(matrix)
    _check(matrix, p, method, ridge, tolerance, max_iterations)
    p = int(p)
    if not matrix.size:
        nothing = jnp.zeros(matrix.shape[:-2])
        return matrix, InverseRootInfo(nothing, nothing.astype(jnp.int32))
    dtype = _moments.wide_dtype(matrix)
    # A Python number would be weakly typed and an array may be wider: neither sets the dtype.
    static_ridge = None if isinstance(ridge, jax.Array) else float(ridge)
    ridge = jnp.asarray(ridge, dtype)
    if method == "eigh":
        iterate = None
    elif (
        static_ridge is not None
        and static_ridge >= _least_ridge(p, tolerance, float(jnp.finfo(dtype).eps))
        and p > 1
    ):
        steps = _minimax.schedule(p, static_ridge, tolerance or _minimax.TOLERANCE)
        iterate = functools.partial(_composed, p=p, schedule=steps[:max_iterations])
    else:
        iterate = functools.partial(
            # A residual is near p times the error of the root only where both are small.
            _newton,
            p=p,
            tolerance=min(tolerance or 0.0, 1e-2),
            max_iterations=max_iterations or 100,
        )
    one = functools.partial(_root, p=p, ridge=ridge, iterate=iterate)
    for _ in matrix.shape[:-2]:  # none for one matrix: XLA's batched products are slow on CPUs
        one = jax.vmap(one)
    root, info = one(matrix.astype(dtype))
    return root.astype(matrix.dtype), info


def _least_ridge(p: int, tolerance: float | None, eps: float) -> float:
    """Where the fixed polynomials begin to be the better choice."""
    if tolerance is not None and tolerance >= 1e-2:
        return 100 * eps  # rounding hides behind the tolerance
    # In float32 and of low order, Newton's steps leave a hundredth of the residual.
    return max(_minimax.LEAST_RIDGE, (1e4 if p <= 8 else 500) * eps)


def _check(
    matrix: Matrix, p: Any, method: Any, ridge: Any, tolerance: Any, max_iterations: Any
) -> None:
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise TypeError(f"matrix must be floating-point, got {matrix.dtype}; cast it")
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"matrix must be square, got the shape {matrix.shape}; pass an array (..., n, n)"
        )
    _checks.check_integer("p", p, at_least=1, remedy="pass e.g. 2")
    _checks.check_choice("method", method, ("schur_newton", "eigh"))
    _checks.check_number("ridge", ridge, at_least=0.0, remedy="pass e.g. 1e-6")
    if tolerance is not None:
        if isinstance(tolerance, jax.Array):
            raise TypeError(
                f"tolerance must be a Python number, got the array {tolerance!r}; pass e.g. 1e-7"
            )
        _checks.check_number("tolerance", tolerance, above=0.0, remedy="pass e.g. 1e-7, or None")
    if max_iterations is not None:
        _checks.check_integer("max_iterations", max_iterations, at_least=1, remedy="or pass None")


def _root(
    a: Matrix, *, p: int, ridge: jax.Array, iterate: Callable[[Matrix], Any] | None
) -> tuple[Matrix, InverseRootInfo]:
    """The root of one matrix; without an iteration by eigendecomposition."""
    largest = jnp.max(jnp.abs(a))
    usable = jnp.isfinite(largest) & (largest > 0)
    identity = jnp.eye(a.shape[0], dtype=a.dtype)
    # A power of two: scaling rounds nothing, and neither sums nor squares overflow.
    # Not `frexp`, whose exponent forgets its mesh in JAX 0.12.
    exponent = jnp.where(usable, jnp.floor(jnp.log2(largest)), -1).astype(jnp.int32) + 1
    a = jnp.where(usable, _times_power_of_two(a, -exponent), identity)
    if iterate is None:
        eigenvalues, vectors = eigh(a)
        top = eigenvalues[-1]
        spectrum = (jnp.maximum(eigenvalues / top, 0) + ridge) / (1 + ridge)
        half = vectors * (spectrum ** (-0.5 / p))[None, :]
        root, iterations = symmetric(product(half, half.T)), 0
        m = (a / top + ridge * identity) / (1 + ridge)
    else:
        top = _largest_eigenvalue(a)
        m = (a / top + ridge * identity) / (1 + ridge)
        root, iterations = iterate(m)
    residual = jnp.max(jnp.abs(product(power(root, p), m) - identity))
    scale = (top * (1 + ridge)) ** (-1 / p) * jnp.exp2(-(exponent % p).astype(a.dtype) / p)
    root = _times_power_of_two(root * scale, -(exponent // p))
    found = usable & jnp.isfinite(residual) & jnp.isfinite(root).all()
    return jnp.where(found, root, jnp.nan), InverseRootInfo(
        jnp.where(found, residual, jnp.inf),
        jnp.where(found, iterations, 0).astype(jnp.int32),
    )


def _times_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x 2^exponent in two factors, as one alone may not be representable."""
    half = exponent // 2
    # Made of the exponent: in JAX 0.12 `ldexp` takes the mesh of its first argument alone.
    one = (0 * exponent + 1).astype(x.dtype)
    return x * jnp.ldexp(one, half) * jnp.ldexp(one, exponent - half)


def product(a: Matrix, b: Matrix) -> Matrix:
    """a b at the precision of statistics."""
    return jnp.matmul(a, b, precision="highest")


def symmetric(a: Matrix) -> Matrix:
    """The symmetric part."""
    return (a + a.T) / 2


def power(a: Matrix, p: int) -> Matrix:
    """a^p by squaring, for a symmetric a."""
    if p == 1:
        return a
    half = power(a, p // 2)
    square = product(half, half)
    return square if p % 2 == 0 else product(square, a)


@jax.custom_jvp
def eigh(a: Matrix) -> tuple[jax.Array, Matrix]:
    """Eigenvalues and vectors of one matrix; of a batch a CPU takes one after the other.

    jaxlib's LAPACK calls hand a batch to the threads of the pool on which they wait for it: where
    other calls, or collectives, wait on all the others, they wait for ever.
    """
    return _one_eigh(a)


@eigh.defjvp
def _(primals, tangents):
    return jax.jvp(lambda a: tuple(jnp.linalg.eigh(a)), primals, tangents)


@jax.custom_batching.custom_vmap
def _one_eigh(a):
    return tuple(jnp.linalg.eigh(a))


@_one_eigh.def_vmap
def _(size, batched, a):
    del size, batched
    # What devices share they take as it lies: a loop would have to gather it.
    spread = any(jax.typeof(a).sharding.spec[:1])
    return (_one_eigh if spread else _in_turn)(a), (True, True)


@jax.jit
def _in_turn(a):
    one_by_one = functools.partial(jax.lax.map, _one_eigh)
    return jax.lax.platform_dependent(a, cpu=one_by_one, default=_one_eigh)


def _dominant(a: Matrix) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue and its vector, by squaring: LAPACK's threads wait on a busy machine.

    Until one eigenvalue is left, at most as often as the mantissa has bits: after K squarings each
    other one, wherever it lies, adds an error of at most about 1 / (2e 2^K) of twice the bound.
    """
    bound = 1.01 * jnp.abs(a).sum(0).max()  # no eigenvalue is below its negative
    b = a + bound * jnp.eye(a.shape[0], dtype=a.dtype)
    limits = jnp.finfo(a.dtype)

    def is_mixed(carry):
        count, b = carry
        purity = jnp.vdot(b, b, precision="highest")
        return (count < limits.nmant) & (purity < 1 - limits.eps)

    def squared(carry):
        count, b = carry
        b = product(b, b)
        return count + 1, b / jnp.trace(b)

    _, b = jax.lax.while_loop(is_mixed, squared, (0, b / jnp.trace(b)))
    vector = b[:, jnp.argmax(jnp.diagonal(b))]
    vector = vector / jnp.linalg.norm(vector)
    return jnp.vdot(vector, product(a, vector), precision="highest"), vector


@jax.jit
def _largest_eigenvalue(a: Matrix) -> jax.Array:
    """By Lanczos' recurrence, from a fixed start; the copies that rounding adds do no harm."""
    n = a.shape[0]
    first, most = 48, min(n, 128)
    if n <= first:
        return _dominant(a)[0]
    start = jnp.asarray(np.random.default_rng(0).normal(size=n), a.dtype)

    def step(carry, _):
        w, previous = carry
        norm = jnp.linalg.norm(w)
        v = w / jnp.where(norm > 0, norm, 1)
        w = product(a, v) - norm * previous
        diagonal = jnp.vdot(v, w, precision="highest")
        return (w - diagonal * v, v), (diagonal, norm)

    def ritz(diagonal, norms):
        off = jnp.diag(norms[1:], 1)
        value, vector = _dominant(jnp.diag(diagonal) + off + off.T)
        return value, jnp.abs(vector[-1])

    carry, rows = jax.lax.scan(step, (start, jnp.zeros_like(start)), None, length=first)
    value, last = ritz(*rows)

    def proceed(found):
        _, more = jax.lax.scan(step, carry, None, length=most - first)
        value, _ = ritz(*(jnp.concatenate(pair) for pair in zip(rows, more, strict=True)))
        return value, ~found[1]

    # The value's error is at most the residual's square over the gap below it.
    found = value, jnp.linalg.norm(carry[0]) * last <= 1e-5 * value
    # A loop, which a batch leaves out where no matrix needs it; a `cond` it would not.
    return jax.lax.while_loop(lambda found: ~found[1], proceed, found)[0]


class _Newton(NamedTuple):
    step: jax.Array
    m: Matrix
    h: Matrix
    best: Matrix
    best_error: jax.Array
    promising: jax.Array


def _newton(
    a: Matrix, *, p: int, tolerance: float, max_iterations: int
) -> tuple[Matrix, jax.Array]:
    """Coupled Newton iteration for a matrix whose largest eigenvalue is 1."""
    identity = jnp.eye(a.shape[0], dtype=a.dtype)
    z = (1 + p) / 2  # z a has its spectrum in (0, p + 1), where Newton converges

    def unfinished(now):
        return (now.step < max_iterations) & now.promising & (now.best_error > p * tolerance)

    def step(now):
        t = ((p + 1) * identity - now.m) / p
        m = symmetric(product(power(t, p), now.m))
        h = product(now.h, t)
        error = jnp.max(jnp.abs(m - identity))
        better = error < now.best_error
        # Far from I the entries' error may grow while every eigenvalue converges.
        promising = jnp.isfinite(error) & (better | (now.best_error >= 0.01))
        best = jnp.where(better, h, now.best)
        best_error = jnp.where(better, error, now.best_error)
        return _Newton(now.step + 1, m, h, best, best_error, promising)

    h = z ** (1 / p) * identity
    start = _Newton(jnp.array(0), z * a, h, h, jnp.max(jnp.abs(z * a - identity)), jnp.array(True))
    last = jax.lax.while_loop(unfinished, step, start)
    return symmetric(last.best), last.step


def _composed(a: Matrix, *, p: int, schedule: tuple[_minimax.Step, ...]) -> tuple[Matrix, int]:
    """The coupled iteration with fixed polynomials, for a matrix in their interval."""
    identity = jnp.eye(a.shape[0], dtype=a.dtype)
    m, h = a, identity
    for number, step in enumerate(schedule, 1):
        s = step.slope * m + step.shift * identity
        t = _minimax.polynomial(step.coefficients, s, identity, product)
        h = t if number == 1 else product(h, t)
        if number < len(schedule):
            m = symmetric(product(power(t, p), m))
    return symmetric(h), len(schedule)
