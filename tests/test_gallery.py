"""The gallery: landscapes are what they say, tuned paths lead down, pictures are drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gallery import _bounds, _sheet, _signs, _spectrum
from benchmarks.gallery._digits import initial
from benchmarks.gallery._landscapes import LANDSCAPES
from benchmarks.gallery._paths import FACTORIES, SGD, Path, tuned, walk

RAVINE = LANDSCAPES[2]


@pytest.fixture(scope="module")
def short():
    """Tuned paths of 40 steps through the ravine, of few optimizers: each one is compiled."""
    names = (SGD, "lion", "adabound", "adaboundw")
    return {name: tuned(FACTORIES[name], [RAVINE], steps=40) for name in names}


@pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda landscape: landscape.title)
def test_a_landscape_is_least_where_it_says(landscape):
    around = 0.1 * np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)])
    for minimum in landscape.minima:
        heights = [float(landscape.height(point)) for point in minimum + around]
        assert heights[0] == pytest.approx(0, abs=1e-12)
        assert min(heights[1:]) > 1e-4
    assert landscape.shows([*landscape.minima, landscape.start])
    assert not landscape.shows([np.nan, 0.0])
    assert landscape.height(np.array(landscape.start)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_every_optimizer_walks(name):
    path = partial(walk, FACTORIES[name], RAVINE.height, steps=3)
    assert jax.eval_shape(path, jnp.array(RAVINE.start), 0.1).shape == (4, 2)


@pytest.mark.slow
def test_tuned_paths_lead_down_and_are_drawn(short, tmp_path):
    for name, (path,) in short.items():
        assert path.points.shape == (41, 2)
        assert RAVINE.shows(path.points)
        assert path.heights[-1] < 0.1 * path.heights[0], name
    assert list(_sheet.alike(short)) == [SGD, "lion", "adabound, adaboundw"]
    _sheet.draw(short, [RAVINE], tmp_path / "paths.png")
    _signs.draw(short[SGD][0], short["lion"][0], tmp_path / "signs.png")
    assert {file.name for file in tmp_path.iterdir()} == {"paths.png", "signs.png"}


def test_a_path_has_arrived_where_it_stays():
    def path(*heights):
        return Path(np.zeros((len(heights), 2)), np.array(heights), 1.0)

    assert path(1.0, 1e-4, 0.5, 1e-4, 1e-5).arrived == 3
    assert path(1.0, 1e-4, 0.5).arrived is None


@pytest.mark.slow
def test_lion_without_momentum_steps_by_the_gradients_signs():
    points = np.array([[-1.0, 2.0], [0.5, -1.0]])
    assert np.array_equal(_signs.steps(points), -np.sign(_signs.slopes(points)))


@pytest.mark.slow
def test_rates_lie_between_the_bounds():
    when, (lower, upper), reports = _bounds.record(steps=20)
    assert when[0] == 1
    for layer in _bounds.LAYERS:
        for place in ("rate_p10", "rate_p90"):
            rates = np.array([report[layer][place] for report in reports])
            assert np.all((rates >= 0.999 * lower) & (rates <= 1.001 * upper))


@pytest.mark.slow
def test_shampoos_state_has_the_moments_of_the_spectrum():
    state = jax.eval_shape(_spectrum.shampoo().init, initial())
    assert [moment.shape for moment in _spectrum.moments(state)] == [(64, 64)] * 2
