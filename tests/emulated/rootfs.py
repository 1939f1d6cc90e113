"""Root file systems of other processors, run by qemu-user, with Rengo installed from wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.wheels import REPOSITORY, build_wheel

_VENV = "/opt/rengo"
_RELEASE = "bookworm"
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_COMMON = ("python3", "python3-venv", "ca-certificates")


@dataclass(frozen=True)
class Architecture:
    """A processor that qemu imitates.

    Attributes:
        name: Debian's name of it.
        binfmt: what the kernel hands to qemu, by the name in ``update-binfmts``.
        packages: what Debian installs there beside Python.
        from_debian: the Python distributions among them, which have no wheel for it.
        library_path: what postinst scripts would have linked.
    """

    name: str
    binfmt: str
    packages: tuple[str, ...] = ()
    from_debian: tuple[str, ...] = ()
    library_path: str = ""


ARCHITECTURES = {
    "arm64": Architecture("arm64", "qemu-aarch64", ("libgomp1",)),
    "armhf": Architecture(
        "armhf",
        "qemu-arm",
        ("python3-numpy", "python3-msgpack", "python3-nacl", "python3-cffi"),
        ("numpy", "msgpack", "PyNaCl", "cffi", "pycparser"),
        "/usr/lib/arm-linux-gnueabihf/blas:/usr/lib/arm-linux-gnueabihf/lapack",
    ),
}


def missing(architecture: Architecture, *, root: bool, registry: Path) -> list[str]:
    """Return what this machine lacks for it, each with what to do; empty when nothing."""
    lacks = [] if root else ["root, for chroot and mount: run it by sudo"]
    if shutil.which("debootstrap") is None:
        lacks.append("debootstrap: apt-get install debootstrap")
    if not (registry / architecture.binfmt).exists():
        lacks.append(
            f"{architecture.binfmt} in {registry}: "
            "apt-get install qemu-user-static binfmt-support; "
            f"mount -t binfmt_misc binfmt_misc {registry}; "
            f"update-binfmts --enable {architecture.binfmt}"
        )
    return lacks


def pins(lines: Iterable[str], without: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a constraints file but those of the named distributions."""
    names = {re.sub(r"[-_.]+", "-", each).lower() for each in without}
    for line in lines:
        name = re.sub(r"[-_.]+", "-", re.split(r"[=<>; ]", line, maxsplit=1)[0]).lower()
        if name not in names:
            yield line


class RootFs:
    """One root file system; ``build`` makes it unless it is there."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        self.architecture = architecture
        self.path = folder / architecture.name

    def build(self) -> None:
        """Unpack Debian and make a virtual environment; takes about a minute the first time."""
        if (self.path / "opt/rengo/bin/pip").exists():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        packages = ",".join((*_COMMON, *self.architecture.packages))
        _say_and_run(
            *("debootstrap", "--foreign", "--variant=minbase"),
            *(f"--arch={self.architecture.name}", f"--include={packages}"),
            *(_RELEASE, str(self.path)),
        )
        # the second stage would run every postinst under emulation, for twenty minutes
        archives = self.path / "var/cache/apt/archives"
        for package in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, self.path], check=True)
            package.unlink()
        shutil.rmtree(self.path / "debootstrap")
        shutil.copy("/etc/resolv.conf", self.path / "etc/resolv.conf")
        shutil.copy("/etc/hosts", self.path / "etc/hosts")
        shutil.copy(_AUTHORITIES, self.path / str(_AUTHORITIES).lstrip("/"))
        with self.mounted():
            self.run("/usr/bin/python3", "-m", "venv", "--system-site-packages", _VENV)

    def install(self, extras: Sequence[str]) -> None:
        """Build Rengo's wheel here and install it there, its dependencies from wheels alone."""
        wheels = self.path / "root/wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        wheel = build_wheel(wheels)
        kept = pins(
            (REPOSITORY / "constraints.txt").read_text().splitlines(),
            self.architecture.from_debian,
        )
        (wheels / "constraints.txt").write_text("\n".join(kept) + "\n")
        pip = (f"{_VENV}/bin/pip", "install", "--only-binary=:all:", "--no-cache-dir")
        pinned = ("--constraint", "/root/wheels/constraints.txt")
        there = f"/root/wheels/{wheel.name}"
        self.run(*pip, *pinned, f"{there}[{','.join(extras)}]")
        # the version may be the one that is there
        self.run(*pip, "--quiet", "--force-reinstall", "--no-deps", there)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Within the block, the root has /proc and /dev."""
        points = [self.path / "proc", self.path / "dev"]
        done: list[Path] = []
        try:
            subprocess.run(["mount", "-t", "proc", "proc", points[0]], check=True)
            done.append(points[0])
            subprocess.run(["mount", "--bind", "/dev", points[1]], check=True)
            done.append(points[1])
            yield
        finally:
            for point in reversed(done):
                subprocess.run(["umount", point], check=True)

    def argv(self, *command: str) -> list[str]:
        """Return the command line that runs ``command`` there, in a clean environment."""
        environment = [
            "HOME=/root",
            f"PATH={_VENV}/bin:/usr/bin:/bin",
            f"PIP_CERT={_AUTHORITIES}",
            "PIP_DISABLE_PIP_VERSION_CHECK=1",
        ]
        if self.architecture.library_path:
            environment.append(f"LD_LIBRARY_PATH={self.architecture.library_path}")
        return ["chroot", str(self.path), "/usr/bin/env", "-i", *environment, *command]

    def run(self, *command: str) -> None:
        """Run a command there; CalledProcessError when it fails."""
        _say_and_run(*self.argv(*command))

    def ask(self, code: str) -> str:
        """Return what a line of Python prints there."""
        argv = self.argv("python", "-c", code)
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def _say_and_run(*argv: str) -> None:
    print("+", *argv, flush=True)
    # Debian's tools and pip write much; what matters is how they end
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=_environment())
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", file=sys.stderr)
        done.check_returncode()


def _environment() -> dict[str, str]:
    """Return ours without what names this machine's processor to a library."""
    return {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
