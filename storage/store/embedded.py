"""An S3 server as a child process with generated keys; beyond loopback only with TLS.

Each kind of server comes as a wheel.
"""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import Literal

import urllib3
from pydantic import ValidationError

from runtime.errors import ConfigError, TransportError, Unavailable
from runtime.files import atomic_write
from runtime.processes.child import Child, foreign_environment
from runtime.processes.ports import free_port, require_free
from runtime.security.tls import Tls
from storage.store.servers.base import LOOPBACK, Keys, Listener, StoreServer, StoreTls
from storage.store.servers.juicefs import Juicefs
from storage.store.servers.seaweedfs import Seaweedfs
from storage.store.settings import StoreSettings
from storage.transfer import http

Kind = Literal["juicefs", "seaweedfs"]
_SERVERS: dict[str, type[StoreServer]] = {"juicefs": Juicefs, "seaweedfs": Seaweedfs}
_START_S = 30.0
_ANSWER_S = 2.0
_ASKED_IN_VAIN = 6


class EmbeddedStore:
    """An S3 server with its objects, keys and log in one folder (mode 0700).

    After a stop, a kill or a crash, a start on the same folder serves every object again. Start it
    from a thread that lives on: on Linux the server ends with the thread that started it.

    Args:
        data_dir: all files of the server; once it has stopped, it leaves none elsewhere.
        kind: which server.
        port: of the S3 endpoint; a free one when None.
        bucket: made at the first start by ``S3Store.ensure_bucket``.
        host: the IPv4 address to listen on; beyond loopback ``tls`` must be given.
        tls: the server speaks https alone; None for http.

    Raises:
        ConfigError: this kind cannot listen on that host.
    """

    def __init__(
        self,
        data_dir: Path,
        kind: Kind = "juicefs",
        port: int | None = None,
        *,
        bucket: str = "rengo",
        host: str = LOOPBACK,
        tls: StoreTls | None = None,
    ) -> None:
        if kind not in _SERVERS:
            raise ConfigError(f"store kind {kind!r} is not one of {', '.join(_SERVERS)}")
        _check_host(kind, host, tls)
        self._folder = data_dir.absolute()
        self._listener = Listener(host, port or free_port(), tls)
        self._bucket = bucket
        self._server = _SERVERS[kind](self._folder, self._listener)
        self._child: Child | None = None
        self._unanswered = 0

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
            ConfigError: the port is in use, or a file of keys or certificates is damaged.
            MissingExtra: the server's wheel is not installed.
            TransportError: it did not start; the text has its last line.
            StorageError: its certificate is not trusted here; says why.
        """
        require_free(self._listener.port, "object store", self._listener.host)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        keys = _keys(self._folder)
        environment = {**foreign_environment(), "HOME": str(self._folder)}
        argv = self._server.prepare(keys, environment)
        child = Child(
            f"object store ({self._server.binary})",
            argv,
            self._folder / "server.log",
            environment=environment,
            cwd=self._folder,
        )
        pool = _health_pool(self._listener)
        child.start()
        self._child = child
        self._unanswered = 0
        try:
            with pool:
                child.wait_ready(lambda: self._answers(pool), _START_S)
        except BaseException:
            self.kill()
            raise

    def fault(self) -> str:
        """Return why the running server is of no use, "" where it answers. One thread calls it."""
        with _health_pool(self._listener) as pool:
            answers = self._answers(pool)
        # a busy server may be late
        self._unanswered = 0 if answers else self._unanswered + 1
        if self._unanswered < _ASKED_IN_VAIN:
            return ""
        return f"it does not answer at {self._listener.endpoint}"

    def stop(self) -> None:
        """Ask the server to end, and wait for it."""
        if self._child is not None:
            self._child.stop(self._server.grace_s)
            self._server.clean_up()

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._child is not None:
            self._child.kill()
            self._server.clean_up()

    def _answers(self, pool: urllib3.HTTPConnectionPool) -> bool:
        try:
            with http.named_errors(f"start at {self._listener.endpoint}"):
                return pool.request("GET", self._server.health).status == 200
        except Unavailable:
            return False


def _check_host(kind: Kind, host: str, tls: StoreTls | None) -> None:
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError as error:
        raise ConfigError(f"the store's host {host!r} is not an IPv4 address") from error
    if is_loopback:
        return
    if tls is None:
        raise ConfigError(
            f"the store would listen on {host} without TLS: give it a certificate, "
            "or let it listen on 127.0.0.1"
        )
    if not _SERVERS[kind].may_leave_loopback:
        raise ConfigError(
            f"a store of kind {kind} listens on 127.0.0.1 alone, since its inner parts would leave "
            "loopback with it: choose juicefs"
        )


def _health_pool(listener: Listener) -> urllib3.HTTPConnectionPool:
    """Return a connection to the server on this machine, its certificate verified for its name."""
    timeout = urllib3.Timeout(_ANSWER_S)
    if listener.tls is None:
        return urllib3.HTTPConnectionPool(
            listener.local_host, listener.port, timeout=timeout, retries=False
        )
    Tls(None, listener.tls.certificate, listener.tls.key).context()  # raises unless they are a pair
    return urllib3.HTTPSConnectionPool(
        listener.local_host,
        listener.port,
        timeout=timeout,
        retries=False,
        ssl_context=Tls.trusting(listener.tls.ca).context(),
        cert_reqs="CERT_REQUIRED",
        server_hostname=listener.name,
    )


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
