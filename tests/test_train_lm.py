"""The language model example: data, learning, stopping, resuming, comparing, errors."""

import json
import signal

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import train_lm
from jax.experimental.compilation_cache import compilation_cache

import optax_zoo as zoo
from helpers import slow
from lm import data, training
from lm.optimizers import root_status
from lm.run_folder import RunFolder
from lm.settings import Settings

STEPS = 12
TINY = (
    f"--steps {STEPS} --eval-every 5 --eval-windows 8 --batch 4 --context 16 "
    "--width 16 --layers 1 --heads 2 --optimizer adamw --learning-rate 1e-2"
).split()


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Runs of the same settings share their compiled programs."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    for values in (changes, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is changes:
            yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Forty small files, so that two are held out."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(
            f"file {number}: a stitch in time saves nine. " * 3
        )
    return folder


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert call(text, out) == 0
    return RunFolder(out)


def call(text, out, *more):
    return train_lm.main([*TINY, "--text", str(text), "--out", str(out), *more])


def saved_state(folder, **changes):
    """The last checkpoint's step and leaves."""
    names = {"steps": STEPS, "width": 16, "layers": 1, "heads": 2, "optimizer": "adamw"}
    template = training.prepare(Settings(**names | changes).resolved()).state
    with folder.checkpoints() as checkpoints:
        step = checkpoints.latest_step()
        return step, jax.tree.leaves(
            checkpoints.restore(step, args=ocp.args.StandardRestore(template))
        )


def untimed(folder):
    timings = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timings} for row in folder.rows()]


def interrupt_at(monkeypatch, step, times=1):
    """Sends SIGINT while the batch of one step is made."""
    original = training.random_windows

    def interrupted(text, seed, current, batch, context):
        if current == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(text, seed, current, batch, context)

    monkeypatch.setattr(training, "random_windows", interrupted)


def test_whole_files_are_held_out_and_none_is_in_both_parts(text):
    corpus, again = data.load_corpus(text), data.load_corpus(text)
    train, held_out = (part.tobytes().split(data.SEPARATOR) for part in corpus[:2])
    files = sorted(file.read_bytes() for file in text.iterdir())
    assert sorted([*train, *held_out]) == files
    assert len(held_out) == 2
    assert not set(train) & set(held_out)
    assert corpus.fingerprint() == again.fingerprint()


def test_a_single_file_is_split_near_its_end(tmp_path):
    file = tmp_path / "one.txt"
    file.write_bytes(bytes(range(200)))
    corpus = data.load_corpus(file)
    assert bytes([*corpus.train, *corpus.held_out]) == file.read_bytes()
    assert len(corpus.held_out) == 10


@pytest.mark.slow
def test_the_standard_library_is_there_without_its_tests():
    corpus = data.load_corpus()
    assert corpus.train.size > 1_000_000
    assert corpus.held_out.size > 100_000


def test_a_batch_depends_on_seed_and_step_alone():
    text = np.arange(200, dtype=np.uint8)
    batch = data.random_windows(text, 3, 7, 4, 16)
    np.testing.assert_array_equal(batch, data.random_windows(text, 3, 7, 4, 16))
    np.testing.assert_array_equal(np.diff(batch.astype(int)), 1)
    assert not np.array_equal(batch, data.random_windows(text, 3, 8, 4, 16))
    assert not np.array_equal(batch, data.random_windows(text, 4, 7, 4, 16))


@pytest.mark.slow
def test_the_loss_falls_and_the_metrics_say_so(whole):
    rows = whole.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["train_bits_per_byte"] == pytest.approx(8, abs=0.1)
    held_out = [row["held_out_bits_per_byte"] for row in rows if row["held_out_loss"] is not None]
    assert len(held_out) == 3  # after steps 5, 10 and 12
    assert held_out[2] < held_out[1] < held_out[0] < 8
    assert held_out[2] < 6.5
    assert rows[-1]["held_out_loss"] == pytest.approx(held_out[2] * np.log(2))
    assert max(row["learning_rate"] for row in rows) == pytest.approx(1e-2)
    assert whole.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 7])  # with and without an evaluation
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(
    step, text, whole, tmp_path, monkeypatch, capsys
):
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        assert call(text, folder.path) == train_lm.INTERRUPTED
    assert "--resume" in capsys.readouterr().out
    assert folder.picture.exists()
    assert saved_state(folder)[0] == step == folder.rows()[-1]["step"]

    # As a kill leaves it: rows that no checkpoint covers, the last one torn.
    folder.append({**folder.rows()[-1], "step": step + 1, "train_loss": 0.0})
    with folder.metrics.open("a") as file:
        file.write('{"step": ')

    assert call(text, folder.path, "--resume") == 0
    assert untimed(folder) == untimed(whole)
    seconds = [row["seconds"] for row in folder.rows()]
    assert seconds == sorted(seconds)
    (step, leaves), (whole_step, whole_leaves) = saved_state(folder), saved_state(whole)
    assert step == whole_step == STEPS
    for leaf, expected in zip(leaves, whole_leaves, strict=True):
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.slow
def test_a_second_interrupt_aborts_and_the_run_can_still_go_on(text, whole, tmp_path, monkeypatch):
    folder, handler = RunFolder(tmp_path / "run"), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, times=2)
        assert call(text, folder.path) == train_lm.INTERRUPTED
    assert saved_state(folder)[0] == 5
    assert call(text, folder.path, "--resume") == 0
    assert untimed(folder) == untimed(whole)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_a_comparison_starts_alike_stops_resumes_and_draws_one_picture(
    text, tmp_path, monkeypatch, capsys
):
    arguments = (text, tmp_path / "all", "--compare", "adamw,lion")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert call(*arguments) == train_lm.INTERRUPTED
    assert call(*arguments, "--resume") == 0
    folders = [RunFolder(tmp_path / "all" / name) for name in ("adamw", "lion")]
    first, second = (untimed(folder) for folder in folders)
    assert first[-1]["step"] == second[-1]["step"] == STEPS
    assert first[0]["train_loss"] == second[0]["train_loss"]
    assert first[-1]["train_loss"] != second[-1]["train_loss"]
    assert len(list((tmp_path / "all").rglob("*.png"))) == 1
    table = capsys.readouterr().out
    assert "adamw" in table
    assert "lion" in table


@pytest.mark.slow
def test_an_existing_run_is_replaced_on_request_alone(text, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(text, out, "--steps", "1") == 0
    before = RunFolder(out).rows()
    (out / "notes.txt").write_text("mine")
    assert call(text, out, "--steps", "1", "--seed", "1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert RunFolder(out).rows() == before
    assert call(text, out, "--steps", "1", "--seed", "1", "--overwrite") == 0
    assert RunFolder(out).rows() != before
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_folder_with_other_files_is_left_alone(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"mine": True}))
    assert call(text, tmp_path, "--overwrite") == 2
    assert "something other than a run" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    ["--width 32", "--optimizer lion", "--seed 1", "--steps 13", "--learning-rate 1", "--text {}"],
)
def test_a_run_resumes_with_its_own_settings_alone(more, text, whole, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("another text " * 100)
    before = untimed(whole)
    assert call(text, whole.path, "--resume", *more.format(other).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {more.split()[0]} ")
    assert "was started with" in error
    assert untimed(whole) == before


def needs_more(learning_rate, loss_fn):
    """Stands for optimizers with arguments that no option sets."""
    raise AssertionError((learning_rate, loss_fn))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--optimizer adamv", ["--optimizer adamv", "adamw"]),
        ("--compare lion,lambda", ["--optimizer lambda", "lamb"]),
        ("--compare lion,lion", ["--compare lion,lion", "once"]),
        ("--optimizer needs_more", ["needs_more", "loss_fn"]),
        ("--optimizer lbfgs", ["--optimizer lbfgs", "choose another"]),
        ("--optimizer adam --weight-decay 0.1", ["--weight-decay 0.1", "adamw"]),
        ("--steps -1", ["--steps -1", "at least 1"]),
        ("--learning-rate 0", ["--learning-rate 0", "above 0"]),
        ("--learning-rate nan", ["--learning-rate nan", "above 0"]),
        ("--warmup 12", ["--warmup 12", "--steps"]),
        ("--heads 3", ["--heads 3", "width"]),
        ("--context 1000000", ["--context 1000000", "shorter"]),
        ("--text nowhere", ["--text nowhere", "no such file"]),
        ("--resume", ["--resume", "no run", "without"]),
        ("--resume --overwrite", ["--resume --overwrite", "choose one"]),
        *slow(("--learning-rate 1e30", ["--learning-rate 1e+30", "lower"])),
    ],
)
def test_errors_take_one_line_and_name_the_remedy(more, words, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(optax, "needs_more", needs_more, raising=False)
    assert call(text, tmp_path / "run", *more.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


def test_an_optimizer_comes_from_the_zoo_first_then_from_optax():
    assert train_lm.find_optimizer("lion") == (zoo.lion, "optax_zoo")
    assert train_lm.find_optimizer("adamw") == (optax.adamw, "optax")


@pytest.mark.slow
def test_the_roots_of_shampoo_alone_are_shown():
    params = {"w": np.ones((2, 2), np.float32)}
    tx = optax.chain(zoo.lion(0.1), zoo.shampoo(0.1, refresh=zoo.Refresh(every=1, delay=0)))
    state = tx.init(params)
    assert root_status(state) == "no roots yet"
    _, state = tx.update(params, state, params)
    assert root_status(state).startswith("roots 0 steps old, residual ")
    assert root_status(zoo.lion(0.1).init(params)) == ""


@pytest.mark.slow
def test_one_diverged_run_does_not_cost_the_others(text, tmp_path, capsys):
    out = tmp_path / "all"
    assert call(text, out, "--compare", "sgd,adamw", "--learning-rate", "1e6") == 2
    assert "sgd's loss is" in capsys.readouterr().err
    assert RunFolder(out / "adamw").rows()
    assert RunFolder(out).picture.exists()


def test_too_little_text_is_refused_before_the_run_begins(tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("too short for a window")
    assert call(short, tmp_path / "run") == 2
    assert "--context 16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_does_not_read_what_it_writes(text, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for source in text.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    assert call(folder, folder / "run") == 0
    assert call(folder, folder / "run", "--resume") == 0
