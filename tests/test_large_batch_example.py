"""The example of large batches: it tunes, scales and draws."""

import json
import math

import optax
import pytest

import large_batch


@pytest.mark.slow
def test_it_tunes_scales_and_draws(tmp_path):
    arguments = ["--tasks", "text", "--optimizers", "lamb", "--multiples", "1", "4"]
    assert (
        large_batch.main([*arguments, "--seeds", "1", "--share", "0.01", "--out", str(tmp_path)])
        == 0
    )
    results = json.loads((tmp_path / "results.json").read_text())
    errors = results["text"]["lamb"]["errors"]
    assert set(errors) == {"linear", "sqrt"}
    assert errors["linear"]["1"] == errors["sqrt"]["1"]
    assert errors["linear"]["4"] != errors["sqrt"]["4"]
    assert errors["linear"]["1"][0] < 7  # bits per byte; chance is 8
    assert (tmp_path / "large_batch.png").stat().st_size > 5_000


@pytest.mark.slow
def test_the_search_ends_between_worse_rates(monkeypatch):
    trainer = large_batch.Trainer(large_batch.digits(0.1), optax.sgd)
    best = 0.1 * large_batch.FACTOR**3
    tried = []

    def error(rate, multiple, rule, seed):
        tried.append(rate)
        return abs(math.log(rate / best))

    monkeypatch.setattr(trainer, "error", error)
    assert math.isclose(trainer.tuned(0.1, lambda said: None), best)
    assert min(tried) < 0.1
    assert max(tried) > best
    assert len(tried) == len(set(tried))
