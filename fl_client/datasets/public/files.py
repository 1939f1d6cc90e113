"""A published data set's files: where they are looked for, and how they are verified.

Nothing of a file is used before its size and sha256 were compared with those of the published one.
"""

from __future__ import annotations

import gzip
import hashlib
import mmap
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from fl_client.datasets.public.published import Published, PublishedFile, cache_folder
from runtime.errors import ConfigError
from runtime.files import whole_file

Buffer: TypeAlias = bytes | mmap.mmap


def find(wanted: Published, folder: Path | None = None) -> Path:
    """Return the folder or the archive that holds a data set's files.

    They are looked for in this order: ``folder``; what the data set's environment variable names;
    the user's cache; where an installed package has them.

    Raises:
        ConfigError: they are nowhere; the text says how to get them.
    """
    if folder is not None and _has_files(folder, wanted):
        return folder
    named = os.environ.get(wanted.variable)
    if named:
        place = Path(named)
        if not (place.is_file() or _has_files(place, wanted)):
            file = wanted.converted or wanted.files[0].name
            raise ConfigError(
                f"task {wanted.name}: {wanted.variable}={named} has no {file} and is no file"
            )
        return place
    installed: Iterable[Path] = () if wanted.package is None else wanted.package.installed()
    for place in (cache_folder(wanted.name), *installed):
        if _has_files(place, wanted):
            return place
    raise ConfigError(wanted.how)


def read(wanted: Published, place: Path) -> Mapping[str, Buffer]:
    """Return the content of each of a data set's files by name, verified.

    Args:
        place: a folder, or an archive (tar) that has them in any of its folders.

    Raises:
        ConfigError: a file is missing, or is not the published one.
    """
    try:
        return _read(wanted, place)
    except ConfigError as error:
        raise ConfigError(
            f"task {wanted.name}: {error}; `rengo data get {wanted.name}` fetches the data anew"
        ) from error


def _read(wanted: Published, place: Path) -> Mapping[str, Buffer]:
    if place.is_dir():
        return {file.name: _verified(_opened(place, file), file, place) for file in wanted.files}
    if place.name == wanted.files[0].name:
        return {place.name: _verified(_mapped(place), wanted.files[0], place)}
    return _from_archive(wanted.files, place)


def store(wanted: Published, place: Path, folder: Path) -> None:
    """Write a data set's files, verified, into a folder in which ``find`` finds them.

    Args:
        place: as ``read`` has it.

    Raises:
        ConfigError: they are not the published ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if wanted.convert is not None:
        wanted.convert(place, folder)
        return
    for name, content in read(wanted, place).items():
        with whole_file(folder / name) as out:
            out.write(content)


def _has_files(folder: Path, wanted: Published) -> bool:
    if wanted.converted and any(folder.glob(wanted.converted)):
        return True
    return any(path.is_file() for path in _paths(folder, wanted.files[0]))


def _paths(folder: Path, file: PublishedFile) -> tuple[Path, Path]:
    return folder / file.name, folder / f"{file.name}.gz"


def _opened(folder: Path, file: PublishedFile) -> Buffer:
    plain, packed = _paths(folder, file)
    if plain.is_file():
        return _mapped(plain)
    try:
        with gzip.open(packed) as stream:
            # one byte more than there should be shows that it is another file
            return stream.read(file.size_bytes + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no {file.name}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{packed} cannot be read: {error}") from error


def _mapped(path: Path) -> Buffer:
    """Return a file's content without a copy in memory."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _from_archive(files: Sequence[PublishedFile], place: Path) -> Mapping[str, Buffer]:
    wanted = {file.name: file for file in files}
    found: dict[str, Buffer] = {}
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                file = wanted.get(PurePosixPath(member.name).name)
                stream = archive.extractfile(member) if file is not None else None
                if file is not None and stream is not None and file.name not in found:
                    content = stream.read(file.size_bytes + 1)
                    found[file.name] = _verified(content, file, place)
                if len(found) == len(wanted):
                    return found
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ConfigError(
            f"{place} is no folder and no archive that can be read: {error}"
        ) from error
    missing = ", ".join(name for name in wanted if name not in found)
    raise ConfigError(f"{place} has no {missing}")


def _verified(content: Buffer, file: PublishedFile, place: Path) -> Buffer:
    if len(content) != file.size_bytes:
        raise ConfigError(f"{place}: {file.name} has another size than the published file")
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise ConfigError(
            f"{place}: {file.name} has sha256 {digest}, not that of the published file"
        )
    return content
