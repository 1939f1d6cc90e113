"""mosquitto 2.0 or newer as a supervised child, for sites that have it: MQTT 3.1.1 and 5."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.brokers.access_control import RefusedConnection
from broker.brokers.listener import LOOPBACK, ListenerTls
from broker.brokers.managed import ManagedBroker
from broker.brokers.managed_users import ManagedUsers, wait_until
from broker.brokers.mosquitto_sessions import lasting_sessions
from broker.wire.access import BrokerUser, require_users
from broker.wire.limits import MAX_MESSAGE_BYTES
from runtime.errors import ConfigError, TransportError
from runtime.files import atomic_write

# packages install it here, where an ordinary user's PATH does not look
_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_ITERATIONS = 101
_SALT_BYTES = 12
_STATE = "state.db"
_WRITE_TIMEOUT_S = 5.0
# it writes its whole state, which wears a flash card
_WRITE_EVERY_S = 60.0


def mosquitto_binary() -> Path:
    """Return the server's executable.

    Raises:
        ConfigError: it is not installed; says how to.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_FOLDERS))
    if found is None:
        raise ConfigError(
            "mosquitto is not installed; install it with 'apt install mosquitto' or "
            "'brew install mosquitto', or use the embedded broker (nats)"
        )
    return Path(found)


class MosquittoAccess(ManagedUsers):
    """The users of the mosquitto that runs on a folder, in ``passwords`` and ``acl`` (0600)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.passwords = self.folder / "passwords"
        self.acl = self.folder / "acl"
        self.reload_log = self.folder / "echo.log"
        self.more_logs = (self.reload_log.name,)

    @property
    def has_users(self) -> bool:
        """Whether the folder holds users."""
        return self.passwords.exists() and self.acl.exists()

    def admits(self, users: Sequence[BrokerUser]) -> bool:
        """Whether the files let all of these in; see the base."""
        try:
            lines = self.passwords.read_text().splitlines()
            acl = self.acl.read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        known = dict(line.partition(":")[::2] for line in lines)
        return all(
            _is_of(known.get(user.name, ""), user.password) and f"user {user.name}" in acl
            for user in users
        )

    @staticmethod
    def _parse_refusal(line: bytes) -> RefusedConnection | None:
        # it logs neither the name nor the address of a stranger
        refused = line.endswith(b" disconnected, not authorised.")
        return RefusedConnection("", "") if refused else None

    def write(self, users: Sequence[BrokerUser]) -> None:
        """Replace both files; see the base."""
        passwords, acl = to_mosquitto(users)
        # in this order: a crash in between leaves users without rights, never rights without users
        atomic_write(self.passwords, passwords.encode(), mode=0o600)
        atomic_write(self.acl, acl.encode(), mode=0o600)

    def adapt_to_config(self) -> None:
        """Do nothing: the files are the same for every listener."""

    def _reload_watcher(self) -> Callable[[], bool]:
        before = self.log_size()
        # on SIGHUP mosquitto reads the users, disconnects the removed ones, and at the end opens
        # its log file again
        self.reload_log.unlink(missing_ok=True)

        def reloaded() -> bool:
            if not self.reload_log.exists():
                return False
            errors = [line for line in self.log_since(before)[0].splitlines() if b"Error" in line]
            if errors:
                line = errors[0].decode("utf-8", "replace")
                raise TransportError(f"the MQTT broker refused its users: {line}")
            return True

        return reloaded


class MosquittoBroker(ManagedBroker):
    """One mosquitto with its folder: MQTT 3.1.1 and 5.

    It acknowledges a message and then writes its whole state to disk. Measured with 2.0.11: what
    was acknowledged before the last such write survives a kill -9; the messages of the last write
    do not, although they were acknowledged. A write takes under 2 ms with little state and 10 to
    50 ms with 10 MB of it. So what must not be lost is sent until its receiver confirms it. The
    writes also limit a site: 1,000 messages of 1 KB, one by one, took 1.8 s with little state and
    32 s with 10 MB of it (NATS: 0.5 s with either).

    Where the listener asks for certificates, mosquitto accepts any that the CA signed, and then the
    name and the password as without: it does not compare the name with the certificate's.

    Started by root it stays root, as the rest of Rengo then does, since its files are readable for
    their owner alone.

    Args:
        data_dir: state, configuration, users (0600) and log; one broker at a time.
        port: the MQTT port; None chooses a free one, kept over restarts of this object.
        host: the IPv4 address to listen on.
        tls: the listener's certificates; needed where ``host`` is not loopback.

    Raises:
        ConfigError: mosquitto is not installed, or the host is not usable or leaves loopback
            without TLS.
    """

    _store_name = _STATE
    _tells_of_damage = re.compile(r"Couldn't open database")

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        host: str = LOOPBACK,
        tls: ListenerTls | None = None,
    ) -> None:
        access = MosquittoAccess(data_dir)
        argv = [str(mosquitto_binary()), "-c", str(access.config)]
        super().__init__(access, argv, port, host, tls)
        self._files = access
        self._answered_s = -math.inf

    def _accepts(self) -> bool:
        # it listens before it handles signals, which end it until then
        return super()._accepts() and _handles(self.pid, signal.SIGUSR1)

    def _trouble(self) -> str:
        if time.monotonic() - self._answered_s >= _WRITE_EVERY_S:
            # one that may not write, and says so, has all in its memory and writes it when it may
            self._tell_to_write()
            self._answered_s = time.monotonic()
        return ""

    def _sessions(self) -> list[str]:
        if not self._tell_to_write():
            raise TransportError("the MQTT broker could not write its state; its log says why")
        return lasting_sessions(self.data_dir / _STATE)

    def _tell_to_write(self) -> bool:
        """Have it write all of its state, which the end of a session alone does not.

        Returns:
            False where it logged an error instead.

        Raises:
            TransportError: it did neither within some seconds.
        """
        state = self.data_dir / _STATE
        before, log_size = _version_of(state), self.access.log_size()

        def written() -> bool:
            return _version_of(state) != before

        def refused() -> bool:
            return b"Error: " in self.access.log_since(log_size)

        self._child.signal(signal.SIGUSR1)
        if not wait_until(_WRITE_TIMEOUT_S, lambda: written() or refused()):
            raise TransportError(f"the MQTT broker did not write {state} when it was told to")
        return written()

    def _configuration(self, port: int) -> str:
        # two logs: stderr goes on over a reload, the file is opened again by each
        lines = [
            "# written by rengo at every start",
            f"listener {port} {self._host}",
            *self._tls_lines(),
            "allow_anonymous false",
            "allow_zero_length_clientid false",
            f"password_file {self._files.passwords.name}",
            f"acl_file {self._files.acl.name}",
            f"pid_file {self._files.pid_file.name}",
            "persistence true",
            "persistence_location ./",
            f"persistence_file {_STATE}",
            "autosave_on_changes true",
            "autosave_interval 1",
            # no persistent_client_expiration: 2.0.11 then keeps a freed session in its list when a
            # change of users disconnects its client, and crashes later (use after free)
            f"max_packet_size {MAX_MESSAGE_BYTES + 4096}",
            # not 0 for no limit: 2.0.11 then disconnects a client whose publish is not permitted
            "max_queued_messages 1000000",
            "max_inflight_messages 4096",
            "check_retain_source true",
            "set_tcp_nodelay true",
            "sys_interval 0",
            "log_dest stderr",
            f"log_dest file {self._files.reload_log.name}",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        ]
        if os.geteuid() == 0:
            lines.append("user root")
        return "\n".join(lines) + "\n"

    def _tls_lines(self) -> list[str]:
        if self._tls is None:
            return []
        lines = [f"certfile {self._tls.certificate}", f"keyfile {self._tls.key}"]
        if self._tls.client_ca is not None:
            lines += [f"cafile {self._tls.client_ca}", "require_certificate true"]
        return lines


def to_mosquitto(users: Sequence[BrokerUser]) -> tuple[str, str]:
    """Return the texts of mosquitto's password file and of its ACL file.

    Passwords are hashed as ``mosquitto_passwd`` does, PBKDF2-HMAC-SHA512 with its default of 101
    iterations. So few suffice for the random passwords of 192 bits that Rengo makes, and the
    broker's only thread repeats them for every connected client at each change of users.

    Raises:
        ConfigError: no users, or a name twice.
    """
    require_users(users)
    passwords = "".join(f"{user.name}:{_pbkdf2(user.password)}\n" for user in users)
    return passwords, "\n".join(_acl(user) for user in users)


def _is_of(line: str, password: str) -> bool:
    """Whether what stands behind a user's name is of this password."""
    try:
        salt = base64.b64decode(line.split("$")[3], validate=True)
    except (IndexError, ValueError):
        return False
    return _pbkdf2(password, salt) == line


def _pbkdf2(password: str, salt: bytes = b"") -> str:
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    encoded = [base64.b64encode(each).decode() for each in (salt, digest)]
    return f"$7${_ITERATIONS}${encoded[0]}${encoded[1]}"


def _acl(user: BrokerUser) -> str:
    writes, reads = set(user.grants.publish), set(user.grants.subscribe)
    lines = [f"user {user.name}\n"]
    for topic_filter in dict.fromkeys(user.grants.publish + user.grants.subscribe):
        may = "write" if topic_filter in writes else "read"
        both = topic_filter in writes and topic_filter in reads
        lines.append(f"topic {'readwrite' if both else may} {topic_filter}\n")
    return "".join(lines)


def _handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; True where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> (number - 1) & 1)


def _version_of(file: Path) -> tuple[int, int]:
    """Return what differs when a file was replaced by a newer one."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)
