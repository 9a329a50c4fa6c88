"""`inverse_pth_root` for the host's workers: NumPy and LAPACK in float64, no XLA.

A callback that waits for a worker holds a thread of XLA's pool. What the worker asked of XLA could
wait for that very thread: with two cores, a jitted eigendecomposition in a worker stopped a
training forever (compare jax-ml/jax#24255). BLAS works in the thread that calls it, in a forked
process too, and gives the same bits as long as it is one thread.
"""

import functools
from typing import Any

import numpy as np

from optax_zoo import _minimax

Matrices = np.ndarray


def inverse_pth_roots(
    matrices: Matrices, p: int, method: str, ridge: float
) -> tuple[Matrices, np.ndarray, np.ndarray]:
    """(A + ridge·λmax·I)^(−1/p) of symmetric matrices (k, n, n) in float64.

    Returns:
      Roots (k, n, n), NaN where there is none; residuals max|X^p A − I| of the ridged matrices
      scaled to λmax = 1, infinite where there is no root; iterations, 0 for "eigh".
    """
    with np.errstate(all="ignore"):  # what overflows or divides by zero fails by its residual
        return _roots(matrices, p, method, ridge)


def _roots(
    matrices: Matrices, p: int, method: str, ridge: float
) -> tuple[Matrices, np.ndarray, np.ndarray]:
    identity = np.eye(matrices.shape[-1])
    largest = np.abs(matrices).max((1, 2))
    usable = np.isfinite(largest) & (largest > 0)
    # A power of two rounds nothing, and keeps squares from overflowing.
    _, exponents = np.frexp(np.where(usable, largest, 1))
    scaled = np.where(_each(usable), np.ldexp(matrices, -_each(exponents)), identity)
    steps = 0
    if method == "eigh":
        top, ridged, roots = _by_eigh(scaled, p, ridge)
    else:
        top = _largest_eigenvalues(scaled)
        ridged = _ridged(scaled, top, ridge)
        if ridge >= _minimax.LEAST_RIDGE and p > 1:
            schedule = _minimax.schedule(p, ridge, _minimax.TOLERANCE)
            roots, steps = _composed(ridged, p, schedule), len(schedule)
        else:
            roots, steps = _newton(ridged, p)
    residuals = np.abs(_power(roots, p) @ ridged - identity).max((1, 2))
    roots = roots * _each((top * (1 + ridge)) ** (-1 / p) * np.exp2(-exponents / p))
    found = usable & np.isfinite(residuals) & np.isfinite(roots).all((1, 2))
    return (
        np.where(_each(found), roots, np.nan),
        np.where(found, residuals, np.inf),
        np.where(found, steps, 0),
    )


def _each(x: np.ndarray) -> np.ndarray:
    """One number for each matrix, shaped to meet matrices."""
    return x[:, None, None]


def _ridged(a: Matrices, top: np.ndarray, ridge: float) -> Matrices:
    return (a / _each(top) + ridge * np.eye(a.shape[-1])) / (1 + ridge)


def _square(a: Matrices) -> Matrices:
    """a² of a symmetric a: NumPy knows a product with the own transpose, which is half the work."""
    return a @ a.swapaxes(1, 2)


def _product(a: Matrices, b: Matrices) -> Matrices:
    return _square(a) if a is b else a @ b


def _power(a: Matrices, p: int) -> Matrices:
    if p == 1:
        return a
    square = _square(_power(a, p // 2))
    return square if p % 2 == 0 else square @ a


def _symmetric(a: Matrices) -> Matrices:
    return (a + a.swapaxes(1, 2)) / 2


def _by_eigh(a: Matrices, p: int, ridge: float) -> tuple[np.ndarray, Matrices, Matrices]:
    """λmax, the ridged matrices and their roots, both scaled to λmax = 1."""
    values, vectors = eigh(a)
    top = values[:, -1]
    spectrum = (np.maximum(values / _each(top)[..., 0], 0) + ridge) / (1 + ridge)
    half = vectors * spectrum[:, None, :] ** (-0.5 / p)
    return top, _ridged(a, top, ridge), _square(half)


def eigh(a: Matrices) -> tuple[np.ndarray, Matrices]:
    """Eigenvalues and vectors; NaN for a matrix on which LAPACK does not converge."""
    try:
        return np.linalg.eigh(a)
    except np.linalg.LinAlgError:
        if len(a) > 1:
            values, vectors = zip(*(eigh(one[None]) for one in a), strict=True)
            return np.concatenate(values), np.concatenate(vectors)
        return np.full(a.shape[:2], np.nan), np.full(a.shape, np.nan)


def _composed(a: Matrices, p: int, schedule: Any) -> Matrices:
    """The coupled iteration with the fixed polynomials of `inverse_pth_root`."""
    identity, m, h = np.eye(a.shape[-1]), a, a
    for number, step in enumerate(schedule, 1):
        s = step.slope * m + step.shift * identity
        t = _minimax.polynomial(step.coefficients, s, identity, _product)
        h = t if number == 1 else h @ t
        if number < len(schedule):
            m = _symmetric(_power(t, p) @ m)
    return _symmetric(h)


def _newton(a: Matrices, p: int) -> tuple[Matrices, np.ndarray]:
    """Coupled Newton, matrix by matrix, as far as rounding lets it come."""
    found = [_newton_of_one(one[None], p) for one in a]
    return np.concatenate([h for h, _ in found]), np.array([steps for _, steps in found])


def _newton_of_one(a: Matrices, p: int) -> tuple[Matrices, int]:
    identity, z = np.eye(a.shape[-1]), (1 + p) / 2
    m, h, best, least = z * a, z ** (1 / p) * identity[None], identity[None], np.inf
    for number in range(1, 101):
        t = ((p + 1) * identity - m) / p
        m, h = _symmetric(_power(t, p) @ m), h @ t
        error = np.abs(m - identity).max()
        # Far from I the entries' error may grow while every eigenvalue converges.
        if not np.isfinite(error) or (error >= least and least < 0.01):
            return _symmetric(best), number
        if error < least:
            best, least = h, error
    return _symmetric(best), 100


def _largest_eigenvalues(a: Matrices) -> np.ndarray:
    n = a.shape[-1]
    if n <= 48:
        return eigh(a)[0][:, -1]
    return np.array([_by_lanczos(one) for one in a])


@functools.lru_cache(maxsize=64)
def _start(n: int) -> np.ndarray:
    v = np.random.default_rng(0).normal(size=n)
    return v / np.linalg.norm(v)


def _by_lanczos(a: np.ndarray) -> float:
    """λmax by Lanczos' recurrence; the copies that rounding adds do no harm to the largest."""
    n = len(a)
    v, previous, norm = _start(n), np.zeros(n), 0.0
    diagonal: list[float] = []
    norms: list[float] = []
    value = 0.0
    for number in range(1, min(n, 128) + 1):
        w = a @ v - norm * previous
        diagonal.append(float(v @ w))
        w -= diagonal[-1] * v
        norm = float(np.linalg.norm(w))
        if number % 16 == 0 or norm == 0 or number == n:
            tridiagonal = np.diag(diagonal) + np.diag(norms, 1) + np.diag(norms, -1)
            values, vectors = (x[0] for x in eigh(tridiagonal[None]))
            value = float(values[-1])
            # The value's error is at most the residual's square over the gap below it.
            if norm * abs(vectors[-1, -1]) <= 1e-5 * value:
                break
        norms.append(norm)
        v, previous = w / norm, v
    return value
