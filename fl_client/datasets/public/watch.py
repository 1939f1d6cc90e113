"""Finds the smartwatch recordings, checks them, and writes one small file per person.

The published file is a pickle of 18 MB. A device opens it at most once, after checking its hash,
and later only the file of its own person.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.public.published import Package, Published, PublishedFile, cache_folder
from runtime.errors import ConfigError, Corrupt

Recording = tuple[NDArray[np.float32], int]
"""Samples [time, 6] and the exercise."""

PERSONS = 10
MEMBER = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
DATASET = Published(
    name="watch",
    summary="exercises by a smartwatch, ten persons, seven exercises, six axes at 50 Hz",
    examples=140,
    licence="BSD, D. Burns et al.",
    files=(PublishedFile("watch_dataset.npy", 18_118_091, SHA256),),
    package=Package(
        registry="pypi",
        name="seglearn",
        version="1.2.5",
        command="pip download --no-deps seglearn==1.2.5",
        file="seglearn-1.2.5-py3-none-any.whl",
        sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
        module=("seglearn", "data"),
    ),
    convert=lambda place, folder: write(published(place), folder),
    converted="watch-person-*.npz",
)
_BLOCK_BYTES = 1 << 18
_LOG = logging.getLogger(__name__)


def recordings(person: int, folder: Path | None = None) -> list[Recording]:
    """Return the recordings of one person, from 1 to 10.

    They are looked for in this order: the person's file in ``folder``; what ``RENGO_WATCH_DATA``
    names (a folder of such files, the wheel of seglearn 1.2.5, or its npy); the installed package.
    Converted files are stored in the user's cache.

    Raises:
        ConfigError: there are none; the text says how to get them.
        Corrupt: they are not the published ones.
    """
    source = os.environ.get(DATASET.variable)
    named = Path(source) if source else None
    for where in (folder, named, _cache()):
        if where is not None and (where / _name(person)).is_file():
            return _read(where / _name(person))
    found = named if named is not None else _installed()
    if found is None:
        raise ConfigError(DATASET.how)
    if not found.is_file():
        raise ConfigError(
            f"task watch: {DATASET.variable}={found} has no {_name(person)} and is no file"
        )
    everyone = published(found)
    try:
        write(everyone, _cache())
    except OSError as error:
        # on a read-only system they are converted again at the next start
        _LOG.warning("no cache of the watch recordings in %s: %s", _cache(), error.strerror)
    return everyone[person]


def published(path: Path) -> dict[int, list[Recording]]:
    """Return every person's recordings from the wheel or the npy file.

    Raises:
        Corrupt: the file is not the published one, and was not unpickled.
    """
    with _opened(path) as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
        if digest.hexdigest() != SHA256:
            raise Corrupt(f"{path}: the watch recordings have sha256 {digest.hexdigest()}")
        file.seek(0)
        stored = cast("dict[str, Any]", np.load(file, allow_pickle=True).item())
    found: dict[int, list[Recording]] = {}
    for samples, exercise, person in zip(stored["X"], stored["y"], stored["subject"], strict=True):
        found.setdefault(int(person), []).append((samples.astype(np.float32), int(exercise)))
    return found


def write(everyone: dict[int, list[Recording]], folder: Path) -> None:
    """Write one file per person; each is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    for person, recorded in everyone.items():
        part = folder / f"{_name(person)}.{os.getpid()}"
        try:
            with part.open("wb") as out:
                np.savez_compressed(
                    out,
                    samples=np.concatenate([samples for samples, _ in recorded]),
                    lengths=np.array([len(samples) for samples, _ in recorded], np.int64),
                    exercises=np.array([exercise for _, exercise in recorded], np.int64),
                )
            part.replace(folder / _name(person))
        finally:
            part.unlink(missing_ok=True)


def _read(path: Path) -> list[Recording]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            samples, exercises = stored["samples"], stored["exercises"]
            ends = np.cumsum(stored["lengths"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Corrupt(f"{path}: the person's recordings cannot be read: {error}") from error
    pieces = np.split(samples, ends[:-1])
    return [(piece, int(label)) for piece, label in zip(pieces, exercises, strict=True)]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as wheel:
        if MEMBER not in wheel.namelist():
            raise Corrupt(f"{path} has no {MEMBER}")
        with wheel.open(MEMBER) as member:
            yield member


def _installed() -> Path | None:
    """Return the npy of an installed seglearn, without importing it."""
    package = DATASET.package
    places = package.installed() if package is not None else ()
    found = (place / DATASET.files[0].name for place in places)
    return next((path for path in found if path.is_file()), None)


def _cache() -> Path:
    return cache_folder(DATASET.name)


def _name(person: int) -> str:
    return f"watch-person-{person:02}.npz"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the ten persons' files into a folder."""
    parser = argparse.ArgumentParser(prog="python -m fl_client.datasets.public.watch")
    parser.add_argument("source", type=Path, help="the wheel of seglearn 1.2.5, or its npy")
    parser.add_argument("folder", type=Path, help="where the persons' files go")
    options = parser.parse_args(argv)
    write(published(options.source), options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
