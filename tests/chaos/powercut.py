"""What a power cut leaves of an agent's folder, on disks that keep their word and on others.

An honest disk holds what was forced to it: the outbox, the algorithm's state, whole checkpoints and
the databases' own files. All else may be cut short, zeroed, gone, or as it was some time ago. A
lying one (cards that say "written" too early) may do so to every file.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

FORCED = (
    *("outbox.sqlite", "outbox.sqlite-wal", "jobs.sqlite"),
    *("state/*.safetensors", "state/*.next", "checkpoints/*.ckpt", "production/**/*"),
)
_SPARED = 0.4


def hit_all(folder: Path, rng: random.Random, *, but: Sequence[str]) -> list[str]:
    """Do it to every file but those of some patterns, as the worst of lying disks; return them."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(_files(folder))
        if not any(path.relative_to(folder).match(pattern) for pattern in but)
        if _hit(path, folder / "never", rng)
    ]


def cut(folder: Path, earlier: Path, rng: random.Random, *, lying: bool) -> list[str]:
    """Do to the files what a cut may do; return which were hit.

    Args:
        earlier: the folder as it was some time ago.
    """
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(_files(folder))
        if (lying or not _forced(path.relative_to(folder))) and rng.random() > _SPARED
        if _hit(path, earlier / path.relative_to(folder), rng)
    ]


def remember(folder: Path, earlier: Path) -> None:
    """Keep the folder as it is now."""
    shutil.rmtree(earlier, ignore_errors=True)
    # sockets are no files of a disk
    shutil.copytree(folder, earlier, ignore=lambda _, names: [n for n in names if "sock" in n])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _forced(path: Path) -> bool:
    return any(path.match(pattern) for pattern in FORCED)


def _hit(path: Path, earlier: Path, rng: random.Random) -> bool:
    data = path.read_bytes()
    start = rng.randrange(len(data)) if data else 0
    match rng.choice(["short", "zeros", "earlier"]):
        case "short":
            path.write_bytes(data[:start])
        case "zeros":
            path.write_bytes(data[:start] + bytes(len(data) - start))
        case _ if earlier.exists():
            shutil.copyfile(earlier, path)
        case _:
            path.unlink()
    return True
