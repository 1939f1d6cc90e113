"""What of a site's or a device's folder takes how much disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rengo.doctor.checks import Check
from runtime.errors import ConfigError

_SHOWN = 12
_JOURNAL = "journal.sqlite"
_GIB, _MIB, _KIB = 1 << 30, 1 << 20, 1 << 10


def disk_use(folder: Path) -> dict[str, int]:
    """Return the bytes of each part of a folder, the largest first; the journal is a part."""
    found: dict[str, int] = {}
    for path, size in _files(folder):
        within = path.relative_to(folder)
        part = within.parts[0]
        if path.name.startswith(_JOURNAL):
            part = str(within.with_name(_JOURNAL))
        found[part] = found.get(part, 0) + size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            try:
                # blocks: a sparse file takes less than its length
                yield path, path.lstat().st_blocks * 512
            except FileNotFoundError:
                continue  # of a process at work


def check_disk_use(folder: Path) -> list[Check]:
    """Return a finding for a folder that is there."""
    if not folder.is_dir():
        return []
    try:
        found = disk_use(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error
    parts = [f"{name} {_size(size)}" for name, size in list(found.items())[:_SHOWN]]
    more = "" if len(found) <= _SHOWN else f", and {len(found) - _SHOWN} more"
    detail = f"{_size(sum(found.values()))} in {folder}"
    told = f"{detail}: {', '.join(parts)}{more}" if parts else detail
    return [Check("disk use", True, told, required=False)]


def _size(count: int) -> str:
    if count >= _GIB:
        return f"{count / _GIB:.1f} GiB"
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / _KIB:.0f} KiB"
