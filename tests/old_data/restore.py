"""Brings recorded data back: see ``record`` and ``every_fact`` for what they are."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.processes.ports import free_port

HERE = Path(__file__).parent
ARCHIVES = sorted(HERE.glob("*.tar.xz"))
FACTS = sorted(HERE.glob("*.sql"))


@dataclass(frozen=True)
class Restored:
    """A recorded folder at a place of its own.

    Attributes:
        folder: holds ``site``, ``samples`` and ``final.safetensors``.
        expected: what came of the site when it went on at once.
    """

    folder: Path
    expected: dict[str, Any]

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def device(self, name: str) -> Path:
        return self.site / "devices" / name

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what the server's database holds, whatever the code of today makes of it."""
        return read(self.site / "server" / "journal.sqlite", query)


def restore(archive: Path, folder: Path) -> Restored:
    """Unpack a recorded site so that it can start here, on ports that are free."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    restored = Restored(folder, json.loads((folder / "expected.json").read_text()))
    # the embedded store's own database has the place of its blobs, from the root
    with contextlib.closing(sqlite3.connect(restored.site / "store" / "meta.db")) as meta, meta:
        places = (restored.expected["root"], str(restored.site))
        meta.execute("UPDATE jfs_setting SET value = replace(value, ?, ?)", places)
    path = restored.site / "site.json"
    record = json.loads(path.read_text())
    record |= {"broker_port": free_port(), "store_port": free_port()}
    path.write_text(json.dumps(record))
    return restored


def read(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a SQLite file that another process may have open."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        return opened.execute(query).fetchall()


def holds(new: Any, old: Any) -> bool:
    """Whether plain data say all that they said before; a table may say more by now."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(
            name in new and holds(new[name], value) for name, value in old.items()
        )
    if isinstance(old, list):
        same_length = isinstance(new, list) and len(new) == len(old)
        return same_length and all(holds(*pair) for pair in zip(new, old, strict=True))
    return type(new) is type(old) and bool(new == old)
