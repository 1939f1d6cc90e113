"""What is missing on this machine, and how to mend it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_client.own_packages import shadowed_in
from rengo.doctor.machine import MachineFacts, ThisMachine, TorchBuild
from runtime.disk import DiskRoom

OLDEST_PYTHON = (3, 11)
EXTRAS = ("torch", "server", "plot", "postgres", "export")
PROGRAMS = {
    "nats-server": ("MQTT broker", "--version"),
    "juicefs": ("object store", "--version"),
    "weed": ("object store, the other one", "version"),
}
MIN_FREE_BYTES = 1 << 30
MIN_MEMORY_BYTES = 256 << 20
TORCH_MEMORY_BYTES = 1 << 30
_NAME = re.compile(r"[\w.-]+")
_MINIMUM = re.compile(r">=\s*([\d.]+)")
_EXTRA = re.compile(r"extra\s*==\s*['\"](\w+)['\"]")
_NUMBERS = re.compile(r"\d+")
_CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        ok: nothing to do.
        mend: what to do, empty where there is nothing to do.
        required: Rengo cannot work without it; else it limits what this machine can be.
    """

    name: str
    ok: bool
    detail: str
    mend: str = ""
    required: bool = True


@dataclass(frozen=True)
class Requirement:
    """A line of the distribution's metadata."""

    name: str
    minimum: str
    extra: str | None


def diagnose(
    data_dir: Path, ports: Mapping[str, int] | None = None, machine: MachineFacts | None = None
) -> list[Check]:
    """Return what was looked at on this machine, in the order to read it.

    Args:
        data_dir: where the site's or the device's data lies or will lie.
        ports: ports that are to be listened on, each by what for.
    """
    here = ThisMachine() if machine is None else machine
    return [
        _python(here),
        *_packages(here),
        *_shadowed(),
        *_torch(here),
        *(_program(here, name) for name in PROGRAMS),
        *_disks(here, data_dir),
        _writable(here, data_dir),
        _memory(here),
        _clock(here),
        *(_port(here, what, port) for what, port in (ports or {}).items()),
    ]


def diagnose_device(data_dir: Path, machine: MachineFacts | None = None) -> list[Check]:
    """Return what of this machine matters to a device's agent; see :func:`diagnose`."""
    here = ThisMachine() if machine is None else machine
    extras = tuple(f"[{extra}]" for extra in EXTRAS)
    return [
        _python(here),
        *(check for check in _packages(here) if not check.name.endswith(extras)),
        *_torch(here),
        *_disks(here, data_dir),
        _writable(here, data_dir),
        _memory(here),
        _clock(here),
    ]


def healthy(checks: Sequence[Check]) -> bool:
    """Return whether all that is required is there."""
    return all(check.ok for check in checks if check.required)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the findings as a document for ``--json``."""
    return {"ok": healthy(checks), "checks": [asdict(check) for check in checks]}


def parse_requirement(line: str) -> Requirement:
    """Return name, lower bound and extra of a requirement.

    >>> parse_requirement('boto3>=1.36; extra == "server"')
    Requirement(name='boto3', minimum='1.36', extra='server')
    """
    name, minimum, extra = _NAME.match(line), _MINIMUM.search(line), _EXTRA.search(line)
    return Requirement(
        name.group() if name else line,
        minimum.group(1) if minimum else "",
        extra.group(1) if extra else None,
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBERS.findall(version.partition("+")[0]))


def _python(machine: MachineFacts) -> Check:
    version = ".".join(str(part) for part in machine.python)
    oldest = ".".join(str(part) for part in OLDEST_PYTHON)
    ok = machine.python[:2] >= OLDEST_PYTHON
    mend = "" if ok else f"install Python {oldest} or newer, and Rengo with it"
    return Check("python", ok, f"{version} on {machine.system} {machine.architecture}", mend)


def _packages(machine: MachineFacts) -> Iterator[Check]:
    lines = machine.requirements()
    if not lines:
        yield Check(
            "rengo", False, "not installed as a distribution", "pip install rengo, or make setup"
        )
        return
    yield Check("rengo", True, machine.version("rengo") or "unknown version")
    found = {(r.name, r.extra): r for r in map(parse_requirement, lines)}
    order = (None, *EXTRAS)
    wanted = [r for r in found.values() if r.extra in order and r.name != "rengo"]
    for requirement in sorted(wanted, key=lambda r: order.index(r.extra)):
        yield _package(machine, requirement)


def _shadowed() -> Iterator[Check]:
    places = [Path(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    found = dict.fromkeys(path for each in (Path.cwd(), *places) for path in shadowed_in(each))
    for path in found:
        yield Check(
            path.name,
            False,
            f"{path} has the name of a package of Rengo's, which is imported instead",
            "give it another name, should a task import it",
            required=False,
        )


def _package(machine: MachineFacts, requirement: Requirement) -> Check:
    extra, minimum = requirement.extra, requirement.minimum
    name = requirement.name if extra is None else f"{requirement.name} [{extra}]"
    target = "rengo" if extra is None else f"'rengo[{extra}]'"
    version = machine.version(requirement.name)
    if version is None:
        return Check(name, False, "not installed", f"pip install {target}", extra is None)
    if _numbers(version) < _numbers(minimum):
        mend = f"pip install --upgrade {target}"
        return Check(name, False, f"{version}, needs {minimum} or newer", mend, extra is None)
    return Check(name, True, version, required=extra is None)


def _torch(machine: MachineFacts) -> Iterator[Check]:
    build = machine.torch()
    if build is None:
        return
    on_arm = machine.system == "Linux" and machine.architecture == "aarch64"
    if on_arm and _numbers(build.version) >= (2, 11) and not machine.has_nvidia_gpu():
        yield Check(
            "torch build",
            False,
            f"{build.version} for arm64 brings CUDA's libraries, several GB",
            "pip install 'torch<2.11', the last one for the CPU alone, or use the numpy engine",
            required=False,
        )
        return
    yield _torch_device(machine, build)


def _torch_device(machine: MachineFacts, build: TorchBuild) -> Check:
    if build.cuda is None:
        if machine.has_nvidia_gpu():
            mend = "for the GPU: pip install --force-reinstall torch"
            return Check("torch build", False, "CPU build beside an NVIDIA GPU", mend, False)
        return Check("torch build", True, "CPU build", required=False)
    if machine.has_nvidia_gpu():
        return Check("torch build", True, f"CUDA {build.cuda}, GPU present", required=False)
    detail = f"CUDA {build.cuda} build, no NVIDIA GPU seen: trains on the CPU"
    return Check("torch build", True, detail, f"smaller: {_CPU_TORCH}", required=False)


def _program(machine: MachineFacts, name: str) -> Check:
    purpose, argument = PROGRAMS[name]
    path = machine.program(name)
    if path is None:
        mend = "pip install 'rengo[server]' (a device does not need it)"
        return Check(name, False, f"not found ({purpose})", mend, required=False)
    try:
        version = machine.program_version(path, argument)
    except OSError as error:
        mend = "pip install --force-reinstall 'rengo[server]'"
        return Check(name, False, f"does not run: {error}", mend, required=False)
    return Check(name, True, f"{version} at {path} ({purpose})", required=False)


def _disks(machine: MachineFacts, folder: Path) -> Iterator[Check]:
    """Look at the disk of a folder, and at that of each part which has a disk of its own."""
    try:
        room = machine.room(folder)
        yield _disk("disk", folder, room)
        seen = {room.device}
        for part in machine.parts(folder):
            room = machine.room(part)
            if room.device not in seen:
                seen.add(room.device)
                yield _disk(f"disk of {part.relative_to(folder)}", part, room)
    except OSError as error:
        yield Check("disk", False, f"{folder}: {error}", "choose another folder with --data-dir")


def _disk(name: str, folder: Path, room: DiskRoom) -> Check:
    if room.lack:
        mend = "free some: what writes there goes on by itself when there is room"
        return Check(name, False, f"{room.lack}: {folder}", mend)
    ok = room.free_bytes >= MIN_FREE_BYTES
    mend = "" if ok else f"free {_size(MIN_FREE_BYTES)}, or choose another disk with --data-dir"
    return Check(name, ok, f"{_size(room.free_bytes)} free for {folder}", mend)


def _writable(machine: MachineFacts, folder: Path) -> Check:
    try:
        machine.write_probe(folder)
    except OSError as error:
        mend = "make it writable for this user, or choose another folder with --data-dir"
        return Check("data folder", False, f"{folder}: {error.strerror or error}", mend)
    return Check("data folder", True, f"{folder} is writable")


def _memory(machine: MachineFacts) -> Check:
    total = machine.memory_bytes()
    if total is None:
        return Check("memory", True, "unknown", required=False)
    if total < MIN_MEMORY_BYTES:
        mend = f"an agent needs {_size(MIN_MEMORY_BYTES)}: use a machine with more"
        return Check("memory", False, _size(total), mend)
    if total < TORCH_MEMORY_BYTES:
        mend = "too little for torch: use the numpy engine (rengo iot)"
        return Check("memory", True, _size(total), mend, required=False)
    return Check("memory", True, _size(total))


def _clock(machine: MachineFacts) -> Check:
    now, installed = machine.now_s(), machine.installed_s()
    detail = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    if now >= installed:
        return Check("clock", True, detail, required=False)
    return Check(
        "clock",
        False,
        f"{detail}, which is before Rengo was installed",
        "set it, for example: sudo timedatectl set-ntp true (a store may refuse URLs "
        "when clocks differ by more than 15 minutes)",
        required=False,
    )


def _port(machine: MachineFacts, what: str, port: int) -> Check:
    if machine.port_in_use(port):
        mend = f"end what listens there (lsof -i :{port}), or configure another port"
        return Check(f"port {port}", False, f"in use, wanted for {what}", mend)
    return Check(f"port {port}", True, f"free for {what}")


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
