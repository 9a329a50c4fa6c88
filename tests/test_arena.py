"""The arena: its protocol on made-up scores, its files, and one real training."""

import math
import re
import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.arena import (
    _pictures,
    _tables,
    _verdicts,
    defaults,
    report,
    run,
    sensitivity,
    staleness,
    timing,
)
from benchmarks.arena._contenders import BASELINES, CONTENDERS, Setting
from benchmarks.arena._protocol import COARSE, FINE, KEY, Arena, Missing, Trials, smallest_share
from benchmarks.arena._results import Results
from benchmarks.arena._training import Run, Trainer, rate_at
from benchmarks.arena._workload import Workload
from benchmarks.arena._workloads import WORKLOADS
from helpers import slow


def bowl():
    """A workload of no cost: ‖w − 1‖² with a little noise."""
    return Workload(
        title="bowl",
        steps=40,
        warmup=0.2,
        decay=0.0,
        unit="distance",
        data=lambda: jnp.ones(4),
        init=lambda data, seed: {"w": jnp.asarray(np.random.default_rng(seed).normal(size=4))},
        batch=lambda data, key: data + 0.01 * jax.random.normal(key, (4,)),
        loss=lambda params, x: ((params["w"] - x) ** 2).sum(),
        score=lambda params, data: ((params["w"] - data) ** 2).sum(),
    )


class MadeUp(Arena):
    """An arena whose scores are a function of the run."""

    def __init__(self, results, score, **options):
        super().__init__(bowl()._replace(steps=1000), results, **options)
        self.asked = []
        self._made_up = score

    def trainer(self, name) -> Any:
        def train(rate, steps, seed):
            self.asked.append((name, rate, steps, seed))
            return Run(self._made_up(name, rate, steps, seed), [(1, 1.0)], 0.1)

        return types.SimpleNamespace(run=train)


@pytest.fixture
def results(tmp_path):
    with Results(tmp_path / "bowl.jsonl", KEY) as opened:
        yield opened


def around(best, floor=1.0):
    """A score that is least, `floor`, at a learning rate."""
    return lambda name, rate, steps, seed: floor + math.log(rate / best) ** 2


@pytest.mark.parametrize("factor", [1e-4, 0.3, 1, 3, 1e3])
def test_the_grid_widens_until_the_best_is_inside(results, factor):
    best = CONTENDERS["lion"].rate * factor
    arena = MadeUp(results, around(best))
    rate = arena.tune("lion")
    assert abs(math.log(rate / best)) <= math.log(FINE) / 2 + 1e-2
    tried = sorted(r for _, r, _, _ in arena.asked)
    assert tried[0] < rate < tried[-1]


def test_the_coarse_grid_is_the_same_for_all(results):
    arena = MadeUp(results, lambda name, rate, steps, seed: abs(math.log(rate / 1e-2)))
    arena.tune("shampoo")
    rates = [rate for _, rate, _, _ in arena.asked]
    assert rates[:3] == pytest.approx([1e-2 / COARSE, 1e-2, 1e-2 * COARSE], rel=0.01)
    assert len(rates) == 5


def test_a_diverged_run_is_the_worst(results):
    arena = MadeUp(results, lambda name, rate, steps, seed: None if rate > 1e-2 else 1 / rate)
    assert arena.tune("shampoo") <= 1e-2
    assert arena.run("shampoo", 1.0)["score"] is None
    assert Trials(1.0, [1.0, None]).mean == math.inf


def test_where_all_diverge_the_search_goes_down(results):
    best = CONTENDERS["shampoo"].rate * 10**-2.5

    def score(name, rate, steps, seed):
        return None if rate > 10 * best else around(best)(name, rate, steps, seed)

    assert MadeUp(results, score).tune("shampoo") == pytest.approx(best, rel=0.5)


def test_results_of_another_definition_or_of_other_data_do_not_count(results):
    arena = MadeUp(results, around(1e-2))
    arena.run("lion", 0.1)
    newer = {"lion": CONTENDERS["lion"]._replace(version=2)}
    again = MadeUp(results, around(1e-2), contenders=newer)
    again.run("lion", 0.1)
    assert len(again.asked) == 1
    other = MadeUp(results, around(1e-2))
    other.workload = other.workload._replace(data=lambda: jnp.zeros(4))
    other.run("lion", 0.1)
    assert len(other.asked) == 1
    assert len(results) == 3


def test_a_share_won_within_the_spread_of_the_seeds_is_marked():
    def verdict(share, close):
        return _verdicts.Verdict(Trials(1.0, [1.0]), share, close, {})

    texts = [_tables.share_text(v) for v in (verdict(0.5, True), verdict(None, False), None)]
    assert texts == ["0.5*", "–", ""]


@pytest.mark.parametrize(
    ("scores", "factor"),
    [
        ([9, 9, 1, 1.5, 9, 1, 9, 9, 9], 10**0.5),  # what lies apart does not count
        ([math.inf] * 9, 1.0),
        ([1.0] * 9, 1e4),
    ],
)
def test_the_tolerance_is_of_one_piece_around_the_best(scores, factor):
    assert sensitivity.tolerance(scores, 9.0) == pytest.approx(factor)


def test_the_target_is_the_best_adamw_over_all_seeds(results):
    def score(name, rate, steps, seed):
        return around(3e-3)(name, rate, steps, seed) + (name != "adamw b2=0.99") + 0.1 * seed

    arena = MadeUp(results, score)
    name, found = arena.baseline()
    assert name == "adamw b2=0.99"
    assert arena.b2 == 0.99
    assert found.mean == pytest.approx(1.1, abs=0.01)
    assert len(found.scores) == 3
    assert {a[0] for a in arena.asked} == set(BASELINES)


def test_budgets_shrink_until_one_misses(results):
    def score(name, rate, steps, seed):
        return around(1e-2)(name, rate, steps, seed) * 1000 / steps

    arena = MadeUp(results, score)
    full = arena.full("shampoo", target=2.1)
    ladder = arena.ladder("shampoo", full, target=2.1)
    assert list(ladder) == [1.0, 0.75, 0.6, 0.5, 0.4]
    assert smallest_share(ladder, 2.1) == 0.5
    assert smallest_share(ladder, 0.5) is None
    assert smallest_share({1.0: Trials(1, [1.0]), 0.75: Trials(1, [3.0]), 0.6: full}, 2.1) == 1.0


def test_who_is_far_from_the_target_runs_one_seed(results):
    arena = MadeUp(results, around(1e-2, floor=10.0))
    assert len(arena.full("shampoo", target=1.0).scores) == 1
    assert len(arena.full("shampoo", target=9.9).scores) == 3


def test_a_finished_run_is_never_repeated(tmp_path):
    path = tmp_path / "bowl.jsonl"
    with Results(path, KEY) as results:
        first = MadeUp(results, around(1e-2))
        rate = first.tune("shampoo")
    with Results(path, KEY) as results:
        second = MadeUp(results, around(1e-2))
        assert second.tune("shampoo") == rate
        assert second.asked == []
    with pytest.raises(Missing, match="lion"):
        MadeUp(Results(path, KEY), around(1), only_known=True).tune("lion")


def test_a_corrupt_line_is_reported_and_skipped(tmp_path):
    path = tmp_path / "bowl.jsonl"
    with Results(path, KEY) as results:
        MadeUp(results, around(1e-2)).run("lion", 0.1)
    path.write_text("{broken\n" + path.read_text() + '{"contender": "lion"}\n[1]\n{"contend')
    with pytest.warns(UserWarning, match="is no result and is skipped") as found:
        results = Results(path, KEY)
    assert len(results) == 1
    places = sorted(str(w.message).rpartition("jsonl:")[2].split()[0] for w in found)
    assert places == ["1", "3", "4", "5"]
    with results:  # what follows an interrupted line starts a new one
        MadeUp(results, around(1e-2)).run("lion", 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(Results(path, KEY)) == 2


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "bowl.jsonl"
    with Results(path, KEY), pytest.raises(SystemExit, match=r"bowl\.jsonl is being written"):
        Results(path, KEY).__enter__()
    with Results(path, KEY):
        pass


@pytest.mark.parametrize("steps", [10, *slow(64, 400)])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_the_schedule_is_a_rise_and_a_cosine(steps, warmup):
    found = [
        float(rate_at(jnp.int32(t), rate=3.0, steps=steps, warmup=warmup)) for t in range(steps)
    ]
    rising = max(int(warmup * steps), 1)
    wanted = optax.schedules.warmup_cosine_decay_schedule(3 / (rising + 1), 3.0, rising, steps)
    assert found == pytest.approx([float(jnp.asarray(wanted(t))) for t in range(steps)], abs=1e-5)
    flat = [
        float(rate_at(jnp.int32(t), rate=3.0, steps=steps, warmup=warmup, flat=True))
        for t in range(steps)
    ]
    assert flat[:rising] == pytest.approx(found[:rising])
    assert set(flat[rising:]) == {3.0}


@pytest.fixture
def only_bowl(monkeypatch):
    """The bowl as the only workload, with its studies shortened to it."""
    monkeypatch.setattr(_verdicts, "WORKLOADS", {"bowl": bowl()})
    for module in (run, report, _tables, _pictures, sensitivity, staleness, defaults):
        monkeypatch.setattr(module, "WORKLOADS", {"bowl": bowl()})
    monkeypatch.setattr(defaults, "SET_ON", ("bowl",))
    monkeypatch.setattr(defaults, "CONFIRMED_ON", ())
    monkeypatch.setattr(staleness, "STEPS", {"bowl": 20})
    variants = {name: staleness.VARIANTS[name] for name in ("shampoo N=10 D=10", "soap N=10 D=10")}
    monkeypatch.setattr(staleness, "VARIANTS", variants)


@pytest.mark.slow
def test_from_runs_to_the_report(only_bowl, tmp_path, capsys):
    out = tmp_path / "results"
    names = ("lion", "shampoo N=10 D=10")
    run.main(run.Settings(workloads=("bowl",), contenders=names, out=out))
    lines = (out / "bowl.jsonl").read_text()
    with pytest.raises(SystemExit, match="no finished baseline"):
        report.main(report.Settings(results=tmp_path / "nothing", out=tmp_path))
    sensitivity.main(sensitivity.Settings(workloads=("bowl",), contenders=names, out=out))
    variants = (defaults.DEFAULT, "b2=0.9")
    defaults.main(defaults.Settings(workloads=("bowl",), variants=variants, out=out))
    staleness.main(staleness.Settings(workloads=("bowl",), out=out))
    report.main(report.Settings(results=out, out=tmp_path))
    text = (tmp_path / "REPORT.md").read_text()
    for part in (
        "`lion`",
        "`shampoo N=10 D=10`",
        "`adamw b2=",
        "## bowl",
        "`b2=0.9`",
        "sensitivity",
        "bowl, 20 steps",
    ):
        assert part in text
    for picture in re.findall(r"\(pictures/(.*?)\)", text):
        assert (tmp_path / "pictures" / picture).stat().st_size > 1000
    capsys.readouterr()
    quick = tmp_path / "quick"
    run.main(run.Settings(workloads=("bowl",), contenders=("lion",), quick=True, out=quick))
    report.main(report.Settings(results=quick, out=quick, quick=True))
    assert "`lion`" in (quick / "REPORT.md").read_text()
    run.main(run.Settings(workloads=("bowl",), contenders=names, out=out))
    assert (out / "bowl.jsonl").read_text() == lines
    assert "lion" in capsys.readouterr().out


def test_a_training_learns_and_repeats_itself():
    workload = bowl()
    trainer = Trainer(workload, CONTENDERS["nadamw"], 0.95, workload.data())
    first, second = (trainer.run(0.3, 40, seed=0) for _ in range(2))
    assert first.score is not None
    assert first.score < 0.05
    assert first[:2] == second[:2]
    assert trainer.run(0.3, 40, seed=1).score != first.score
    steps, losses = zip(*first.curve, strict=True)
    assert steps[-1] == 40
    assert losses[-1] < losses[0]


def test_a_training_that_diverges_ends_early():
    workload = bowl()
    trainer = Trainer(workload, CONTENDERS["sgd"], 0.95, workload.data())
    found = trainer.run(1e30, 4000, seed=0)
    assert found.score is None
    assert all(math.isfinite(loss) for _, loss in found.curve)


def test_schedule_free_is_scored_at_its_average():
    workload = bowl()
    contender = CONTENDERS["schedule-free adamw"]
    seen = []

    def evaluate(state, params):
        averaged = contender.evaluate(state, params)
        seen.append((averaged, params))
        return averaged

    found = Trainer(workload, contender._replace(evaluate=evaluate), 0.95, workload.data())
    score = found.run(0.1, 40, seed=0).score
    averaged, params = seen[0]
    assert not np.allclose(averaged["w"], params["w"])
    assert score == pytest.approx(float(workload.score(averaged, workload.data())))


# The language model is for those that go by names or shapes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workload"),
    [*((name, "matrix") for name in CONTENDERS)]
    + [(name, "language_model") for name in ("adamw b2=0.9", "muon", "amos", "adafactor", "soap")],
)
def test_every_contender_is_built(name, workload):
    setting = Setting(lambda count: 1e-3 * jnp.ones(()), 1e-3, 0.95, 0.1)
    tx = CONTENDERS[name].make(setting)
    params = jax.eval_shape(lambda: WORKLOADS[workload].init(None, 0))
    updates, _ = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in WORKLOADS if n != "language_model"])
def test_workloads_have_a_floor_of_zero_and_know_their_seed(name):
    workload = WORKLOADS[name]
    data = workload.data()
    params = workload.init(data, 0)
    batch = workload.batch(data, jax.random.key(0))
    loss = float(workload.loss(params, batch))
    assert 0 < loss < math.inf
    other = workload.init(data, 1)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (params, workload.init(data, 0))), strict=True)
    )


@pytest.mark.parametrize(
    ("main", "settings", "wanted"),
    [
        (run.main, run.Settings(workloads=("matrices",)), "matrices: unknown; did you mean matrix"),
        (
            run.main,
            run.Settings(contenders=("adamx",)),
            "--contenders adamx: unknown.*known are.*shampoo",
        ),
        (timing.main, timing.Settings(contenders=("x" * 9,)), "unknown; known are"),
    ],
)
def test_unknown_names_list_the_known(main, settings, wanted):
    with pytest.raises(SystemExit, match=wanted):
        main(settings)
