"""The users of a broker that runs on a folder of this machine, which it reloads in place."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from broker.brokers.access_control import RefusedConnection
from broker.brokers.control_socket import ask_sessions, ask_supervisor
from broker.wire.access import BrokerUser
from runtime.errors import TransportError
from runtime.files import make_folder

_LOG = logging.getLogger(__name__)
# it checks the password of everybody who is connected again
_RELOAD_TIMEOUT_S = 30.0
_POLL_S = 0.02
_MAX_READ_BYTES = 256 * 1024


class ManagedUsers(ABC):
    """Changes the users of the broker on a folder, whichever process is its parent.

    Any thread of any process may; one changes them at a time, the others wait.

    Args:
        folder: the broker's data folder, on this machine.
    """

    manages_users = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.config = self.folder / "broker.conf"
        self.pid_file = self.folder / "broker.pid"
        self.log = self.folder / "broker.log"
        # what the broker writes beside it
        self.more_logs: tuple[str, ...] = ()
        self._log_offset = self.log_size()

    @staticmethod
    @abstractmethod
    def _parse_refusal(line: bytes) -> RefusedConnection | None:
        """Return the refusal that a line of the log tells of, None for any other line."""

    def refused_connections(self) -> list[RefusedConnection]:
        """Return the connections refused since the last call, as far as the broker's log tells.

        One thread calls it. Of very many it returns the first ones.
        """
        size = self.log_size()
        self._log_offset = self._begin_of(self._log_offset, size)
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(self._log_offset)
            text = log.read(_MAX_READ_BYTES)
            whole = text[: text.rfind(b"\n") + 1]
            self._log_offset = (
                size if len(text) == _MAX_READ_BYTES else self._log_offset + len(whole)
            )
            found = (self._parse_refusal(line) for line in whole.splitlines())
            return [each for each in found if each is not None]
        return []

    def lasting_sessions(self) -> list[str]:
        """Return the client ids of the sessions that the broker keeps; none when it does not run.

        Raises:
            TransportError: it did not answer: try again later.
        """
        return ask_sessions(self.folder)

    @property
    @abstractmethod
    def has_users(self) -> bool:
        """Whether the folder holds users."""

    @abstractmethod
    def admits(self, users: Sequence[BrokerUser]) -> bool:
        """Whether the files let all of these in, by their passwords; False of damaged files."""

    @abstractmethod
    def write(self, users: Sequence[BrokerUser]) -> None:
        """Replace the files of users, which a running broker reads only when it is told to.

        Raises:
            ConfigError: bad users; nothing changed.
        """

    @abstractmethod
    def adapt_to_config(self) -> None:
        """Rewrite the existing files of users for the broker's present configuration."""

    @abstractmethod
    def _reload_watcher(self) -> Callable[[], bool]:
        """Return a function that says whether the broker has reloaded its users since now.

        It raises TransportError when the broker refused them.
        """

    def apply(self, users: Sequence[BrokerUser]) -> None:
        """Replace all users; returns when the broker has applied them.

        New ones may connect, removed ones and those with another password are disconnected, the
        others stay connected. When no broker runs, it reads them at its start.

        Raises:
            ConfigError: bad users; nothing changed.
            TransportError: the running broker refused them, or did not answer.
        """
        with self.exclusive():
            self.write(users)
            self._reload()

    def _reload(self) -> None:
        reloaded = self._reload_watcher()
        pid = ask_supervisor(self.folder, "reload")
        if pid is None:
            return
        if not wait_until(
            _RELOAD_TIMEOUT_S, lambda: reloaded() or ask_supervisor(self.folder, "pid") != pid
        ):
            raise TransportError(
                f"the MQTT broker, pid {pid}, did not take its users "
                f"within {_RELOAD_TIMEOUT_S:.0f} s; see {self.log}"
            )

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the block nobody else changes the users, or starts the broker with them."""
        make_folder(self.folder)
        with (self.folder / "users.lock").open("wb") as lock:
            os.fchmod(lock.fileno(), 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def log_since(self, offset: int) -> tuple[bytes, int]:
        """Return what the broker has logged behind an offset, and how far that goes."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            begin = log.seek(self._begin_of(offset, self.log_size()))
            text = log.read()
            return text, begin + len(text)
        return b"", 0

    @staticmethod
    def _begin_of(offset: int, size: int) -> int:
        """Return where to read from: a log that is shorter than it was has begun anew."""
        return offset if offset <= size else 0

    def log_size(self) -> int:
        """Return how long the broker's log is."""
        return self.log.stat().st_size if self.log.exists() else 0


def wait_until(timeout_s: float, done: Callable[[], bool]) -> bool:
    """Return whether ``done()`` became true within the time."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
