"""Functions of two variables, each 0 where it is least."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[float, float]


class Landscape(NamedTuple):
    """A function of the plane.

    Attributes:
      title: Its name.
      height: point (2,) -> f >= 0.
      start: Where every path begins.
      minima: All points where f is 0.
      x: The interval of the first coordinate that is shown.
      y: The same of the second.
    """

    title: str
    height: Callable[[jax.Array], jax.Array]
    start: Pair
    minima: tuple[Pair, ...]
    x: Pair
    y: Pair

    def shows(self, points: Any) -> bool:
        """Whether all of them, (..., 2), lie in the part of the plane that is shown."""
        low, high = zip(self.x, self.y, strict=True)
        return bool(np.all((points >= np.array(low)) & (points <= np.array(high))))

    def grid(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates of count² points of that part, and f there: the first varies fastest."""
        x, y = np.meshgrid(np.linspace(*self.x, count), np.linspace(*self.y, count))
        heights = jax.vmap(self.height)(jnp.stack([x.ravel(), y.ravel()], axis=1))
        return x, y, np.asarray(heights).reshape(x.shape)


def _rosenbrock(point: jax.Array) -> jax.Array:
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(point: jax.Array) -> jax.Array:
    x, y = point
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


# Away from the origin, towards which decay and trust ratios lean, and turned, so that no
# coordinate is an axis of the curvature.
_CENTRE = np.array([1.0, 0.5])
_TURN = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])


def _placed(along: float, across: float) -> Pair:
    x, y = _CENTRE + _TURN @ np.array([along, across])
    return float(x), float(y)


def _ravine(point: jax.Array) -> jax.Array:
    along, across = _TURN.T @ (point - _CENTRE)
    return (along**2 + 100 * across**2) / 2


def _saddle(point: jax.Array) -> jax.Array:
    along, across = _TURN.T @ (point - _CENTRE)
    return along**2 / 2 + (across**2 - 1) ** 2 / 4


# The starts of the first two are the usual ones; on the saddle a thousandth beside the ridge.
LANDSCAPES = (
    Landscape("Rosenbrock", _rosenbrock, (-1.2, 1.0), ((1.0, 1.0),), (-2.0, 2.0), (-1.0, 3.0)),
    Landscape("Beale", _beale, (1.0, 1.0), ((3.0, 0.5),), (-0.4, 4.0), (-2.4, 2.0)),
    Landscape("ravine", _ravine, _placed(-2.0, 0.6), (_placed(0, 0),), (-1.6, 2.4), (-1.6, 2.4)),
    Landscape(
        "saddle",
        _saddle,
        _placed(-1.8, 1e-3),
        (_placed(0, 1), _placed(0, -1)),
        (-1, 3),
        (-1.5, 2.5),
    ),
)
