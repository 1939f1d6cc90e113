"""The tree of a site, redrawn in place on a terminal by rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rengo.terminal.topology import TreeLine, table
from runtime.text import printable

_STYLES = {"training": "cyan", "ready": "green", "online": "green", "draining": "yellow"}
_GONE = "red"


class LiveTree:
    """Shows a tree until it is left; use it as a context manager."""

    def __init__(self, out: TextIO) -> None:
        self._live = Live(
            console=Console(file=out, highlight=False), auto_refresh=False, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, lines: Sequence[TreeLine]) -> None:
        """Draw the tree as it is now."""
        self._live.update(drawn(lines), refresh=True)


def drawn(lines: Sequence[TreeLine]) -> Text:
    """Return the lines with each status in its colour."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for line, row in zip(lines, table(lines), strict=True):
        start = len(text)
        text.append(f"{printable(row)}\n", style=None if line.status else "dim")
        if line.status:
            at = start + row.index(line.status, len(line.tree))
            text.stylize(_STYLES.get(line.status, _GONE), at, at + len(line.status))
    return text
