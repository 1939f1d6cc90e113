"""Whether there is room on a disk, and whether an error is for the lack of it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

_FULL_BYTES = 16 << 20
_OF_FULL_DISKS = {errno.ENOSPC, errno.EDQUOT}
_LONGEST_CHAIN = 10


@dataclass(frozen=True)
class DiskRoom:
    """What is left of the disk of one folder, for this user.

    Attributes:
        device: the same for all folders of one disk.
        free_files: how many files may be added; None where the file system does not count them.
    """

    device: int
    free_bytes: int
    free_files: int | None

    @property
    def lack(self) -> str:
        """What is missing for the processes that write there, "" where nothing is."""
        if self.free_bytes < _FULL_BYTES:
            return f"full ({self.free_bytes >> 10} KiB free)"
        return "full (no file can be added)" if self.free_files == 0 else ""


def disk_room(folder: Path) -> DiskRoom:
    """Return what is left where a folder is or would be; raises OSError."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    found = os.statvfs(there)
    free_files = found.f_favail if found.f_files else None
    return DiskRoom(there.stat().st_dev, found.f_bavail * found.f_frsize, free_files)


def met_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or what it was raised from, is that a disk or a quota is full."""
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return False
        if isinstance(error, OSError) and error.errno in _OF_FULL_DISKS:
            return True
        error = error.__cause__ or error.__context__
    return False
