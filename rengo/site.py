"""A whole site on this machine: broker, store and server as supervised processes."""

from __future__ import annotations

import inspect
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.parse import urlsplit

import tomli_w

from broker.access import BrokerUser, Role, grants
from broker.listener import ListenerTls
from broker.mosquitto import MosquittoBroker
from broker.nats import EmbeddedBroker
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from rengo.devices import DeviceSpec, device_process
from rengo.external import BrokerUserFile, Credentials, read_credentials
from rengo.folder import BrokerAt, SiteFolder, SiteRecord
from rengo.listening import OwnCertificate, listening
from rengo.models import load
from rengo.operator import OperatorClient
from rengo.progress import Crowd, Follower
from rengo.runs import (
    RunResult,
    check_definition,
    fetch_model,
    follow,
    submit,
    version_0,
    wait_for_devices,
)
from rengo.supervisor import Supervisor
from runtime.brokerurl import BrokerPlace, parse_url
from runtime.child import Child
from runtime.errors import ConfigError, TransportError
from runtime.files import atomic_write
from runtime.identity import Identity, TlsTrust
from storage.embedded import EmbeddedStore, StoreTls

_SERVER_START_S = 30.0
_LOOK_EVERY_S = 2.0
_DEVICES_START_S = 60.0
_STARTS_TRIED = 3
_ADMITTED_AT_ONCE = 400


@dataclass(frozen=True)
class SiteOptions:
    """How a site listens and what it is made of; what is None stays as it was at the last start.

    Attributes:
        domain: named at the first start.
        broker: "nats", "mosquitto", or the address of a broker of somebody else's.
        broker_port: the MQTT port; a free one at first.
        store: which embedded S3 server, at the first start.
        store_port: the S3 port, likewise.
        host: the address to listen on; anything but loopback is TLS.
        advertise: the name or address by which devices reach this machine.
        certificate: the operator's own, instead of one by the site's authority.
        credentials: the users of an external broker.
        client_certificates: a folder for mutual TLS: ``ca.pem``, which signs the clients'
            certificates, and ``NAME.pem`` with ``NAME.key`` for each identity of the site.
    """

    domain: str = "main"
    broker: str | None = None
    broker_port: int | None = None
    store: Literal["juicefs", "seaweedfs"] = "juicefs"
    store_port: int | None = None
    host: str | None = None
    advertise: str | None = None
    certificate: OwnCertificate | None = None
    credentials: Path | None = None
    client_certificates: Path | None = None


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
        options: SiteOptions = SiteOptions(),
    ) -> None:
        self._temporary = data_dir is None
        # named before it is made, so that an interrupt in between leaves nothing behind
        self._root = data_dir or Path(tempfile.gettempdir()) / f"rengo-{secrets.token_hex(8)}"
        self._devices = devices
        self._options = options
        self._supervisor = Supervisor()
        self._lock: IO[bytes] | None = None
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        try:
            if self._temporary:
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
        options = self._options
        self._lock = self.folder.lock()
        external = options.broker is not None and "://" in options.broker
        self.record: SiteRecord = self.folder.ensure_record(
            domain=options.domain,
            store=options.store,
            broker="external" if external else options.broker,
            broker_port=options.broker_port,
            store_port=options.store_port,
            host=options.host,
            advertise=options.advertise,
        )
        record = self.record
        self.listening = listening(
            self.folder.root / "authority", record.host, record.advertise, options.certificate
        )
        reach = self.listening
        self._credentials: Credentials | None = None
        self.at = BrokerAt(record.domain, reach.reach, record.broker_port, reach.trust)
        self.public_url = BrokerPlace(
            reach.advertised, record.broker_port, tls=reach.trust is not None
        ).url
        if record.broker == "external":
            self._take_external()
        self._make_identities()
        self.store = EmbeddedStore(
            self.folder.root / "store",
            record.store,
            record.store_port,
            host=reach.host,
            tls=reach.files and StoreTls(*reach.files, ca=reach.ca, name=reach.reach),
        )
        self._supervisor.start()
        if record.broker != "external":
            self._start_broker()
        self._supervisor.add("store", self.store, self.store.start)
        self._start_server()
        self.admit(each for each in self.folder.all_identities() if each.role == "device")

    def _take_external(self) -> None:
        """Read who may connect to the broker of somebody else's, and where it is."""
        options = self._options
        if options.broker is None or options.credentials is None:
            raise ConfigError(
                "a site on another broker needs --broker URL and --credentials FILE at every start"
            )
        self._credentials = read_credentials(options.credentials)
        place = parse_url(options.broker)
        trust: TlsTrust | None = self._credentials.tls.trust() if place.tls else None
        store = self.listening.trust
        store_ca = None if store is None else store.ca
        self.at = BrokerAt(self.record.domain, place.host, place.port, trust, store_ca)
        self.public_url = place.url

    def _make_identities(self) -> None:
        known = self._credentials
        if known is None:
            self._server = self._identity("server", "server")
            self.operator = self._identity("operator", "operator")
            for number in range(self._devices):
                self._identity("device", f"device-{number + 1}", number, self._devices)
            return
        self._server = self._identity("server", known.server.username, user=known.server)
        self.operator = self._identity("operator", known.operator.username, user=known.operator)
        for number, user in enumerate(known.devices):
            self._identity("device", user.username, number, len(known.devices), user)

    def _identity(
        self,
        role: Literal["device", "operator", "server"],
        name: str,
        index: int = 0,
        count: int = 1,
        user: BrokerUserFile | None = None,
    ) -> Identity:
        """Return an identity of this site, with its certificate where there is one."""
        at, folder = self.at, self._options.client_certificates
        if folder is not None and at.tls is not None and (folder / f"{name}.pem").exists():
            files = {
                "certificate": folder / f"{name}.pem",
                "certificate_key": folder / f"{name}.key",
            }
            at = replace(at, tls=at.tls.model_copy(update=files))
        password = None if user is None else user.password
        return self.folder.ensure_identity(
            role, name, at, index=index, count=count, password=password
        )

    def _start_broker(self) -> None:
        kind = MosquittoBroker if self.record.broker == "mosquitto" else EmbeddedBroker
        files, folder = self.listening.files, self._options.client_certificates
        if folder is not None and files is None:
            raise ConfigError("client certificates need TLS: let the site listen by --host")
        client_ca = None if folder is None else folder / "ca.pem"
        self.broker = kind(
            self.folder.root / "broker",
            self.record.broker_port,
            host=self.listening.host,
            tls=None if files is None else ListenerTls(*files, client_ca),
        )
        # the server adds everybody else; a restart keeps whom it added
        staff = [_user(self._server, Role.SERVER), _user(self.operator, Role.OPERATOR)]
        broker = self.broker
        self._supervisor.add(
            "broker", broker, lambda: broker.start(None if broker.access.known else staff)
        )

    def _start_server(self) -> None:
        config = self.folder.root / "server" / "server.toml"
        atomic_write(config, tomli_w.dumps(self._server_config(config.parent)).encode())
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

    def _server_config(self, data_dir: Path) -> dict[str, Any]:
        record, reach, store = self.record, self.listening, self.store.settings
        broker: dict[str, Any] = {
            "kind": record.broker,
            "folder": str(self.folder.root / "broker"),
            "public_url": self.public_url,
            "ca_fingerprint": reach.fingerprint,
        }
        if self._credentials is not None:
            emqx = self._credentials.emqx
            broker = {"kind": "manual", "public_url": self.public_url}
            if emqx is not None:
                secret = emqx.secret.get_secret_value()
                broker |= {"kind": "emqx", "url": emqx.url, "api_key": emqx.api_key}
                broker |= {"secret": secret}
        public = f"{urlsplit(store.endpoint).scheme}://{reach.advertised}:{record.store_port}"
        return {
            "identity": str(self.folder.identity_path(self._server.id)),
            "operators": [str(self.folder.identity_path(self.operator.id))],
            "data_dir": str(data_dir),
            "broker": broker,
            "store": {
                "endpoint": store.endpoint,
                "public_endpoint": public,
                "bucket": store.bucket,
                "access_key": store.access_key,
                "secret": store.secret.get_secret_value(),
                **({} if store.ca is None else {"ca": str(store.ca)}),
            },
        }

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
        self.admit(self._identity("device", spec.name, spec.index, spec.count) for spec in specs)
        for spec in specs:
            child = device_process(
                spec,
                self.folder.identity_path(spec.name),
                self.folder.root / "devices" / spec.name,
                task,
                self._log(spec.name),
            )
            self._add_child(spec.name, child)

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
                client.call("devices_admit", {"devices": page})

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
        initial: Path | str | None = None,
        output: Path = Path("rengo-output"),
        watch: Callable[[Follower], None] | None = None,
    ) -> RunResult:
        """Train a task on devices of this machine and return what came of it.

        Args:
            task: a Task class in a file, the name of an installed one, or ``FILE.py:CLASS``.
            devices: how many device processes to start for it.
            definition: further keys of the run definition, for example ``{"seed": 1}``.
            initial: what version 0 is: a safetensors file, or the name of a version of this site.
            output: the folder that gets ``model.safetensors`` of the run, in one of its own.

        Raises:
            ConfigError: the task or a key is wrong; said before anything is started.
            Mismatch: ``initial`` does not fit the task's model, likewise.
            RunFailed: the run ended without its model.
        """
        spec = task if isinstance(task, str) else task_spec(task)
        values: dict[str, Any] = {
            "rounds": rounds,
            "cohort": {"size": devices},
            "evaluation": {"on": "devices"},
            **(definition or {}),
        }
        loaded = load_task(spec)
        check_definition(loaded, values)
        held = None if initial is None else load(initial, self.operator.believed, self.connect)
        if held is not None:
            version_0(loaded, 0, held)
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
                run_id = submit(client, spec, values, held)
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
        if self._temporary and self._root.exists():
            shutil.rmtree(self._root)

    def _add_child(self, name: str, child: Child) -> None:
        self.children[name] = child
        self._supervisor.add(name, child, child.start)

    def _log(self, name: str) -> Path:
        return self.folder.root / "logs" / f"{name}.log"


def _user(identity: Identity, role: Role) -> BrokerUser:
    password = identity.password.get_secret_value()
    return BrokerUser(identity.id, password, grants(role, identity.domain, identity.id))


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
