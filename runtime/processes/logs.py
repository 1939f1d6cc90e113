"""Logs of child processes, which stay bounded while the programs that write them run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 1 << 20
_DISK_BLOCK_BYTES = 512


@dataclass(frozen=True)
class LogBound:
    """How long a program's logs may become.

    Attributes:
        most_bytes: a longer one becomes ``<name>.1``, in place of the one before.
        look_s: how often the logs of a running program are looked at; so much they may be longer.
        others: logs beside its output that the program writes itself, by name.
    """

    most_bytes: int = 16 << 20
    look_s: float = 10.0
    others: tuple[str, ...] = ()

    def paths(self, log: Path) -> Iterator[Path]:
        """Yield all logs of the program whose output goes to ``log``."""
        yield log
        yield from (log.with_name(name) for name in self.others)

    def set_aside(self, log: Path) -> None:
        """Rename the logs that are too long, of a program that does not run."""
        for each in self.paths(log):
            with contextlib.suppress(FileNotFoundError):
                if each.stat().st_size > self.most_bytes:
                    each.replace(_older(each))

    def keep(self, log: Path, runs: Callable[[], bool], ended: threading.Event) -> None:
        """Keep the logs of a program within the bound as long as it runs."""
        while not ended.wait(self.look_s) and runs():
            for each in self.paths(log):
                with contextlib.suppress(FileNotFoundError):
                    # by what it takes: where it is not appended to, a hole stays after a cut
                    if each.stat().st_blocks * _DISK_BLOCK_BYTES > self.most_bytes:
                        _cut(each, self.most_bytes)


def _cut(log: Path, most_bytes: int) -> None:
    """Move a log's end to ``<name>.1``, while a program has it open and goes on writing.

    What the program writes between the copy and the cut is lost. On a full disk no copy is kept.
    """
    part = log.with_name(f"{log.name}.part")
    try:
        _copy_end(log, part, most_bytes)
        part.replace(_older(log))
    except OSError:
        part.unlink(missing_ok=True)
        _older(log).unlink(missing_ok=True)
    os.truncate(log, 0)


def _copy_end(log: Path, part: Path, most_bytes: int) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out, log.open("rb") as source:
        left = min(most_bytes, source.seek(0, os.SEEK_END))
        source.seek(-left, os.SEEK_END)
        while left and (block := source.read(min(left, _BLOCK_BYTES))):
            out.write(block)
            left -= len(block)


def _older(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")
