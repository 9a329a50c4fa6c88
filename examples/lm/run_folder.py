"""What a run leaves on disk: its configuration, metrics and checkpoints."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lm import UsageError

Row = dict[str, Any]


class RunFolder:
    """A folder with `config.json`, `metrics.jsonl`, `checkpoints/` and `curves.png`.

    Its config.json names the program whose run it is.
    """

    def __init__(self, path: Path, kind: str = "train_lm"):
        self.name = path
        self.kind = kind
        self.path = path.resolve()
        self.metrics = self.path / "metrics.jsonl"
        self.picture = self.path / "curves.png"
        self._config = self.path / "config.json"
        self._checkpoints = self.path / "checkpoints"

    def config(self) -> dict[str, Any] | None:
        """The configuration of the run in this folder, or None where there is no run."""
        try:
            config = json.loads(self._config.read_text())
        except (OSError, ValueError):
            return None
        return config if isinstance(config, dict) and config.get("kind") == self.kind else None

    def begin(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Starts a run, in an empty folder or over an earlier run, never over other files."""
        self.check_free(overwrite=overwrite)
        if self.config() is not None:
            self._clear()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.name}: {error}; choose another folder") from error
        begun = {"kind": self.kind, "begun": time.time(), **config}
        _replace(self._config, json.dumps(begun, indent=2) + "\n")

    def check_free(self, *, overwrite: bool) -> None:
        """Raises a UsageError where no run may begin."""
        if self.config() is not None:
            if not overwrite:
                raise UsageError(
                    f"--out {self.name}: holds a run already; continue it with --resume, "
                    "replace it with --overwrite, or choose another --out"
                )
        elif self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise UsageError(
                f"--out {self.name}: holds something other than a run; choose a new folder"
            )

    def resume(self, config: Mapping[str, Any]) -> None:
        """Checks that the run here was started with the same configuration."""
        started = self.config()
        if started is None:
            raise UsageError(f"--resume: no run in {self.name}; start one without --resume")
        for key, value in json.loads(json.dumps(config)).items():
            if started.get(key) != value and key == "text":
                raise UsageError(
                    f"--text differs: not the bytes that the run in {self.name} was started with; "
                    "resume it with the same text, or choose another --out"
                )
            if started.get(key) != value:
                raise UsageError(
                    f"--{key.replace('_', '-')} {_shown(value)}: the run in {self.name} was "
                    f"started with {_shown(started.get(key))}; resume it with that, "
                    "or choose another --out"
                )

    def checkpoints(self) -> ocp.CheckpointManager:
        """Opens the checkpoints; saving blocks, so that a saved step is on disk."""
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        handler = ocp.StandardCheckpointHandler()  # else `metadata` warns
        return ocp.CheckpointManager(self._checkpoints, item_handlers=handler, options=options)

    def rows(self) -> list[Row]:
        """The metrics so far, less a last line that a crash left unfinished."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def keep_rows(self, step: int) -> list[Row]:
        """Drops the rows after `step`, which a resumed run writes again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        _replace(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def append(self, row: Row) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _clear(self) -> None:
        """Removes what runs write, and nothing else."""
        members = str((self.config() or {}).get("compare", ""))
        for name in filter(None, members.split(",")):
            member = RunFolder(self.path / name.strip(), self.kind)
            if member.config() is not None:
                member._clear()
                if not any(member.path.iterdir()):
                    member.path.rmdir()
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        for file in (self.metrics, self.picture, self._config):
            file.unlink(missing_ok=True)


def _shown(value: Any) -> str:
    return "unset" if value in (None, "") else str(value)


def _replace(path: Path, text: str) -> None:
    """Writes the whole file or, when killed midway, none of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)
