"""The demo: broker, store, server, an evaluator and six devices, each a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_client.datasets.device import Device
from fl_client.tasks.base import Task
from fl_client.tasks.listing import is_named
from fl_client.tasks.registry import load_task
from rengo.operator.definitions import check_definition, needs_torch
from rengo.operator.progress import DeviceTable
from rengo.operator.result import RunResult
from rengo.operator.runs import (
    fetch_model,
    follow,
    submit,
    wait_for_devices,
)
from rengo.site.device_folders import DeviceFolders, device_folders
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from rengo.terminal.view import View
from runtime.config import merge
from runtime.errors import ConfigError
from runtime.files import require_writable

_DEVICES_START_S = 90.0
_EVALUATOR = "evaluator-1"
_CLIENTS = 6


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        clients: how many devices train; None: as many as ``data`` has folders, else six.
        data: a folder with a sub-folder for each device, as ``device_folders`` has it.
    """

    task: str = "digits"
    rounds: int = 15
    clients: int | None = None
    seed: int = 0
    output: Path = Path("rengo-output")
    partition: str = ""
    data: Path | None = None


def fleet(clients: int, *, torch_only: bool = False, partition: str = "") -> list[DeviceSpec]:
    """Return the demo's devices: CPU edges, a GPU edge, a Pi and an evaluator.

    The last two use numpy, the smaller engine; where only torch can do the run there is no Pi.

    >>> [spec.name for spec in fleet(3)]
    ['edge-1', 'gpu-1', 'pi-1', 'evaluator-1']
    >>> [spec.name for spec in fleet(3, torch_only=True)]
    ['edge-1', 'edge-2', 'gpu-1', 'evaluator-1']
    """
    special = ["gpu"] if torch_only else ["gpu", "pi"][-min(2, clients) :]
    profiles = ["cpu"] * (clients - len(special)) + special
    counts = {"cpu": 0, "gpu": 0, "pi": 0}
    names = {"cpu": "edge", "gpu": "gpu", "pi": "pi"}
    devices = []
    for index, profile in enumerate(profiles):
        counts[profile] += 1
        devices.append(
            DeviceSpec(
                f"{names[profile]}-{counts[profile]}",
                profile=profile,  # type: ignore[arg-type]
                engine="numpy" if profile == "pi" else "auto",
                index=index,
                count=clients,
                partition=partition,
            )
        )
    evaluator = DeviceSpec(
        _EVALUATOR,
        engine="torch" if torch_only else "numpy",
        role="evaluator",
        count=clients,
        partition=partition,
    )
    return [*devices, evaluator]


def placed(devices: list[DeviceSpec], folders: DeviceFolders) -> list[DeviceSpec]:
    """Return the devices, each with its folder; without one of its own, there is no evaluator."""
    trainers = [
        replace(device, folder=folder)
        for device, folder in zip(devices, folders.trainers, strict=False)
    ]
    if folders.evaluator is None:
        return trainers
    return [*trainers, replace(devices[-1], folder=folders.evaluator)]


def definition(settings: DemoSettings) -> dict[str, Any]:
    """Return the demo's run definition."""
    clients = _CLIENTS if settings.clients is None else settings.clients
    return {
        "rounds": settings.rounds,
        "seed": settings.seed,
        "cohort": {
            "size": clients,
            "quorum": max(1, clients - 2),
            "deadline_s": 120.0,
            "gather_s": 5.0,
            "max_attempts": 3,
        },
        "evaluation": {"on": "evaluators"},
    }


def run_demo(settings: DemoSettings, view: View, more: dict[str, Any] | None = None) -> RunResult:
    """Run the demo from start to end; nothing is left running.

    Args:
        more: keys that override those of the demo's run definition.

    Raises:
        ConfigError: the task or a key is wrong; said before anything is started.
        MissingExtra: only torch can do the run, and it is not installed.
    """
    require_writable(settings.output)
    task = load_task(settings.task)
    folders = None if settings.data is None else device_folders(settings.data)
    clients = _clients(settings, folders)
    values = definition(replace(settings, clients=clients))
    if folders is not None and folders.evaluator is None:
        values["evaluation"] = {"on": "devices"}
    merge(values, more or {})
    values = check_definition(task, values)
    reason = needs_torch(task, values)
    devices = fleet(clients, torch_only=bool(reason), partition=settings.partition)
    if folders is not None:
        devices = placed(devices, folders)
    _require_data(task, settings.task, devices)
    _tell_folders(devices, view)
    if reason:
        view.note(f"No Raspberry Pi device takes part, since those train without torch: {reason}")
    view.phase("Starting the broker, the store and the server")
    with Site() as site:
        view.phase(f"Starting {len(devices)} devices")
        site.start_devices(devices, settings.task)
        with site.connect() as client:
            device_table = DeviceTable()

            def look(device_table: DeviceTable) -> None:
                view.devices(device_table, len(devices))
                site.check_processes()

            here = [each.name for each in devices]
            wait_for_devices(client, here, _DEVICES_START_S, look, device_table)
            run_id = submit(client, settings.task, values)
            result = follow(client, run_id, view.update, device_table)
            result = fetch_model(client, result, settings.output)
        view.phase("Stopping every process")
    view.phase("")
    return result


def _clients(settings: DemoSettings, folders: DeviceFolders | None) -> int:
    if folders is None:
        return _CLIENTS if settings.clients is None else settings.clients
    count = len(folders.trainers)
    if settings.clients not in (None, count):
        raise ConfigError(
            f"{settings.data} has folders of {count} devices, and --clients says {settings.clients}"
        )
    return count


def _tell_folders(devices: list[DeviceSpec], view: View) -> None:
    for device in devices:
        if device.folder is not None:
            view.note(f"{device.name} has the data in {device.folder.name}")


def _require_data(task: Task, spec: str, devices: list[DeviceSpec]) -> None:
    """Raise where this machine lacks the data of one of the package's own tasks.

    Without it every device would decline every order; likewise where the data cannot be divided as
    the settings say. A user's own task is not checked: its code would have to run here.
    """
    if is_named(spec):
        for device in (devices[-1], devices[0]):
            task.data(
                Device(
                    device.name,
                    device.index,
                    device.count,
                    device.role,
                    folder=device.folder,
                    partition=device.partition,
                )
            )
