"""Plain tables for terminals and pipes alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from runtime.text import printable

_MAX_CELL = 500


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    empty: str,
    *,
    out: TextIO | None = None,
) -> None:
    """Print rows under headings, in columns; ``empty`` where there are none."""
    if not rows:
        print(empty, file=out)
        return
    table = [[printable(cell, _MAX_CELL) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=out)


def when(at: float) -> str:
    """Return a Unix time as this machine's local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
