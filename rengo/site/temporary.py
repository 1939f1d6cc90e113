"""Folders of sites that last as long as their process; those of killed ones are removed."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

from runtime.errors import ConfigError
from runtime.processes.locks import take_lock

_NAME = re.compile(r"rengo-[0-9a-f]{16}")


def temporary_name() -> str:
    """Return the name of a new folder."""
    return f"rengo-{secrets.token_hex(8)}"


def sweep_temporary_sites(place: Path) -> None:
    """Remove the sites in a folder of temporary files whose process has ended.

    A site holds its lock from before its record is written until its folder has gone, so one with a
    record and a free lock is nobody's. Others' are left alone, and what cannot be removed stays.
    """
    for folder in place.glob("rengo-*"):
        if _NAME.fullmatch(folder.name) is None or not (folder / "site.json").is_file():
            continue
        try:
            lock = take_lock(folder / "site.lock", "it runs")
        except (ConfigError, OSError):
            continue
        with lock:
            shutil.rmtree(folder, ignore_errors=True)
