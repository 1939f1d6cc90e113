"""The one way by which text of others (devices, servers, files) comes to a terminal."""

from __future__ import annotations

from typing import TextIO

from runtime.text import printable


def say(*lines: str, out: TextIO | None = None) -> None:
    """Print each line as it is, but for what a terminal would act upon."""
    for line in lines:
        # the end of the line with it: an interrupt between the two would join it to the next
        print(f"{printable(line)}\n", end="", file=out, flush=True)
