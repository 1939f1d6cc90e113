"""Reads examples from a growing folder: arrays in numpy's files, and images."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.pictures import read_picture
from fl_client.datasets.sample import BadSample, NoData, Sample, digest
from fl_client.datasets.settings import DataSettings, FolderSource

_ARRAYS = frozenset({".npy", ".npz"})
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_SEPARATORS = ("_", "-")


def newest_first(
    source: FolderSource, settings: DataSettings, refused: Counter[str]
) -> Iterator[Sample]:
    """Yield the folder's examples, the newest file first.

    A file that cannot be read (incomplete, damaged, of another kind) is counted and skipped, and
    tried again the next time.

    Raises:
        NoData: there is no such folder.
        ConfigError: there are images, and Pillow is not installed.
    """
    if not source.path.is_dir():
        raise NoData(f"the data folder {source.path} is not there")
    limit = int(settings.store.max_mib * (1 << 20))
    for path in _newest_files(source.path):
        try:
            yield from _examples(path, source, settings, limit)
        except BadSample as error:
            refused[error.reason] += 1


def _newest_files(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in _ARRAYS | _PICTURES and not path.name.startswith("."):
            try:
                found.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue  # just removed
    return [path for _, path in sorted(found, reverse=True)]


def _examples(
    path: Path, source: FolderSource, settings: DataSettings, limit: int
) -> Iterator[Sample]:
    label = _label(path, source.path, settings)
    for features, own in _arrays(path, source, limit):
        target = label if own is None else own
        if settings.classes and target not in range(len(settings.classes)):
            raise BadSample(f"{path}: its label is none of the classes", "class")
        if not np.isfinite(features).all() or not np.isfinite(target):
            raise BadSample(f"{path} holds numbers that are not finite", "type")
        shape = repr(features.shape).encode()
        # of its content: a file moved to another class stays on its side of the split
        identity = digest("content", shape + np.ascontiguousarray(features).tobytes())
        yield Sample(identity, _group(path, source), target, features)


def _arrays(
    path: Path, source: FolderSource, limit: int
) -> Iterator[tuple[NDArray[np.float32], float | None]]:
    try:
        if path.stat().st_size > limit:
            raise BadSample(f"{path} is larger than the bound of all data", "oversize")
        match path.suffix.lower():
            case ".npy":
                # mapped: a header that claims more data than the file has allocates no memory
                yield _float32(path, np.load(path, mmap_mode="r", allow_pickle=False)), None
            case ".npz":
                yield from _archive(path, limit)
            case _:
                yield read_picture(path, path.name, source), None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadSample(f"{path} cannot be read: {error}", "unreadable") from error


def _archive(path: Path, limit: int) -> Iterator[tuple[NDArray[np.float32], float | None]]:
    """Yield the examples of an archive with ``x`` and, unless the folder is the class, ``y``."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > limit:
            raise BadSample(f"{path} unpacks to more than the bound of all data", "oversize")
    with np.load(path, allow_pickle=False) as stored:
        inputs = _float32(path, stored["x"])
        targets = stored["y"] if "y" in stored.files else None
    if inputs.ndim < 1 or (targets is not None and targets.shape != inputs.shape[:1]):
        raise BadSample(f"{path}: y must have one number for each example of x", "length")
    if targets is not None and targets.dtype.kind not in "iufb":
        raise BadSample(f"{path} holds targets that are no numbers", "type")
    for number, features in enumerate(inputs):
        yield features, None if targets is None else float(targets[number])


def _float32(path: Path, value: NDArray[Any]) -> NDArray[np.float32]:
    if value.dtype.kind not in "iufb":
        raise BadSample(f"{path} holds no numbers", "type")
    return np.asarray(value, np.float32)


def _label(path: Path, folder: Path, settings: DataSettings) -> float:
    parents = path.relative_to(folder).parts[:-1]
    if not settings.classes or not parents:
        return 0.0
    if parents[0] not in settings.classes:
        raise BadSample(f"{path}: {parents[0]} is none of the classes", "class")
    return float(settings.classes.index(parents[0]))


def _group(path: Path, source: FolderSource) -> str:
    if source.group == "file":
        return path.name
    if source.group == "prefix":
        cut = max(path.stem.rfind(separator) for separator in _SEPARATORS)
        return path.stem[:cut] if cut > 0 else path.stem
    return ""
