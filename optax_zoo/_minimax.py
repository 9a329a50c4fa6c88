"""Polynomials that bring a spectrum to 1, for the coupled iteration of inverse p-th roots.

A step with the polynomial T maps an eigenvalue x to T(x)^p x. Each T minimises
max |T(x)·x^(1/p) − 1| over the interval that the step before leaves; found once, in NumPy.
"""

import functools
import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Relative error of the root at which the iteration stops: what a float32 root can hold.
TOLERANCE = 1e-7
# Below it rounding moves the small eigenvalues of float64 by more than the polynomials allow for.
LEAST_RIDGE = 1e-7


class Step(NamedTuple):
    """The polynomial of one step, in the variable slope x + shift that runs from -1 to 1."""

    slope: float
    shift: float
    coefficients: tuple[float, ...]

    def at(self, x: float) -> float:
        """The polynomial's value."""
        s = self.slope * x + self.shift
        return float(polynomial(self.coefficients, s, 1.0, lambda a, b: a * b))


# Degrees and the products that each takes.
PRODUCTS = {2: 1, 4: 2, 8: 3}


def polynomial(c: tuple[float, ...], s: Any, one: Any, product: Callable[..., Any]) -> Any:
    """A polynomial of degree 2, 4 or 8 in 1, 2 or 3 products; Sastre 2018, equation 31."""
    square = product(s, s)
    low = c[0] * one + c[1] * s + c[2] * square
    if len(c) == 3:
        return low
    quartic = product(square, c[3] * s + c[4] * square)
    if len(c) == 5:
        return low + quartic
    left, right = quartic + c[5] * s + c[6] * square, quartic + c[7] * square
    return low + c[8] * quartic + product(left, right)


def _sastre(b: np.ndarray) -> tuple[float, ...] | None:
    """The coefficients of `polynomial` for the monomials b of degree 8, if there are real ones."""
    if b[8] <= 0:
        return None
    c4 = b[8] ** 0.5
    c3 = b[7] / (2 * c4)
    total = (b[6] - c3**2) / c4  # c6 + c7
    c5 = (b[5] - c3 * total) / c4
    ratio = c3 / c4
    roots = np.roots([ratio, c5 - ratio * total, ratio * (b[4] - c3 * c5) - b[3]])
    solutions = []
    for c7 in roots[np.isreal(roots)].real:
        c6 = total - c7
        c8 = (b[4] - c3 * c5 - c6 * c7) / c4
        solutions.append(tuple(map(float, (b[0], b[1], b[2], c3, c4, c5, c6, c7, c8))))
    return min(solutions, key=lambda c: max(map(abs, c)), default=None)


@functools.lru_cache(maxsize=256)
def schedule(p: int, ridge: float, tolerance: float) -> tuple[Step, ...]:
    """The polynomials that reach the tolerance in the fewest products, by Dijkstra's search."""
    # Lanczos' value may lie below the true one.
    lo, hi = ridge / (1 + ridge), 1 + 1e-4
    powers = p.bit_length() + p.bit_count() - 2
    queue: list[Any] = [(0, hi / lo, lo, hi, ())]
    narrowest = np.inf
    while queue:
        cost, spread, lo, hi, steps = heapq.heappop(queue)
        if max(hi - 1, 1 - lo) <= tolerance:
            return steps
        if spread >= narrowest:
            continue
        narrowest = spread
        for degree, products in PRODUCTS.items():
            step, low, high = _minimax(lo**p if steps else lo, hi**p if steps else hi, p, degree)
            if step is not None and low > 0:
                finished = max(high - 1, 1 - low) <= tolerance
                after = cost + products + bool(steps) + (0 if finished else powers + 1)
                heapq.heappush(queue, (after, high / low, low, high, (*steps, step)))
    raise AssertionError("no polynomial narrows the spectrum")


def _minimax(lo: float, hi: float, p: int, degree: int) -> tuple[Step | None, float, float]:
    """Remez: the T that minimises max |T(x) x^(1/p) - 1|, and the range of T(x) x^(1/p)."""
    x = np.geomspace(lo, hi, 4001)
    slope, shift = 2 / (hi - lo), -(hi + lo) / (hi - lo)
    s = slope * x + shift
    weight = x ** (1 / p)
    basis = np.polynomial.chebyshev.chebvander(s, degree) * weight[:, None]
    signs = (-1.0) ** np.arange(degree + 2)
    extrema = np.searchsorted(s, -np.cos(np.linspace(0, np.pi, degree + 2))).clip(0, x.size - 1)
    chebyshev = np.zeros(degree + 1)
    for _ in range(30):
        chebyshev = np.linalg.solve(np.c_[basis[extrema], signs], np.ones(degree + 2))[:-1]
        error = basis @ chebyshev - 1
        runs = np.split(np.arange(x.size), np.flatnonzero(np.diff(np.sign(error))) + 1)
        peaks = np.array([run[np.argmax(np.abs(error[run]))] for run in runs])
        if len(peaks) != degree + 2 or np.array_equal(peaks, extrema):
            break  # found, or the error is down to rounding
        extrema = peaks
    monomials = np.polynomial.chebyshev.cheb2poly(chebyshev)
    coefficients = _sastre(monomials) if degree == 8 else tuple(map(float, monomials))
    if coefficients is None:
        return None, 0.0, 0.0
    # Finer, as what lies between the points must stay within the next step's interval.
    x = np.geomspace(lo, hi, 80_001)
    reached = polynomial(coefficients, slope * x + shift, 1.0, np.multiply) * x ** (1 / p)
    step = Step(float(slope), float(shift), coefficients)
    return step, float(reached.min()), float(reached.max())
