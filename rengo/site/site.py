"""A whole site on this machine: broker, store and server as supervised processes."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from fl_client.own_packages import command
from fl_client.tasks.base import Task
from fl_client.tasks.loading import require_not_loading
from fl_client.tasks.registry import load_task
from fl_server.operations.catalogue import DEVICES_ADMIT, SERVER_INFO
from rengo.operator.client import OperatorClient
from rengo.operator.definitions import check_definition
from rengo.operator.models import load
from rengo.operator.progress import DeviceTable, RunProgress
from rengo.operator.result import RunResult
from rengo.operator.runs import (
    fetch_model,
    follow,
    submit,
    version_0,
    wait_for_devices,
)
from rengo.site.device_folders import DeviceFolders, device_folders
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.folder import SiteFolder
from rengo.site.preparation import Preparation, SiteOptions
from rengo.site.supervisor import Supervisor
from rengo.site.temporary import sweep_temporary_sites, temporary_name
from runtime.errors import ConfigError, TransportError
from runtime.files import require_writable
from runtime.processes.child import Child
from runtime.security.identity import Identity

_SERVER_START_S = 30.0
_LOOK_EVERY_S = 2.0
_DEVICES_START_S = 60.0
_STARTS_TRIED = 3
_ADMITTED_AT_ONCE = 400
_AS_IT_IS = SiteOptions()


class Site:
    """Broker, store and server; use as a context manager.

    Args:
        data_dir: what outlives the site; None keeps everything in a temporary folder, removed at
            the end (models go to the output folder of a run).
        devices: how many device identities to prepare for ``rengo client`` (device-1, …).
        options: the rest.

    Raises:
        ConfigError: a port is in use, the folder is in use or of another version.
        TransportError: a process did not come up; names it and its last line.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        devices: int = 0,
        options: SiteOptions = _AS_IT_IS,
    ) -> None:
        self._temporary = data_dir is None
        # the name is set before the folder is made: an interrupt in between leaves nothing behind
        self._root = data_dir or Path(tempfile.gettempdir()) / temporary_name()
        self._devices = devices
        self._options = options
        self._supervisor = Supervisor()
        self._lock: IO[bytes] | None = None
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        require_not_loading("a site")
        try:
            if self._temporary:
                sweep_temporary_sites(self._root.parent)
                self._root.mkdir(mode=0o700)
            self.folder = SiteFolder(self._root)
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._lock = self.folder.lock()
        self._prepared = Preparation(self.folder, self._options, self._devices)
        made = self._prepared
        self.record, self.listening, self.at = made.record, made.listening, made.at
        self.public_url, self.operator = made.public_url, made.operator
        self._supervisor.start()
        if made.broker is not None:
            broker = made.broker.broker()
            self.broker = broker
            self._supervisor.add(
                *("broker", broker, lambda: broker.start(None), broker.fault, broker.data_dir)
            )
        self.store = made.store.store()
        self._supervisor.add(
            "store", self.store, self.store.start, self.store.fault, made.store.folder
        )
        self._start_server()
        self.folder.keep(self.record)
        self.admit(each for each in self.folder.all_identities() if each.role == "device")

    def _start_server(self) -> None:
        config = str(self._prepared.settings["server"])
        # -P: modules are not looked for in the working folder
        role = "server" if self._options.parent is None else "domain"
        argv = [*command("rengo"), role, "--config", config]
        child = Child("the server", argv, self._log("server"))
        self._add_child("server", child, self.folder.root / "server")
        deadline = time.monotonic() + _SERVER_START_S
        with self.connect() as client:
            while True:
                try:
                    client.request(SERVER_INFO, timeout_s=_LOOK_EVERY_S)
                except TransportError:
                    if time.monotonic() > deadline:
                        raise
                    self._require_server()
                else:
                    return

    def _require_server(self) -> None:
        """Raise what the server's process said, when it has ended."""
        if self._supervisor.restarts()["server"] == 0:
            return
        said = self.children["server"].explanation().removeprefix("rengo: ")
        raise ConfigError(f"the server does not start: {said}")

    def connect(self) -> OperatorClient:
        """Return a new operator's connection, to be used as a context manager."""
        return OperatorClient(self.operator)

    def start_devices(self, specs: Sequence[DeviceSpec], task: str) -> None:
        """Start devices' processes; they are kept alive until the site stops.

        Args:
            task: a name or ``FILE.py:CLASS``.
        """
        make = self._prepared.identity
        self.admit(make("device", spec.name, spec.index, spec.count) for spec in specs)
        for spec in specs:
            folder = self.folder.root / "devices" / spec.name
            path = self.folder.identity_path(spec.name)
            child = device_process(spec, path, folder, task, self._log(spec.name))
            self._add_child(spec.name, child, folder)

    def admit(self, identities: Iterable[Identity]) -> None:
        """Make identities of this machine members of the domain; a revoked one stays revoked."""
        devices = [
            {
                "id": each.id,
                "public_key": each.secret_key.public.text,
                "client_id": each.client_id,
                "password": each.password.get_secret_value(),
                "index": each.index,
                "count": each.count,
            }
            for each in identities
        ]
        with self.connect() as client:
            for start in range(0, len(devices), _ADMITTED_AT_ONCE):
                page = devices[start : start + _ADMITTED_AT_ONCE]
                client.request(DEVICES_ADMIT, {"devices": page})

    def check_processes(self) -> None:
        """Raise where the server or a device keeps ending.

        Raises:
            TransportError: one has ended again and again; names it and its last line.
        """
        for name, restarts in self._supervisor.restarts().items():
            child = self.children.get(name)
            if child is not None and restarts >= _STARTS_TRIED:
                raise TransportError(f"{child.name} does not stay up: {child.explanation()}")

    def stop_device(self, name: str) -> None:
        """Stop a device's process."""
        self._supervisor.remove(name)
        self.children.pop(name, None)

    def run(
        self,
        task: type[Task] | str,
        *,
        rounds: int = 10,
        devices: int = 4,
        data: Path | None = None,
        definition: Mapping[str, Any] | None = None,
        initial: Path | str | None = None,
        output: Path = Path("rengo-output"),
        watch: Callable[[RunProgress], None] | None = None,
    ) -> RunResult:
        """Train a task on devices of this machine and return what came of it.

        Args:
            task: a Task class in a file, the name of an installed one, or ``FILE.py:CLASS``.
            devices: how many device processes to start for it, unless ``data`` says.
            data: a folder with a sub-folder for each device that trains, its ``folder``, and one
                named ``evaluator`` if an evaluator is to measure on data of its own.
            definition: further keys of the run definition, for example ``{"seed": 1}``.
            initial: what version 0 is: a safetensors file, or the name of a version of this site.
            output: the folder that gets ``model.safetensors`` of the run, in one of its own.

        Raises:
            ConfigError: the task or a key is wrong; said before anything is started.
            Mismatch: ``initial`` does not fit the task's model, likewise.
            RunNotCompleted: the run ended without its model.
        """
        output = output.absolute()
        require_writable(output)
        spec = task if isinstance(task, str) else task_spec(task)
        fleet = _fleet(devices, None if data is None else device_folders(data))
        trainers = [each for each in fleet if each.role == "trainer"]
        values: dict[str, Any] = {
            "rounds": rounds,
            "cohort": {"size": len(trainers)},
            "evaluation": {"on": "devices" if fleet == trainers else "evaluators"},
            **(definition or {}),
        }
        loaded = load_task(spec)
        check_definition(loaded, values)
        held = None if initial is None else load(initial, self.operator.believed, self.connect)
        if held is not None:
            version_0(loaded, 0, held)
        self.start_devices(fleet, spec)
        try:
            with self.connect() as client:
                device_table, names = DeviceTable(), [each.name for each in fleet]
                wait_for_devices(
                    client, names, _DEVICES_START_S, lambda _: self.check_processes(), device_table
                )
                run_id = submit(client, spec, values, held)
                result = follow(client, run_id, watch, device_table)
                return fetch_model(client, result, output)
        finally:
            for each in fleet:
                self.stop_device(each.name)

    def stop(self) -> None:
        """Stop every process; a temporary site's folder goes with them."""
        self._supervisor.stop()
        if self._temporary and self._root.exists():
            shutil.rmtree(self._root)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _add_child(self, name: str, child: Child, folder: Path) -> None:
        self.children[name] = child
        self._supervisor.add(name, child, child.start, folder=folder)

    def _log(self, name: str) -> Path:
        return self.folder.root / "logs" / f"{name}.log"


def _fleet(devices: int, folders: DeviceFolders | None) -> list[DeviceSpec]:
    """Return as many devices as there are folders, or ``devices`` where there are none."""
    places: Sequence[Path | None] = [None] * devices if folders is None else folders.trainers
    fleet = [
        DeviceSpec(f"device-{number}", index=number - 1, count=len(places), folder=place)
        for number, place in enumerate(places, 1)
    ]
    if folders is not None and folders.evaluator is not None:
        fleet.append(
            DeviceSpec("evaluator-1", role="evaluator", count=len(places), folder=folders.evaluator)
        )
    return fleet


def task_spec(task: type[Task]) -> str:
    """Return ``FILE.py:CLASS`` of a Task class.

    Raises:
        ConfigError: it has no file of its own (typed into a prompt), or is nested.
    """
    if task.__module__.startswith("fl_client.tasks."):
        return task.name
    try:
        source = inspect.getsourcefile(task)
    except (TypeError, OSError):
        source = None
    if source is None or not Path(source).is_file() or "." in task.__qualname__:
        raise ConfigError(
            f"task {task.__name__} must be a class at the top of a .py file: "
            "devices load it from there"
        )
    return f"{Path(source).resolve()}:{task.__name__}"
