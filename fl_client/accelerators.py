"""The accelerators of a machine, found without importing torch, and how a process is kept to one.

A training process sees only the accelerator that it is for: to it that is the first and only one.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import ConfigError

_QUERY = ("nvidia-smi", "--query-gpu=name,uuid,memory.total,compute_cap", "--format=csv,noheader")
_QUERY_S = 10.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Accelerator:
    """Something that orders run on.

    Attributes:
        name: ``cuda:0``, ``rocm:0``, ``mps`` or ``cpu``; ``cpu:1`` is one more process of the CPU.
        capability: CUDA's compute capability (``9.0``) or ROCm's target (``gfx90a``).
        handle: what the driver's variable takes to show this one alone.
    """

    name: str
    model: str = ""
    memory_bytes: int = 0
    capability: str = ""
    handle: str = ""

    @property
    def kind(self) -> str:
        """``cuda``, ``rocm``, ``mps`` or ``cpu``."""
        return self.name.partition(":")[0]

    @property
    def precisions(self) -> list[str]:
        """What its matrix units are made for, the best first; the last always works."""
        major = self.capability.partition(".")[0]
        if self.kind == "rocm" or (self.kind == "cuda" and major.isdecimal() and int(major) >= 8):
            return ["bfloat16", "float16", "float32"]
        if self.kind == "cuda" and major == "7":
            return ["float16", "float32"]
        return ["float32"]

    @property
    def environment(self) -> dict[str, str]:
        """What shows a process this accelerator and hides the others."""
        match self.kind:
            case "cuda":
                # the number of a device is its place on the bus, as nvidia-smi counts
                return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": self.handle}
            case "rocm":
                return {"HIP_VISIBLE_DEVICES": self.handle}
            case "cpu":
                return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        return {}

    def __str__(self) -> str:
        return f"{self.name} {self.model}".strip()


CPU = Accelerator("cpu")
UNTOLD = Accelerator("")


@dataclass(frozen=True)
class Machine:
    """Where to look; another one than this machine in tests."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    query: Sequence[str] = _QUERY
    system: str = sys.platform
    machine: str = field(default_factory=platform.machine)


def find(machine: Machine | None = None) -> list[Accelerator]:
    """Return the accelerators that this process may use, in the order of their numbers."""
    machine = machine or Machine()
    found = _visible("cuda", _nvidia(machine), machine.environ.get("CUDA_VISIBLE_DEVICES"))
    found += _visible("rocm", _amd(machine), machine.environ.get("HIP_VISIBLE_DEVICES"))
    if machine.system == "darwin" and machine.machine == "arm64":
        found.append(Accelerator("mps", "Apple GPU"))
    return found


@functools.cache
def of_this_machine() -> list[Accelerator]:
    """Return what ``find`` found first: drivers do not come and go under a running agent."""
    return find()


def chosen(wanted: str, found: Sequence[Accelerator], *, idle: bool) -> Accelerator:
    """Return what this agent's orders run on; another agent may have another of the machine's.

    Args:
        wanted: "auto", "cpu" or a name.
        idle: whether "auto" leaves accelerators alone, by profile or by engine.

    Raises:
        ConfigError: the name is not among ``found``.
    """
    if wanted == "auto":
        return CPU if idle or not found else found[0]
    if wanted.partition(":")[0] == "cpu":
        return Accelerator(wanted)
    for each in found:
        if each.name == wanted:
            return each
    there = ", ".join([str(each) for each in found] + ["cpu"])
    raise ConfigError(f"accelerator: {wanted!r} is not here (there are: {there})")


def for_orders(wanted: str, *, profile: str, engine: str) -> Accelerator:
    """Return what an agent's orders run on; ConfigError as ``chosen`` has it.

    What was not named and not found is left to the engine, by profile: a library may know of an
    accelerator that no driver's file tells of.
    """
    only_cpu = engine == "numpy"
    found = chosen(wanted, of_this_machine(), idle=only_cpu or profile != "gpu")
    if only_cpu and found.kind != "cpu":
        raise ConfigError(f"accelerator: the numpy engine trains on the CPU, not on {found}")
    if wanted == "auto" and found == CPU and profile == "gpu" and not only_cpu:
        return UNTOLD
    return found


def _visible(kind: str, found: Sequence[Accelerator], variable: str | None) -> list[Accelerator]:
    """Return those that the driver's variable shows, numbered as the process sees them."""
    if variable is None:
        return list(found)
    shown: list[Accelerator] = []
    for token in variable.split(","):
        each = next((one for one in found if _is_named(one, token.strip())), None)
        if each is None:
            break  # as the driver does: what follows an unknown name is not seen
        shown.append(
            Accelerator(
                f"{kind}:{len(shown)}",
                each.model,
                each.memory_bytes,
                each.capability,
                each.handle,
            )
        )
    return shown


def _is_named(each: Accelerator, token: str) -> bool:
    number = each.name.partition(":")[2]
    return token == number or (len(token) > 4 and each.handle.startswith(token))


def _nvidia(machine: Machine) -> list[Accelerator]:
    folders = sorted((machine.root / "proc/driver/nvidia/gpus").glob("*"))
    if not folders:
        return []
    rows = _nvidia_rows(machine.query)
    if rows:
        return [
            Accelerator(f"cuda:{index}", name, _mebibytes(memory), capability, uuid)
            for index, (name, uuid, memory, capability) in enumerate(rows)
        ]
    found = []
    for index, folder in enumerate(folders):
        facts = _colons(folder / "information")
        model, uuid = facts.get("Model", "NVIDIA GPU"), facts.get("GPU UUID", "")
        # a driver that is not ready masks the name
        handle = str(index) if "?" in uuid or not uuid else uuid
        found.append(Accelerator(f"cuda:{index}", model, handle=handle))
    return found


def _nvidia_rows(query: Sequence[str]) -> list[list[str]]:
    """Return name, UUID, memory and compute capability of each, or nothing when nobody tells."""
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.stdout.splitlines()]
    return [row for row in rows if len(row) == 4]


def _mebibytes(text: str) -> int:
    """Return the bytes of "81559 MiB"; 0 for "[N/A]"."""
    number = text.partition(" ")[0]
    return int(number) * _MIB if number.isdecimal() else 0


def _amd(machine: Machine) -> list[Accelerator]:
    found: list[Accelerator] = []
    nodes = (machine.root / "sys/class/kfd/kfd/topology/nodes").glob("*")
    for node in sorted(nodes, key=lambda path: int(path.name) if path.name.isdecimal() else 0):
        facts = _words(node / "properties")
        if not int(facts.get("simd_count", "0")):
            continue  # the CPU is a node as well
        memory = sum(
            int(_words(bank).get("size_in_bytes", "0"))
            for bank in node.glob("mem_banks/*/properties")
        )
        number = str(len(found))
        target = _target(int(facts.get("gfx_target_version", "0")))
        found.append(Accelerator(f"rocm:{number}", "AMD GPU", memory, target, number))
    return found


def _target(version: int) -> str:
    """Return 90010 as ``gfx90a``: two digits each for major, minor and step, the last two hex."""
    major, minor, step = version // 10_000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def _colons(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _words(path: Path) -> dict[str, str]:
    pairs = (line.split(maxsplit=1) for line in _text(path).splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
