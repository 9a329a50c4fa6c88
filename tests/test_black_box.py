"""The example without gradients: it runs, draws, tunes, and says what cannot work."""

import numpy as np
import pytest

import black_box

TINY = "--steps 30 --seeds 1 --directions 1 --candidates 2 --batch 10 --hidden 2"


@pytest.fixture(scope="module")
def two_ways():
    """The gradient and ranks: the others differ in one argument and compile as slowly."""
    names = list(black_box.WAYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(black_box, "WAYS", {n: black_box.WAYS[n] for n in (names[0], names[-1])})
        yield


@pytest.mark.slow
def test_a_run_ends_in_a_picture_and_a_table(two_ways, tmp_path, capsys):
    assert black_box.main([*TINY.split(), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "black_box.png").read_bytes().startswith(b"\x89PNG")
    assert "test, after 30 steps" in capsys.readouterr().out


def test_every_way_has_a_grid_of_one_size_and_can_be_built():
    settings = black_box.Settings()
    for way in black_box.WAYS.values():
        assert len(way.grid) == 6
        for values in way.grid:
            way.make(settings, **{k: v for k, v in values.items() if k != "rate"})


def test_the_parts_are_disjoint_and_the_error_rate_is_a_share():
    data = black_box.load()
    assert [len(part.labels) for part in data.values()] == [1000, 297, 500]
    params = {"into": np.zeros((64, 1)), "bias": np.zeros(1), "out": np.eye(1, 10, 3)}
    params["bias"] += 1  # always the digit 3
    share = float(np.mean(np.asarray(data["test"].labels) == 3))
    assert black_box.error_rate(params, data["test"]) == pytest.approx(1 - share)


@pytest.mark.parametrize("arguments", ["--steps 29", "--batch 1001", "--seeds 0"])
def test_a_value_that_cannot_work_is_named(arguments):
    with pytest.raises(SystemExit, match=arguments):
        black_box.main(arguments.split())
