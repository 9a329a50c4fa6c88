"""Text as bytes: Python's own standard library, or any file or folder."""

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm import UsageError

HELD_OUT_EVERY = 20
SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
SEPARATOR = b"\0"


class Corpus(NamedTuple):
    """Two disjoint byte strings, each made of whole files wherever there are several."""

    train: np.ndarray  # (bytes,) uint8
    held_out: np.ndarray  # (bytes,) uint8
    source: str

    def fingerprint(self) -> str:
        """A digest that tells whether two runs read the same bytes."""
        digest = hashlib.sha256(self.train.tobytes())
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()[:16]


def load_corpus(text: Path | None = None, *, without: Path | None = None) -> Corpus:
    """Reads `text`, a file or a folder of files, or without it Python's standard library.

    Hidden files and folders, and the folder `without`, are left out.
    """
    if text is None:
        root = Path(sysconfig.get_path("stdlib"))
        files, source = _files(root, "*.py", without), "Python's standard library"
    elif text.is_dir():
        files, source = _files(text, "*", without), str(text)
    elif text.is_file():
        files, source = [text], str(text)
    else:
        raise UsageError(f"--text {text}: no such file or folder; name one that exists")
    documents = [content for file in files if (content := file.read_bytes())]
    if not documents:
        raise UsageError(f"--text {source}: holds no text; name a file or folder that does")
    train, held_out = split(documents)
    return Corpus(_join(train), _join(held_out), source)


def split(documents: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Holds out every twentieth document (at least one), or the end of a single one."""
    if len(documents) == 1:
        cut = len(documents[0]) * (HELD_OUT_EVERY - 1) // HELD_OUT_EVERY
        return [documents[0][:cut]], [documents[0][cut:]]
    chosen = min(HELD_OUT_EVERY, len(documents)) - 1
    held_out = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY == chosen]
    return [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY != chosen], held_out


def random_windows(
    text: np.ndarray,
    seed: int,
    step: int,
    batch: int,
    context: int,
    rows: slice = slice(None),
) -> np.ndarray:
    """The batch of one step, a function of `seed` and `step` alone: (batch, context + 1).

    Of the batch only `rows` are read.
    """
    generator = np.random.default_rng([seed, step])
    return _windows(text, context)[generator.integers(0, len(text) - context, batch)[rows]]


def even_windows(text: np.ndarray, count: int, context: int) -> np.ndarray:
    """At most `count` windows that cover `text` evenly: (windows, context + 1)."""
    windows = _windows(text, context)
    starts = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(np.int64)
    return windows[starts]


def check_length(corpus: Corpus, context: int) -> None:
    """Raises a UsageError unless a window fits on both sides of the split."""
    for side in (corpus.train, corpus.held_out):
        _windows(side, context)


def _windows(text: np.ndarray, context: int) -> np.ndarray:
    if len(text) <= context:
        raise UsageError(
            f"--context {context}: the text has only {len(text)} bytes on one side of its split; "
            "use a shorter context or more text"
        )
    return np.lib.stride_tricks.sliding_window_view(text, context + 1)


def _files(root: Path, pattern: str, without: Path | None) -> list[Path]:
    def kept(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return (
            path.is_file()
            and SKIPPED_FOLDERS.isdisjoint(parts)
            and not any(part.startswith(".") for part in parts)
            and not (without is not None and path.resolve().is_relative_to(without.resolve()))
        )

    return sorted(filter(kept, root.rglob(pattern)))


def _join(documents: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(SEPARATOR.join(documents), np.uint8)
