"""How the device processes of a site are started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fl_client.own_packages import command
from runtime.processes.child import Child

Engine: TypeAlias = Literal["auto", "torch", "numpy"]


@dataclass(frozen=True)
class DeviceSpec:
    """One device to start beside the site.

    Attributes:
        profile: "pi" starts the Raspberry Pi runner, everything else the client.
        index: which of ``count`` parts of a shared data set is its own.
        folder: where its data lie.
        partition: how a shared data set is divided, as ``dirichlet:0.1``; empty: as the task has
            it.
    """

    name: str
    profile: Literal["cpu", "gpu", "pi"] = "cpu"
    engine: Engine = "auto"
    role: Literal["trainer", "evaluator"] = "trainer"
    index: int = 0
    count: int = 1
    partition: str = ""
    folder: Path | None = None


def device_process(spec: DeviceSpec, identity: Path, folder: Path, task: str, log: Path) -> Child:
    """Return the process of a device, not yet started."""
    runner = "iot" if spec.profile == "pi" else "client"
    argv = [
        *(*command("rengo"), runner),
        *("--identity", str(identity)),
        *("--data-dir", str(folder)),
        *("--task", task),
        *("--role", spec.role),
        *("--index", str(spec.index)),
        *("--count", str(spec.count)),
    ]
    if spec.folder is not None:
        argv += ["--folder", str(spec.folder)]
    if spec.partition:
        argv += ["--partition", spec.partition]
    if runner == "client":
        argv += ["--engine", spec.engine, "--profile", spec.profile]
    return Child(f"device {spec.name}", argv, log)
