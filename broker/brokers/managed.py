"""What the brokers that Rengo runs have in common: a child process with its state in one folder.

:class:`ManagedBroker` is for the broker's supervisor, its parent process. :class:`ManagedUsers` is
for any process that changes the users, in the same container or in another one with the same
folder. Both work on these files, under the same names for every kind of broker:

    broker.conf  broker.pid  broker.log  broker.lock and broker.sock (the supervisor's)
    users.lock (held while users are changed)
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, ClassVar

from broker.brokers.control_socket import ControlSocket
from broker.brokers.listener import ListenAddress, ListenerTls, local_address, require_private
from broker.brokers.managed_users import ManagedUsers, wait_until
from broker.wire.access import BrokerUser
from runtime.errors import ConfigError, TransportError
from runtime.files import atomic_write, make_folder
from runtime.processes.child import Child, foreign_environment
from runtime.processes.locks import take_lock
from runtime.processes.logs import LogBound
from runtime.processes.ports import free_port, require_free

_LOG = logging.getLogger(__name__)
_START_TIMEOUT_S = 20.0
_ORPHAN_GRACE_S = 10.0
_LOG_LIMIT_BYTES = 5 * 1024 * 1024
_ASKED_IN_VAIN = 6
_MENDS = 3
_NAMED = 5


class ManagedBroker(ABC):
    """One broker with its folder, as a child of this process.

    Args:
        access: writes the files of users.
        argv: the command; it names ``access.config``.
        port: the MQTT port; None chooses a free one, kept over restarts of this object.
        host: the IPv4 address to listen on; ``0.0.0.0`` for all, which needs TLS.
        tls: the listener's certificates.

    Raises:
        ConfigError: the host is not usable, or leaves loopback without TLS.
    """

    _store_name: ClassVar[str]
    """Where in its folder it keeps its state."""
    _tells_of_damage: ClassVar[re.Pattern[str]]
    """What it says of a damaged store, which no new start mends."""

    def __init__(
        self,
        access: ManagedUsers,
        argv: Sequence[str],
        port: int | None,
        host: str,
        tls: ListenerTls | None,
    ) -> None:
        self.access = access
        self.data_dir = access.folder
        self._host = require_private(host, tls)
        self._tls = tls
        self._port = port
        self._lock: IO[bytes] | None = None
        # it runs in its folder and names its files from there, so that the folder's own name
        # stands in no configuration
        self._child = Child(
            "the MQTT broker",
            argv,
            access.log,
            environment=foreign_environment(),
            cwd=access.folder,
            log_bound=LogBound(_LOG_LIMIT_BYTES, others=access.more_logs),
        )
        self._control: ControlSocket | None = None
        self._unanswered = 0
        self._damage = ""  # of its store, found while it ran

    @property
    def endpoint(self) -> ListenAddress:
        """The address from this machine; known after the first :meth:`start`."""
        if self._port is None:
            raise ConfigError("the embedded broker has no port before it was started")
        return local_address(self._host, self._port)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is alive now."""
        return self._child.running

    def start(self, users: Sequence[BrokerUser] | None) -> None:
        """Start the server and return when it accepts connections.

        An orphan of a killed parent on the same folder is ended first.

        Args:
            users: who may connect; None for those in the folder already, from an earlier start
                or from ``access.apply`` of another process.

        Raises:
            ConfigError: the port is in use, another broker uses the folder, bad users, or none.
            TransportError: the server did not start; names its last line.
        """
        make_folder(self.data_dir)
        self._lock_folder()
        try:
            with self.access.exclusive():
                self._start(users)
        except BaseException:
            self._child.kill()
            self._release_folder()
            raise

    def _start(self, users: Sequence[BrokerUser] | None) -> None:
        self._end_orphan()
        if self._port is None:
            self._port = free_port(self._host)
        require_free(self._port, "MQTT broker", self._host)
        atomic_write(self.access.config, self._configuration(self._port).encode(), mode=0o600)
        if users is not None:
            self.access.write(users)
        elif self.access.has_users:
            self.access.adapt_to_config()
        else:
            raise ConfigError(f"the MQTT broker in {self.data_dir} knows no users yet; name some")
        self._control = ControlSocket(self.data_dir, self._child, self._sessions)
        self._unanswered = 0
        damage = self._damage or self._run()
        if damage:
            self._child.stop()
            self._set_store_aside(damage)
            self._damage = self._run()

    def _run(self) -> str:
        """Start the child; return how its store is damaged, "" where it is not.

        Raises:
            TransportError: it did not start, and its store is not why.
        """
        for _ in range(_MENDS):
            self._child.start()
            try:
                self._child.wait_ready(self._accepts, _START_TIMEOUT_S)
            except TransportError as error:
                if self._tells_of_damage.search(str(error)) is None:
                    raise
                return str(error)
            try:
                damage, ended = self._damage_in(self._trouble()), self._end_deaf_sessions()
            except TransportError:
                return ""  # it is asked again by and by
            if damage or not ended:
                return damage
            more = f" and {len(ended) - _NAMED} more" if len(ended) > _NAMED else ""
            _LOG.warning(
                "the MQTT broker had lost queues: %d sessions begin anew (%s%s)",
                *(len(ended), ", ".join(ended[:_NAMED]), more),
            )
            self._child.stop()  # those that are connected already come again
        return "sessions lose their queues at every start"

    def _damage_in(self, trouble: str) -> str:
        return trouble if self._tells_of_damage.search(trouble) else ""

    def _set_store_aside(self, damage: str) -> None:
        """Have the next start begin a new store; the latest damaged one stays beside it.

        Raises:
            TransportError: this user cannot read the store, which may be sound.
        """
        store = self.data_dir / self._store_name
        if not os.access(store, os.R_OK | os.W_OK):
            raise TransportError(f"{damage}; can this user read {store}?")
        kept = self.data_dir / f"{self._store_name}.damaged"
        if kept.is_dir():
            shutil.rmtree(kept)
        store.replace(kept)
        _LOG.error(
            "the MQTT broker's store was damaged (%s); it lies at %s now and a new one is begun: "
            "sessions and retained documents are made again as everybody connects",
            *(damage, kept),
        )

    def reload(self, users: Sequence[BrokerUser]) -> None:
        """Replace the users in place, as ``access.apply``.

        Raises:
            ConfigError: bad users; nothing changed.
            TransportError: the server is not running or did not apply them.
        """
        if not self.running:
            raise TransportError("the MQTT broker is not running")
        self.access.apply(users)

    def fault(self) -> str:
        """Return why the running server is of no use, "" where it serves.

        One that met a full disk may refuse what it is to store until it is started again; a
        damaged store the next start sets aside. One thread calls it.
        """
        try:
            found = self._trouble()
        except TransportError as error:
            # a busy server may be late
            self._unanswered += 1
            return str(error) if self._unanswered >= _ASKED_IN_VAIN else ""
        self._unanswered = 0
        self._damage = self._damage_in(found)
        return found

    def stop(self) -> None:
        """End the server in order; its state stays in the folder."""
        self._child.stop()
        self.access.pid_file.unlink(missing_ok=True)
        self._release_folder()

    def kill(self) -> None:
        """End the server at once, as a power cut of the process would (tests)."""
        self._child.kill()
        self._release_folder()

    @abstractmethod
    def _trouble(self) -> str:
        """Ask the server whether it stores; return why not, "" where it does. On one thread.

        Raises:
            TransportError: it does not answer.
        """

    def _end_deaf_sessions(self) -> list[str]:
        """End the sessions of which the server, just started, has lost a queue; return their ids.

        Raises:
            TransportError: it does not answer.
        """
        return []

    @abstractmethod
    def _sessions(self) -> list[str]:
        """Return the client ids of the sessions that the running broker keeps, on any thread.

        Raises:
            TransportError: it does not tell.
        """

    @abstractmethod
    def _configuration(self, port: int) -> str:
        """Return the text of the server's configuration, without its users."""

    def _accepts(self) -> bool:
        """Whether it listens and its pid file names it; without TLS, whose failure it would log."""
        with contextlib.suppress(OSError):
            socket.create_connection(self.endpoint, timeout=1.0).close()
            return self._serving_pid() == self.pid
        return False

    def _lock_folder(self) -> None:
        self._lock = take_lock(
            self.data_dir / "broker.lock",
            f"another MQTT broker uses {self.data_dir}; stop it or choose another data folder",
        )

    def _release_folder(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_orphan(self) -> None:
        """End the process that still serves this folder: its parent no longer holds the lock."""
        pid = self._serving_pid()
        if pid is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if wait_until(_ORPHAN_GRACE_S, lambda: self._serving_pid() is None):
                return
        raise TransportError(f"an earlier MQTT broker, pid {pid}, does not end")

    def _serving_pid(self) -> int | None:
        """Return the process that serves this folder, if it is visible from here."""
        try:
            pid = int(self.access.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self.access.config) in _arguments_of(pid) else None


def _arguments_of(pid: int) -> list[str]:
    """Return a process's arguments, none when there is no such process.

    Where the system shows a line alone, that and each ending of it which may be the last argument.
    """
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        except OSError:
            return []
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    words = shown.stdout.strip().split(" ")
    return [" ".join(words[start:]) for start in range(len(words))]
