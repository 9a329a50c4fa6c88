"""Every optimizer's path over every landscape, at the best of one grid of learning rates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_zoo as zoo
from benchmarks.arena._search import FINE, lowest
from benchmarks.gallery._landscapes import Landscape

STEPS = 300
POWERS = range(-20, 13)  # of FINE: learning rates from 1e-5 to 1e3
ARRIVED = 1e-3  # of the start's height

# (peak, schedule) -> optimizer
Factory = Callable[[Any, Any], optax.GradientTransformation]


class Path(NamedTuple):
    """A run.

    Attributes:
      points: (steps + 1, 2), the start included.
      heights: f there.
      rate: The learning rate.
    """

    points: np.ndarray
    heights: np.ndarray
    rate: float

    @property
    def arrived(self) -> int | None:
        """The step from which on the path stays below a thousandth of the start's height."""
        below = self.heights < ARRIVED * self.heights[0]
        return len(below) - int(np.argmin(below[::-1])) if below[-1] else None


def _from_zoo(name: str, peak: Any, schedule: Any) -> optax.GradientTransformation:
    """An optimizer of the zoo at its defaults, but for what the plane asks for."""
    entry = zoo.info(name)
    given: dict[str, Any] = {
        "weight_decay": 0.0,
        "base_lr": peak,
        "final_lr": 100 * peak,  # the default's ratio
        "domain": "signed",
        "eta_fn": lambda name, shape: 1.0,
        "refresh": zoo.Refresh(every=1, delay=0),
    }
    if "roots" in entry.defaults:
        # So that all learning rates are one program without callbacks.
        given["roots"] = zoo.Roots(entry.defaults["roots"].method, on="device")
    if name == "amos":
        schedule = peak  # it decays by itself
    taken = {*entry.required, *entry.defaults}
    return zoo.create(name, schedule, **{k: v for k, v in given.items() if k in taken})


SGD = "momentum SGD"

FACTORIES: Mapping[str, Factory] = {
    SGD: lambda peak, schedule: optax.sgd(schedule, momentum=0.9),
    "AdamW": lambda peak, schedule: optax.adamw(schedule, weight_decay=0.0),
    **{name: partial(_from_zoo, name) for name in zoo.list_optimizers()},
}


def walk(make: Factory, height: Any, start: jax.Array, rate: Any, steps: int) -> jax.Array:
    """The points of a run; the learning rate falls to 0 by a cosine.

    The point is the first column of a matrix whose second one no gradient reaches: Shampoo and
    SOAP take a vector for Adam's, and a matrix's rows are what their left statistic is about. To
    all others it makes no difference.
    """

    def schedule(count):
        return rate * (1 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1))) / 2

    optimizer = make(rate, schedule)

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        gradient = jax.grad(lambda w: height(w[:, 0]))(w)
        updates, state = optimizer.update(gradient, state, w)
        w += updates
        return (w, state), w[:, 0]

    w = jnp.stack([start, jnp.zeros(2)], axis=1)
    _, points = jax.lax.scan(step, (w, optimizer.init(w)), None, steps)
    return jnp.concatenate([start[None], points])


def tuned(make: Factory, landscapes: Sequence[Landscape], steps: int = STEPS) -> list[Path]:
    """For each landscape the path that arrives first, of those that never leave the picture."""
    rates = np.array([FINE**power for power in POWERS])
    starts = jnp.array([landscape.start for landscape in landscapes])

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    @partial(jax.vmap, in_axes=(None, None, 0))
    def runs(which, start, rate):
        def height(point):
            return jax.lax.switch(which, [landscape.height for landscape in landscapes], point)

        points = walk(make, height, start, rate, steps)
        return points, jax.vmap(height)(points)

    found = runs(jnp.arange(len(landscapes)), starts, jnp.asarray(rates, jnp.float32))
    best = []
    for landscape, points, heights in zip(landscapes, *map(np.asarray, found), strict=True):
        paths = [Path(*run) for run in zip(points, heights, rates, strict=True)]
        place = lowest({i: _error(path, landscape) for i, path in enumerate(paths)})
        if place in (0, len(paths) - 1):
            raise ValueError(f"{rates[place]:.3g}, the best learning rate, ends POWERS; widen them")
        best.append(paths[place])
    return best


def _error(path: Path, landscape: Landscape) -> float:
    """The steps to the minimum; of paths that do not arrive, by their ends."""
    if not landscape.shows(path.points):
        return np.inf
    end = float(path.heights[-1] / path.heights[0])
    return len(path.heights) + end if path.arrived is None else path.arrived
