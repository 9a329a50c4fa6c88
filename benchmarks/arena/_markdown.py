"""Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> str:
    """A table whose first `words` columns are left-aligned."""
    marks = [":--" if i < words else "--:" for i in range(len(head))]
    lines = [head, marks, *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
