"""A strict JAX for the whole suite: many host devices, no silent rank promotion."""

import atexit
import ctypes
import gc
import mmap
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zlib

# Most of the suite's time is XLA's, so it is told to hurry. JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs
# the tests on programs compiled as users have them, as `.ci/run` does for a part of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# XLA's older code generator, where it still has it, takes a third of the time. XLA aborts on a flag
# that it does not know, so a separate process is asked first.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    _older = "--xla_cpu_use_fusion_emitters=false"
    _flags = os.environ.get("XLA_FLAGS", "")
    if _older not in _flags:
        _flags = f"{_flags} {_older}".strip()
        _ask = "import jaxlib.xla_client as x; x.CompileOptions().executable_build_options"
        _answer = subprocess.run(
            [sys.executable, "-c", f"{_ask}.debug_options"],
            env=os.environ | {"XLA_FLAGS": _flags},
            capture_output=True,
            timeout=60,
        )
        if _answer.returncode == 0:
            os.environ["XLA_FLAGS"] = _flags

# One process compiles for all: pytest-xdist's workers and programs under test inherit this.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="optax_zoo_tests_")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from hypothesis import settings

import helpers

# Programs that tests start.
collect_ignore = ["distributed_program.py", "dying_lm.py"]

# Before the first array: the CPU backend starts with them.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples everywhere; compiling makes any deadline meaningless.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


@pytest.fixture
def x64():
    """Double precision within one test; the switch is global to the thread."""
    with helpers.enable_x64():
        yield


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Gives a module's compiled programs back, about a megabyte each."""
    yield
    _give_back()


@pytest.fixture(autouse=True)
def forget_many():
    """The same within a module that takes more than a gigabyte, where the system says so."""
    yield
    if _STATM.exists() and int(_STATM.read_text().split()[1]) * mmap.PAGESIZE > 1.2e9:
        _give_back()


_STATM = pathlib.Path("/proc/self/statm")


def _give_back():
    jax.clear_caches()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps what is freed


def pytest_addoption(parser):
    parser.addoption("--part", metavar="I/N", help="run every N-th of the tests, from the I-th on")


def pytest_collection_modifyitems(config, items):
    if part := config.getoption("--part"):
        index, count = map(int, part.split("/"))
        chosen = {item for item in items if zlib.crc32(item.nodeid.encode()) % count == index - 1}
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]


def pytest_collection_finish():
    """What is imported stays: the collector need not look at it again and again, nor so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives a file to one worker, which then compiles what its tests share once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
