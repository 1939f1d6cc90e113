"""What can be learned about this machine and this installation, without importing torch."""

from __future__ import annotations

import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from fl_client.machine.hardware import describe
from runtime.disk import DiskRoom, disk_room

_PROGRAM_TIMEOUT_S = 10.0
_CUDA_OF_TORCH = re.compile(r"^cuda\b[^=]*= *'([^']+)'", re.MULTILINE)
_VERSION = re.compile(r"(?<![\d.])\d+\.\d+[\w.+-]*")


@dataclass(frozen=True)
class TorchBuild:
    """Which torch is installed: its version, and the CUDA it was built for, if any."""

    version: str
    cuda: str | None


class MachineFacts(Protocol):
    """What the doctor asks of a machine; tests answer in its place."""

    @property
    def python(self) -> tuple[int, int, int]:
        """The interpreter's version."""

    @property
    def system(self) -> str:
        """``Linux``, ``Darwin`` …"""

    @property
    def architecture(self) -> str:
        """``x86_64``, ``aarch64``, ``arm64`` …"""

    def requirements(self) -> list[str]:
        """Return what the distribution requires, as in its metadata; empty if not installed."""
        ...

    def version(self, distribution: str) -> str | None:
        """Return the installed version, None where it is not installed."""
        ...

    def torch(self) -> TorchBuild | None:
        """Return the installed torch build, None where there is none."""
        ...

    def has_nvidia_gpu(self) -> bool:
        """Return whether an NVIDIA driver shows a device."""
        ...

    def program(self, name: str) -> Path | None:
        """Return a program's path: beside this Python first, then on PATH."""
        ...

    def program_version(self, path: Path, argument: str) -> str:
        """Return the version that the program prints; raises OSError when it cannot run."""
        ...

    def room(self, folder: Path) -> DiskRoom:
        """Return what is left of the disk where ``folder`` is or would be; raises OSError."""
        ...

    def parts(self, folder: Path) -> list[Path]:
        """Return the folders within ``folder`` that may lie on other disks; raises OSError."""
        ...

    def memory_bytes(self) -> int | None:
        """Return the machine's memory, None where it cannot be told."""
        ...

    def write_probe(self, folder: Path) -> None:
        """Write and remove a file where ``folder`` is or would be; raises OSError."""
        ...

    def port_in_use(self, port: int) -> bool:
        """Return whether something listens on the port of 127.0.0.1."""
        ...

    def now_s(self) -> float:
        """Return the wall clock, in seconds since 1970."""
        ...

    def installed_s(self) -> float:
        """Return when Rengo's files were written, in seconds since 1970."""
        ...


class ThisMachine:
    """The machine that this process runs on."""

    def __init__(self) -> None:
        self.python = (sys.version_info.major, sys.version_info.minor, sys.version_info.micro)
        self.system = platform.system()
        self.architecture = platform.machine()

    def requirements(self) -> list[str]:
        """Return what the distribution requires."""
        try:
            return metadata.requires("rengo") or []
        except metadata.PackageNotFoundError:
            return []

    def version(self, distribution: str) -> str | None:
        """Return the installed version."""
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return None

    def torch(self) -> TorchBuild | None:
        """Return the torch build; reads its version file, since importing it takes seconds."""
        version, spec = self.version("torch"), find_spec("torch")
        if version is None or spec is None or spec.origin is None:
            return None
        try:
            text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
        except OSError:
            return TorchBuild(version, None)
        cuda = _CUDA_OF_TORCH.search(text)
        return TorchBuild(version, cuda.group(1) if cuda else None)

    def has_nvidia_gpu(self) -> bool:
        """Return whether an NVIDIA driver shows a device."""
        return any(name.startswith("cuda") for name in describe().accelerators)

    def program(self, name: str) -> Path | None:
        """Return a program's path."""
        found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
        return None if found is None else Path(found)

    def program_version(self, path: Path, argument: str) -> str:
        """Return the version that the program prints."""
        try:
            done = subprocess.run(
                [path, argument],
                capture_output=True,
                text=True,
                timeout=_PROGRAM_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{path} gave no answer within {_PROGRAM_TIMEOUT_S:.0f} s") from error
        found = _VERSION.search(done.stdout)
        if done.returncode != 0 or found is None:
            raise OSError(f"{path} {argument} ended with status {done.returncode}")
        return found.group()

    def room(self, folder: Path) -> DiskRoom:
        """Return what is left of the disk."""
        return disk_room(folder)

    def parts(self, folder: Path) -> list[Path]:
        """Return the folders of a site's parts and of its devices, or of an agent's parts."""
        return sorted(
            path for within in ("*", "devices/*") for path in folder.glob(within) if path.is_dir()
        )

    def memory_bytes(self) -> int | None:
        """Return the machine's memory, or less where a control group limits this process."""
        return describe().ram_bytes or None

    def write_probe(self, folder: Path) -> None:
        """Write and remove a file where ``folder`` is or would be."""
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"rengo")

    def port_in_use(self, port: int) -> bool:
        """Return whether something listens on the port of 127.0.0.1."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def now_s(self) -> float:
        """Return the wall clock."""
        return time.time()

    def installed_s(self) -> float:
        """Return when this file was written."""
        return Path(__file__).stat().st_mtime


def _existing(folder: Path) -> Path:
    """Return the nearest folder that exists: the place where ``folder`` would be made."""
    path = folder.resolve()
    while not path.exists():
        path = path.parent
    return path
