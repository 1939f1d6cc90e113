"""Finds a machine's accelerators without importing torch, and restricts a process to some of them.

A training process sees only those that it may use, one accelerator or several of one kind,
numbered from 0 in the order of the settings.
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
AUTO, ALL = "auto", "all"


@dataclass(frozen=True)
class Accelerator:
    """A device for computing: a GPU or the CPU.

    Attributes:
        name: ``cuda:0``, ``rocm:0``, ``mps`` or ``cpu``; ``cpu:1`` is a second thread on the CPU.
        capability: CUDA's compute capability (``9.0``) or ROCm's target (``gfx90a``).
        handle: its id in the driver's environment variable.
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
        """What its matrix units support, the best first; the last always works."""
        major = self.capability.partition(".")[0]
        if self.kind == "rocm" or (self.kind == "cuda" and major.isdecimal() and int(major) >= 8):
            return ["bfloat16", "float16", "float32"]
        if self.kind == "cuda" and major == "7":
            return ["float16", "float32"]
        return ["float32"]

    def __str__(self) -> str:
        return f"{self.name} {self.model}".strip()


CPU = Accelerator("cpu")
UNKNOWN = Accelerator("")


@dataclass(frozen=True)
class MachineProbe:
    """Where the drivers' files and commands are; a test supplies its own."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    query: Sequence[str] = _QUERY
    system: str = sys.platform
    machine: str = field(default_factory=platform.machine)


def detect(machine: MachineProbe | None = None) -> list[Accelerator]:
    """Return the accelerators that this process may use, in the order of their numbers."""
    machine = machine or MachineProbe()
    found = _visible("cuda", _nvidia(machine), machine.environ.get("CUDA_VISIBLE_DEVICES"))
    found += _visible("rocm", _amd(machine), machine.environ.get("HIP_VISIBLE_DEVICES"))
    if machine.system == "darwin" and machine.machine == "arm64":
        found.append(Accelerator("mps", "Apple GPU"))
    return found


@functools.cache
def of_this_machine() -> list[Accelerator]:
    """Return this machine's accelerators, detected once: drivers do not change under an agent."""
    return detect()


def chosen(
    wanted: Sequence[str], found: Sequence[Accelerator], *, idle: bool
) -> tuple[Accelerator, ...]:
    """Return the accelerators that this agent uses; another agent may use others.

    Args:
        wanted: names, or "auto" alone, or "all" alone, which is all of the first one's kind.
        idle: whether "auto" is the CPU even if there are accelerators.

    Raises:
        ConfigError: a name is not among ``found``.
    """
    if list(wanted) == [AUTO]:
        return (CPU,) if idle or not found else (found[0],)
    if list(wanted) == [ALL]:
        return tuple(each for each in found if each.kind == found[0].kind) or (CPU,)
    return tuple(_named(name, found) for name in wanted)


def for_orders(wanted: Sequence[str], *, profile: str, engine: str) -> tuple[Accelerator, ...]:
    """Return the accelerators that an agent uses, by its settings.

    If none is named and none is found, the profile ``gpu`` leaves the choice to the engine: its
    library may know an accelerator that was not detected here.

    Raises:
        ConfigError: as ``chosen``, or the engine cannot use them.
    """
    unnamed = list(wanted) in ([AUTO], [ALL])
    if engine == "numpy" and unnamed:
        return (CPU,)
    selected = chosen(wanted, of_this_machine(), idle=profile != "gpu")
    if engine == "numpy" and (len(selected) > 1 or selected[0].kind != "cpu"):
        names = ", ".join(str(each) for each in selected)
        raise ConfigError(f"accelerators: the numpy engine trains on one CPU, not on {names}")
    if unnamed and selected == (CPU,) and profile == "gpu":
        return (UNKNOWN,)
    return selected


def environment(accelerators: Sequence[Accelerator]) -> dict[str, str]:
    """Return the environment that restricts a process to these accelerators, in this order."""
    handles = ",".join(each.handle for each in accelerators)
    match accelerators[0].kind:
        case "cuda":
            # numbered by their order on the bus, as nvidia-smi does
            return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": handles}
        case "rocm":
            return {"HIP_VISIBLE_DEVICES": handles}
        case "cpu":
            return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    return {}


def precision(accelerators: Sequence[Accelerator]) -> str:
    """Return the best precision that the matrix units of all of them support."""
    first, *others = (each.precisions for each in accelerators)
    return next(name for name in first if all(name in each for each in others))


def _named(name: str, found: Sequence[Accelerator]) -> Accelerator:
    if name.partition(":")[0] == "cpu":
        return Accelerator(name)
    for each in found:
        if each.name == name:
            return each
    available = ", ".join([str(each) for each in found] + ["cpu"])
    raise ConfigError(f"accelerators: {name!r} is not here (there are: {available})")


def _visible(kind: str, found: Sequence[Accelerator], variable: str | None) -> list[Accelerator]:
    """Return those that the driver's variable names, numbered as the process sees them."""
    if variable is None:
        return list(found)
    shown: list[Accelerator] = []
    for token in variable.split(","):
        each = next((one for one in found if _is_named(one, token.strip())), None)
        if each is None:
            break  # as the driver does: names after an unknown one are ignored
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


def _nvidia(machine: MachineProbe) -> list[Accelerator]:
    folders = sorted((machine.root / "proc/driver/nvidia/gpus").glob("*"))
    if not folders:
        return []
    rows = _nvidia_rows(machine.query)
    if rows:
        return [
            Accelerator(f"cuda:{index}", name, _mebibytes(memory), capability, uuid)
            for index, (name, uuid, memory, capability) in enumerate(rows)
        ]
    facts_by_card = [_colons(folder / "information") for folder in folders]
    uuids = [facts.get("GPU UUID", "") for facts in facts_by_card]
    # a driver that is not ready masks UUIDs; CUDA accepts only UUIDs or only numbers
    masked = any("?" in uuid or not uuid for uuid in uuids)
    return [
        Accelerator(
            f"cuda:{index}",
            facts.get("Model", "NVIDIA GPU"),
            handle=str(index) if masked else uuids[index],
        )
        for index, facts in enumerate(facts_by_card)
    ]


def _nvidia_rows(query: Sequence[str]) -> list[list[str]]:
    """Return name, UUID, memory and compute capability of each; nothing if the query fails."""
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == 4]


def _mebibytes(text: str) -> int:
    """Return the bytes of "81559 MiB"; 0 for "[N/A]"."""
    number = text.partition(" ")[0]
    return int(number) * _MIB if number.isdecimal() else 0


def _amd(machine: MachineProbe) -> list[Accelerator]:
    found: list[Accelerator] = []
    nodes = (machine.root / "sys/class/kfd/kfd/topology/nodes").glob("*")
    for node in sorted(nodes, key=lambda path: int(path.name) if path.name.isdecimal() else 0):
        facts = _words(node / "properties")
        if not int(facts.get("simd_count", "0")):
            continue  # the CPU is a node too
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
