"""The one way by which text of others (devices, servers, files) comes to a terminal."""

from __future__ import annotations

from typing import TextIO

from runtime.text import printable


def say(*lines: str, out: TextIO | None = None) -> None:
    """Print each line as it is, but for what a terminal would act upon."""
    for line in lines:
        print(printable(line), file=out, flush=True)
