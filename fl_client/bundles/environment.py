"""A bundle's own environment: a venv that has the agent's packages after its own.

Dependencies that the agent has are used from there. Others are installed into the venv, if the
device's settings allow it, and never into the agent's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import venv
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fl_client
from fl_client.bundles.policy import BundleSettings
from runtime.errors import ConfigError
from runtime.files import atomic_write
from runtime.processes.child import Child
from storage.bundles.bundle import Dependency
from storage.transfer.files import Cancelled

_INSTALL_S = 900.0
_POLL_S = 0.2
_MARKER = "rengo-environment.json"


def environment(
    folder: Path,
    dependencies: Sequence[Dependency],
    settings: BundleSettings,
    cancel: threading.Event,
) -> Path:
    """Return the interpreter of a venv with the dependencies, which is created if necessary.

    Args:
        folder: that of the venv; an incomplete one is removed.

    Raises:
        ConfigError: a package is missing and may not or cannot be installed; says which and why.
        Cancelled: ``cancel`` was set.
    """
    python = folder / "bin" / "python"
    marker = json.dumps({"sees": _agent_folders(), "python": sys.version, "prefix": sys.prefix})
    if _read(folder / _MARKER) == marker and python.exists():
        return python
    missing = [each for each in dependencies if not is_met(each)]
    if missing and settings.install == "never":
        raise ConfigError(f"it needs {_lacking(missing)}; this device installs nothing for bundles")
    if folder.exists():
        shutil.rmtree(folder)
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    _link_agent_packages(folder)
    if missing:
        _install(folder, missing, settings, cancel)
    # the marker must not be on the disk before the files that it stands for
    os.sync()
    atomic_write(folder / _MARKER, marker.encode())
    return python


def is_met(dependency: Dependency) -> bool:
    """Return whether the agent's own environment has a dependency.

    Raises:
        ConfigError: it is not a requirement.
    """
    # a device without bundles does not need it
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415

    try:
        wanted = Requirement(dependency.requirement)
    except InvalidRequirement as error:
        raise ConfigError(f"{dependency.requirement!r} is not a requirement: {error}") from error
    if dependency.hashes or wanted.extras:
        return False  # the installed files may differ, or lack the extra
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _lacking(missing: Sequence[Dependency]) -> str:
    return ", ".join(each.requirement for each in missing)


def _agent_folders() -> list[str]:
    """Return the folders of the agent's packages, that of Rengo itself first."""
    home = Path(fl_client.__file__).resolve().parent.parent
    named = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    return list(dict.fromkeys([str(home), *named]))


def _link_agent_packages(folder: Path) -> None:
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = link_lines(_agent_folders())
    (packages / "rengo-agent.pth").write_text("\n".join(lines) + "\n", "ascii")


def link_lines(folders: Sequence[str]) -> list[str]:
    """Return the lines of a .pth file that bring in the packages of folders, after its own.

    They are ASCII, since Python reads such a file by the user's locale.
    """
    # addsitedir also reads the .pth files of editable installs
    return [f"import site; site.addsitedir({path!a})" for path in folders]


def _install(
    folder: Path,
    missing: Sequence[Dependency],
    settings: BundleSettings,
    cancel: threading.Event,
) -> None:
    lines = [
        " ".join([each.requirement, *(f"--hash=sha256:{sha256}" for sha256 in each.hashes)])
        for each in missing
    ]
    wanted, log = folder / "requirements.txt", folder / "pip.log"
    wanted.write_text("\n".join(lines) + "\n", "utf-8")
    where: list[str] = []
    if settings.install == "offline":
        if settings.wheels is None:
            raise ConfigError(f"it needs {_lacking(missing)}; [bundles] wheels names no folder")
        where = ["--no-index", "--find-links", str(settings.wheels.resolve())]
    argv = [
        *(sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"),
        *("--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--no-cache-dir"),
        *("--require-hashes",) * any(each.hashes for each in missing),
        *("--requirement", str(wanted), *where),
    ]
    process = Child("pip", argv, log, environment=_without_secrets())
    process.start()
    try:
        _await(process, cancel)
    finally:
        process.kill()
    if process.returncode != 0:
        output = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in output if line.startswith("ERROR")]
        reason = [f"pip ended with {process.returncode}", *output[-1:], *errors[-1:]][-1]
        raise ConfigError(f"it needs {_lacking(missing)}, which cannot be installed: {reason:.300}")


def _await(process: Child, cancel: threading.Event) -> None:
    deadline = time.monotonic() + _INSTALL_S
    while process.running:
        if cancel.wait(_POLL_S):
            raise Cancelled("the installation of a bundle's packages was cancelled")
        if time.monotonic() > deadline:
            raise ConfigError(f"its packages were not installed within {_INSTALL_S:.0f} s")


def _without_secrets() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RENGO_")}


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
