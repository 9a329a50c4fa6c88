"""Several processes that train together: `jax.distributed` on CPUs, with gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import distributed_lm
import distributed_program
import jax
import numpy as np
import pytest
import tyro
from distributed_lm import DistributedSettings

from lm.data import load_corpus
from lm.processes import FAILED, STOPPED
from lm.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="callbacks with several results fail in its shard_map"
)

ROOT = Path(__file__).parents[1]
TIMEOUT = 240  # for a slow machine; what hangs, hangs for ever


@pytest.fixture
def start():
    """Starts programs, and ends them with the test."""
    running = []

    def start(program, *arguments, **options):
        path = os.pathsep.join(
            [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
        )
        process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            text=True,
            **options,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


# --- Shampoo ----------------------------------------------------------------------------------

BLOCKS_ROOTS = 24  # of 12 blocks, two each
REFRESHES = 4


@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (4, 1), (2, 2)])
def test_processes_train_as_one_and_share_the_roots(processes, devices, start, tmp_path):
    address = free_address()
    files = [tmp_path / f"{number}.npz" for number in range(processes)]
    arguments = [(address, processes, number, devices, file) for number, file in enumerate(files)]
    running = [
        start("tests/distributed_program.py", *own, stderr=subprocess.PIPE) for own in arguments
    ]
    count = processes * devices
    mesh = distributed_program.data_mesh(jax.devices()[:count])
    losses, params = distributed_program.train(mesh)
    assert losses[-1] < 0.5 * losses[0]
    for process, file in zip(running, files, strict=True):
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        with np.load(file) as found:
            np.testing.assert_allclose(found["losses"], losses, rtol=1e-6)
            for name, values in params.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6)
            assert found["roots"] == REFRESHES * BLOCKS_ROOTS * devices // count


# --- the language model -----------------------------------------------------------------------

# Roots are begun at steps 10, 20 and 30, so that at all checkpoints some are in flight.
TINY = (  # noqa: SIM905
    "--steps 32 --eval-every 16 --eval-windows 8 --batch 4 --context 16 --width 16 --layers 1 "
    "--heads 2 --learning-rate 1e-2"
).split()


@pytest.fixture
def settings(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a stitch in time saves nine. " * 40)
    return ["--text", str(text), *TINY]


def losses(folder):
    columns = ("step", "train_loss", "held_out_loss")
    return np.array([[row[name] for name in columns] for row in folder.rows()], float)


def in_one_process(arguments, out):
    """The same run on two devices of this process."""
    settings = tyro.cli(DistributedSettings, args=[*arguments, "--out", str(out)]).resolved()
    mesh = distributed_program.data_mesh(jax.devices()[:2])
    with jax.set_mesh(mesh):
        assert distributed_lm.run(settings, load_corpus(settings.text), mesh)
    return RunFolder(out, distributed_lm.KIND)


def test_stopped_and_killed_runs_go_on_as_if_they_had_never_ended(start, settings, tmp_path):
    folder = RunFolder(tmp_path / "run", distributed_lm.KIND)
    arguments = [*settings, "--local", "2", "--out", str(folder.path)]

    def run(*dying):
        more = ["--resume"] if folder.config() else []
        process = start("tests/dying_lm.py", *dying, *arguments, *more, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=TIMEOUT)
        return process.returncode, errors

    code, errors = run("SIGTERM", "parent", 0, 12)
    assert code == STOPPED, errors
    assert errors.splitlines()[-1].endswith(" --resume")
    assert len(folder.rows()) >= 12
    saved = len(folder.rows())
    assert [int(one.name) for one in (folder.path / "checkpoints").iterdir()] == [saved]

    code, errors = run("SIGKILL", "self", 1, 24)
    assert code == FAILED, errors
    *_, survivor, victim, remedy = errors.splitlines()
    assert survivor.startswith(("process 0: lost contact", "process 0: ended by JAX")), errors
    assert victim == "process 1: ended by SIGKILL"
    assert remedy.endswith(" --resume")
    assert len(folder.rows()) == 23

    code, errors = run("SIGTERM", "self", 0, -1)
    assert code == 0, errors
    whole = in_one_process(settings, tmp_path / "whole")
    np.testing.assert_allclose(losses(folder), losses(whole), rtol=1e-5)
