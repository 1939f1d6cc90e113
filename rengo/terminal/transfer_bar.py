"""How far a transfer is: a bar on a terminal, steady lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rengo.terminal.format import size
from storage.transfer.files import OnProgress

_WORTH_LINES_BYTES = 1_000_000
_STEPS = 10


@contextmanager
def open_meter(what: str, total: int, out: TextIO) -> Iterator[OnProgress]:
    """Give what is to be called with the bytes that are there, of ``total``."""
    if out.isatty():
        from rengo.terminal.live import is_able, open_bar  # noqa: PLC0415  rich is for terminals alone

        if is_able(out):
            with open_bar(what, total, out) as watch:
                yield watch
            return
    yield Lines(what, total, out)


class Lines:
    """Prints a line at every tenth of a transfer that is worth lines."""

    def __init__(self, what: str, total: int, out: TextIO) -> None:
        self._what, self._total, self._out = what, total, out
        self._told = 0

    def __call__(self, done: int) -> None:
        """Take in how many bytes are there."""
        step = _STEPS * done // max(1, self._total)
        if step <= self._told or self._total < _WORTH_LINES_BYTES:
            return
        self._told = step
        share = 100 * done // self._total
        line = f"{self._what}: {size(done)} of {size(self._total)}, {share} %"
        print(line, file=self._out, flush=True)
