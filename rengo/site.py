"""A whole site on this machine: broker, store and server as supervised processes."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

from broker.embedded import EmbeddedBroker
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from rengo.devices import DeviceSpec, device_process
from rengo.folder import SiteFolder, SiteRecord
from rengo.operator import OperatorClient
from rengo.progress import Crowd, Follower
from rengo.runs import RunResult, check_definition, fetch_model, follow, submit, wait_for_devices
from rengo.supervisor import Supervisor
from runtime.child import Child
from runtime.errors import ConfigError, TransportError
from runtime.files import atomic_write
from storage.embedded import EmbeddedStore

_SERVER_START_S = 30.0
_LOOK_EVERY_S = 2.0
_DEVICES_START_S = 60.0
_STARTS_TRIED = 3


class Site:
    """Broker, store and server on loopback; use as a context manager.

    Args:
        data_dir: what outlives the site; None keeps everything in a temporary folder, removed at
            the end (models go to the output folder of a run).
        devices: how many device identities to prepare for ``rengo client`` (device-1, …).
        broker_port: the MQTT port; kept from start to start, a free one at first.
        store_port: the S3 port, likewise.
        store: which embedded S3 server, at the first start.

    Raises:
        ConfigError: a port is in use, the folder is in use or of another version.
        TransportError: a process did not come up; names it and its last line.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        devices: int = 0,
        domain: str = "main",
        broker_port: int | None = None,
        store_port: int | None = None,
        store: Literal["juicefs", "seaweedfs"] = "juicefs",
    ) -> None:
        self._temporary = data_dir is None
        self._given_dir = data_dir
        self._devices = devices
        self._domain = domain
        self._ports = (broker_port, store_port)
        self._store_kind = store
        self._supervisor = Supervisor()
        self._lock: IO[bytes] | None = None
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        root = self._given_dir or Path(tempfile.mkdtemp(prefix="rengo-"))
        self.folder = SiteFolder(root)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._lock = self.folder.lock()
        self.record: SiteRecord = self.folder.ensure_record(
            self._domain, self._store_kind, *self._ports
        )
        self.folder.ensure_identity("server", "server", self.record)
        self.operator = self.folder.ensure_identity("operator", "operator", self.record)
        for number in range(self._devices):
            self.folder.ensure_identity(
                "device", f"device-{number + 1}", self.record, number, self._devices
            )
        self.broker = EmbeddedBroker(self.folder.root / "broker", self.record.broker_port)
        self.store = EmbeddedStore(
            self.folder.root / "store", self.record.store, self.record.store_port
        )
        self._supervisor.start()
        self._supervisor.add(
            "broker", self.broker, lambda: self.broker.start(self.folder.broker_users())
        )
        self._supervisor.add("store", self.store, self.store.start)
        self._start_server()

    def _start_server(self) -> None:
        config = self.folder.root / "server" / "server.toml"
        settings = self.store.settings
        lines = [
            f"identity = {json.dumps(str(self.folder.identity_path('server')))}",
            f"data_dir = {json.dumps(str(config.parent))}",
            "[store]",
            f"endpoint = {json.dumps(settings.endpoint)}",
            f"bucket = {json.dumps(settings.bucket)}",
            f"access_key = {json.dumps(settings.access_key)}",
            f"secret = {json.dumps(settings.secret.get_secret_value())}",
        ]
        atomic_write(config, ("\n".join(lines) + "\n").encode())
        argv = [sys.executable, "-m", "rengo", "server", "--config", str(config)]
        self._add_child("server", Child("the server", argv, self._log("server")))
        deadline = time.monotonic() + _SERVER_START_S
        with self.connect() as client:
            while True:
                try:
                    client.call("server_info", timeout_s=_LOOK_EVERY_S)
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
        said = self.children["server"].last_line().removeprefix("rengo: ")
        raise ConfigError(f"the server does not start: {said}")

    def connect(self) -> OperatorClient:
        """Return a new operator's connection, to be used as a context manager."""
        return OperatorClient(self.operator)

    def start_devices(self, specs: Sequence[DeviceSpec], task: str) -> None:
        """Start devices' processes; they are kept alive until the site stops.

        Args:
            task: a name or ``FILE.py:CLASS``.
        """
        for spec in specs:
            self.folder.ensure_identity("device", spec.name, self.record, spec.index, spec.count)
        self._supervisor.call(self._admit)
        for spec in specs:
            child = device_process(
                spec,
                self.folder.identity_path(spec.name),
                self.folder.root / "devices" / spec.name,
                task,
                self._log(spec.name),
            )
            self._add_child(spec.name, child)

    def _admit(self) -> None:
        """Let the broker know new identities; one that is down learns them at its restart."""
        if self.broker.running:
            self.broker.reload(self.folder.broker_users())

    def check_processes(self) -> None:
        """Return when the server and every device live, or may still come up.

        Raises:
            TransportError: one has ended again and again; names it and its last line.
        """
        for name, restarts in self._supervisor.restarts().items():
            child = self.children.get(name)
            if child is not None and restarts >= _STARTS_TRIED:
                raise TransportError(f"{child.name} does not stay up: {child.last_line()}")

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
        definition: Mapping[str, Any] | None = None,
        output: Path = Path("rengo-output"),
        watch: Callable[[Follower], None] | None = None,
    ) -> RunResult:
        """Train a task on devices of this machine and return what came of it.

        Args:
            task: a Task class in a file, the name of an installed one, or ``FILE.py:CLASS``.
            devices: how many device processes to start for it.
            definition: further keys of the run definition, for example ``{"seed": 1}``.
            output: the folder that gets ``model.safetensors`` of the run, in one of its own.

        Raises:
            ConfigError: the task or a key is wrong; said before anything is started.
            RunFailed: the run ended without its model.
        """
        spec = task if isinstance(task, str) else task_spec(task)
        values: dict[str, Any] = {
            "rounds": rounds,
            "cohort": {"size": devices},
            "evaluation": {"on": "devices"},
            **(definition or {}),
        }
        check_definition(load_task(spec), values)
        fleet = [
            DeviceSpec(f"device-{number + 1}", index=number, count=devices)
            for number in range(devices)
        ]
        self.start_devices(fleet, spec)
        try:
            with self.connect() as client:
                crowd, names = Crowd(), [each.name for each in fleet]
                wait_for_devices(
                    client, names, _DEVICES_START_S, lambda _: self.check_processes(), crowd
                )
                run_id = submit(client, spec, values)
                result = follow(client, run_id, watch, crowd)
                return fetch_model(client, result, output)
        finally:
            for each in fleet:
                self.stop_device(each.name)

    def stop(self) -> None:
        """Stop every process; a temporary site's folder goes with them."""
        self._supervisor.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._temporary:
            shutil.rmtree(self.folder.root)

    def _add_child(self, name: str, child: Child) -> None:
        self.children[name] = child
        self._supervisor.add(name, child, child.start)

    def _log(self, name: str) -> Path:
        return self.folder.root / "logs" / f"{name}.log"


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
