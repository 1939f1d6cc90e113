"""Small disks that tests fill."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

_AGAIN_S = 0.05
_BLOCK = bytes(4096)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a disk on a new folder; False where this user may not."""
    folder.mkdir(parents=True)
    size = f"size={megabytes}m"
    argv = ["mount", "-t", "tmpfs", "-o", f"{size},mode=0700", "rengo-test", str(folder)]
    mounted = subprocess.run(argv, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


class FullDisk:
    """Within the block a disk is full: what somebody frees is taken at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fill"
        self._freed = threading.Event()
        self._thread = threading.Thread(target=self._fill)

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._freed.set()
        self._thread.join()
        self._path.unlink()

    def _fill(self) -> None:
        while not self._freed.wait(_AGAIN_S):
            self._take()

    def _take(self) -> None:
        with suppress(OSError), self._path.open("ab", buffering=0) as file:
            while True:
                file.write(_BLOCK)
