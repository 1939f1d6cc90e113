"""What an agent writes to its disk: counted by strace, so that a card's wear is a number.

python -m benchmarks.writes FILE        sums up a trace of ``strace -f -y -e trace=…``
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range,msync"
_LINE = re.compile(r"\b(\w+)\((\d+)<([^>]*)>.*\)\s+= (-?\d+)")
_FORCING = frozenset({"fsync", "fdatasync", "sync_file_range"})


@dataclass
class Writes:
    """Calls that force the disk, and bytes written, by file."""

    forced: Counter[str] = field(default_factory=Counter)
    written_bytes: Counter[str] = field(default_factory=Counter)

    @property
    def forced_in_all(self) -> int:
        """How often the disk was forced."""
        return sum(self.forced.values())

    @property
    def bytes_in_all(self) -> int:
        """What was written, before the file system makes pages of it."""
        return sum(self.written_bytes.values())


def tracing(trace: Path) -> list[str]:
    """Return the words to put before a command, so that its writes are traced to files."""
    return ["strace", "-ff", "-y", "-qq", "-e", f"trace={CALLS}", "-o", str(trace)]


def read(trace: Path, folder: Path) -> Writes:
    """Return what the traced processes wrote below ``folder``."""
    writes, prefix = Writes(), f"{folder}/"
    for path in trace.parent.glob(f"{trace.name}.*"):
        for line in path.read_text("utf-8", "replace").splitlines():
            found = _LINE.search(line)
            if found is None or not f"{found[3]}/".startswith(prefix):
                continue
            call, name, result = found[1], found[3].removeprefix(prefix), int(found[4])
            if call in _FORCING:
                writes.forced[name] += 1
            elif result > 0:
                writes.written_bytes[name] += result
    return writes
