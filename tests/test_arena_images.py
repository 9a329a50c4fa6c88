"""The arena's pictures and the two studies on them."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.arena import _study, batches, generalisation, images
from benchmarks.arena._training import Trainer


def test_pictures_follow_from_the_seed():
    train, _ = images.split_digits()
    first, again, other = (images.compose(train, 50, seed) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.images, other.images)


def test_no_held_out_digit_is_in_a_training_picture():
    train, held_out = images.split_digits()
    assert len(train.labels) + len(held_out.labels) == 1797
    seen = {digit.tobytes() for digit in train.images}
    assert not seen & {digit.tobytes() for digit in held_out.images}


def test_labels_name_the_digits_from_left_to_right():
    """Without noise a picture is the brighter of its two digits, each at its place."""
    train, _ = images.split_digits()
    pictures = images.compose(train, 200, 0, noise=0.0)
    lefts = pictures.corners[:, :, 1]
    assert (lefts[:, 1] - lefts[:, 0] >= images.APART).all()
    assert (np.diff(lefts) < images.SIDE).any()  # some overlap
    for picture, labels, chosen, corners in zip(*pictures, strict=True):
        expected = np.zeros_like(picture)
        for row, label, (top, left) in zip(chosen, labels, corners, strict=True):
            assert train.labels[row] == label
            window = expected[top : top + 8, left : left + 8]
            window[:] = np.maximum(window, train.images[row])
        np.testing.assert_array_equal(picture, expected)


@pytest.mark.slow
def test_batches_of_all_sizes_see_as_many_examples():
    for batch in (16, 256):
        workload = images.workload(batch)
        assert workload.steps * batch == images.EPOCHS * images.TRAINING
        data = workload.data()
        drawn, labels = workload.batch(data, jax.random.key(0))
        assert drawn.shape == (batch, images.HEIGHT, images.WIDTH)
        assert labels.shape == (batch, 2)
    with pytest.raises(ValueError, match="batch is 0; pass 1 to 8192"):
        images.workload(0)
    with pytest.raises(ValueError, match="epochs is 0; pass 1 or more"):
        images.workload(16, epochs=0)


@pytest.mark.slow
def test_the_score_is_the_share_of_wrong_pairs():
    data = images.data()
    params = jax.tree.map(jnp.zeros_like, images.init(data, 0))
    params["head"]["bias"] = jnp.zeros(20).at[jnp.array([3, 17])].set(1.0)  # says 3, 7
    wrong = np.any(np.asarray(data.held_out_labels) != [3, 7], axis=1)
    assert float(images.score(params, data)) == pytest.approx(100 * wrong.mean(), rel=1e-6)


def test_the_search_widens_then_refines():
    best = 5

    def error(power):
        return abs(power - best)

    wide = _study.widened(error, 2, 12)
    assert set(wide) == {-2, 0, 2, 4, 6}
    found = _study.refined(error, wide, len(wide) + 2)
    assert set(found) - set(wide) == {3, 5}
    assert min(found, key=found.__getitem__) == best
    assert len(_study.widened(error, 2, 4)) == 4  # the limit


def result_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_the_batch_study_runs_and_resumes(tmp_path, monkeypatch, capsys):
    settings = batches.Settings(
        optimizers=("sgd",), multiples=(1, 64), trials=3, seeds=2, share=0.03, out=tmp_path
    )
    batches.main(settings)
    printed = capsys.readouterr().out
    assert "sgd" in printed
    assert (tmp_path / "batches.png").stat().st_size > 5_000
    runs = result_lines(tmp_path / "batches.jsonl")
    assert {run["batch"] for run in runs} == {16, 1024}
    tuned = min((r for r in runs if r["batch"] == 16), key=lambda r: (r["seed"], r["error"]))
    scaled = {run["rate"] for run in runs if run["batch"] == 1024}
    assert any(math.isclose(rate, 64 * tuned["rate"], rel_tol=5e-3) for rate in scaled)
    check_that_nothing_runs_again(monkeypatch, lambda: batches.main(settings))
    assert result_lines(tmp_path / "batches.jsonl") == runs


@pytest.mark.slow
def test_the_study_of_generalisation_runs_and_resumes(tmp_path, monkeypatch, capsys):
    settings = generalisation.Settings(trials=3, seeds=2, share=0.01, out=tmp_path)
    generalisation.main(settings)
    printed = capsys.readouterr().out
    assert "amsbound: not at this size: " in printed  # 41 steps teach nothing
    assert (tmp_path / "generalisation.png").stat().st_size > 5_000
    runs = result_lines(tmp_path / "generalisation.jsonl")
    counts = {name: sum(run["contender"] == name for run in runs) for name in ("sgd", "amsbound")}
    assert counts == {"sgd": 3 + 2, "amsbound": 3 + 2}
    check_that_nothing_runs_again(monkeypatch, lambda: generalisation.main(settings))
    assert result_lines(tmp_path / "generalisation.jsonl") == runs


def check_that_nothing_runs_again(monkeypatch, again):
    def refuse(*_):
        raise AssertionError("a finished run was repeated")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", refuse)
        again()


def test_verdicts_follow_from_means_and_spreads():
    def outcome(early, error):
        spread = np.array([-1, 0, 1])
        return generalisation.Outcome(
            0.1, True, list(early + 0.1 * spread), list(error + 0.5 * spread)
        )

    def verdict(adam, bound):
        found = {"sgd": outcome(3, 20), "adam": outcome(*adam), "adabound": outcome(*bound)}
        return generalisation.verdict(found, "adabound")[0]

    assert verdict((2, 25), (2, 20)) == "reproduced"
    assert verdict((2, 25), (2.05, 20.4)) == "reproduced"  # within the spread
    assert verdict((2, 25), (2.9, 20)) == "no"
    assert verdict((2, 25), (2, 25)) == "no"
    assert verdict((2, 20), (2, 20)) == "not at this size"
    assert verdict((3, 25), (3, 20)) == "not at this size"
    assert verdict((2, 25), (2, math.inf)) == "no"


def test_wrong_options_name_the_remedy(tmp_path):
    with pytest.raises(SystemExit, match="--optimizers lamp: unknown; did you mean lamb"):
        batches.main(batches.Settings(optimizers=("lamp",), out=tmp_path))
    with pytest.raises(SystemExit, match="--multiples 1024: a batch holds at most"):
        batches.main(batches.Settings(multiples=(1024,), out=tmp_path))
    with pytest.raises(SystemExit, match="--seeds 1: a spread needs two or more"):
        generalisation.main(generalisation.Settings(seeds=1, out=tmp_path))
