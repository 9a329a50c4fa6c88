"""Finished runs as JSON lines: what is known is never run again."""

import fcntl
import json
import os
import warnings
from pathlib import Path
from typing import Any, Self

Record = dict[str, Any]


class Results:
    """The runs in one file, which one process at a time may write.

    A record's key are the entries by which a run is asked for; the others are what came out.
    """

    def __init__(self, path: Path, key: tuple[str, ...]):
        self._path, self._key = path, key
        self._records: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, line in self._read():
            warnings.warn(
                f"{path}:{number} is no result and is skipped: {line[:60]!r}", stacklevel=2
            )

    def _read(self) -> list[tuple[int, str]]:
        """Takes in what the file holds; returns the lines that are no results."""
        bad = []
        for number, line in enumerate(_lines(self._path), 1):
            record = _parsed(line, self._key)
            if record is None:
                bad.append((number, line))
            else:
                self._records[self._name(record)] = record
        return bad

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise SystemExit(
                f"{self._path} is being written by another process; wait for it, or pass another "
                "--out"
            ) from None
        self._read()  # what another process wrote before it let go
        text = self._path.read_bytes()
        if text and not text.endswith(b"\n"):  # an interrupted line
            self._file.write("\n")
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __iter__(self):
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, asked: Record) -> Record | None:
        """The run asked for, if it is finished."""
        return self._records.get(self._name(asked))

    def add(self, record: Record) -> Record:
        """Keeps a finished run, on the disk before anything else happens."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._records[self._name(record)] = record
        return record

    def _name(self, record: Record) -> str:
        return json.dumps([record[name] for name in self._key])


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _parsed(line: str, key: tuple[str, ...]) -> Record | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and all(name in record for name in key) else None
