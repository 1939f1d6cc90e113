"""Who may publish and subscribe to what: stated once as data, rendered for each kind of broker.

The rules name MQTT topics; :func:`to_nats` and :func:`to_mosquitto` turn them into permissions.
Another broker needs one more renderer and no second statement of the rules.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from broker.wire.topics import Area, Topics, require_level
from runtime.errors import ConfigError

_ME = "me"
_ANY = "+"
_USABLE_PASSWORD = re.compile(r"[A-Za-z0-9_-]{8,256}")
# An empty allow list means "everything" to NATS, so that nothing is spelled as a dead end.
_NOWHERE = "rengo-nowhere"
_NATS_BLOCK = "authorization: "
_COMMON_NAME = "CN="
_ITERATIONS = 101
_SALT_BYTES = 12


class Role(StrEnum):
    """The kinds of identity that a broker knows."""

    DEVICE = "device"
    SERVER = "server"
    OPERATOR = "operator"
    CLAIMANT = "claimant"


@dataclass(frozen=True)
class Grants:
    """MQTT topic filters that an identity may publish to and subscribe to; all else is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


@dataclass(frozen=True)
class BrokerUser:
    """One user of a broker.

    Raises:
        ConfigError: the name is no topic level, or the password holds anything but 8 to 256
            characters of A-Z, a-z, 0-9, ``_`` and ``-`` (what every broker's file can hold).
    """

    name: str
    password: str = field(repr=False)
    grants: Grants

    def __post_init__(self) -> None:
        require_level(self.name, "broker user")
        if _USABLE_PASSWORD.fullmatch(self.password) is None:
            raise ConfigError(
                f"the password of broker user {self.name!r} is not usable: "
                "use 8 to 256 characters of A-Z, a-z, 0-9, '_' and '-'"
            )


@dataclass(frozen=True)
class _Rule:
    publish: tuple[tuple[Area, str, str], ...]
    subscribe: tuple[tuple[Area, str, str], ...]


RULES: dict[Role, _Rule] = {
    Role.DEVICE: _Rule(
        publish=(
            ("dev", _ME, "state"),
            ("dev", _ME, "info"),
            ("dev", _ME, "health"),
            ("dev", _ME, "data"),
            ("dev", _ME, "ack"),
            ("dev", _ME, "progress"),
            ("dev", _ME, "result"),
            ("dev", _ME, "request"),
        ),
        subscribe=(
            ("dev", _ME, "task"),
            ("dev", _ME, "receipt"),
            ("server", "", "state"),
            ("run", _ANY, "state"),
            ("model", _ANY, "state"),
        ),
    ),
    Role.SERVER: _Rule(
        publish=(
            ("server", "", "state"),
            ("dev", _ANY, "task"),
            ("dev", _ANY, "receipt"),
            # a device that is lost or revoked cannot clear its own retained documents
            ("dev", _ANY, "state"),
            ("dev", _ANY, "info"),
            ("dev", _ANY, "health"),
            ("dev", _ANY, "data"),
            ("run", _ANY, "state"),
            ("run", _ANY, "events"),
            ("model", _ANY, "state"),
            ("op", _ANY, "reply"),
            ("enroll", _ANY, "result"),
        ),
        subscribe=(
            ("server", "", "state"),
            ("dev", _ANY, "state"),
            ("dev", _ANY, "info"),
            ("dev", _ANY, "health"),
            ("dev", _ANY, "data"),
            ("dev", _ANY, "ack"),
            ("dev", _ANY, "progress"),
            ("dev", _ANY, "result"),
            ("dev", _ANY, "request"),
            ("run", _ANY, "state"),
            ("op", _ANY, "request"),
            ("enroll", _ANY, ""),
        ),
    ),
    Role.OPERATOR: _Rule(
        publish=(("op", _ME, "request"),),
        subscribe=(
            ("op", _ME, "reply"),
            ("server", "", "state"),
            ("dev", _ANY, "state"),
            ("dev", _ANY, "info"),
            ("run", _ANY, "state"),
            ("run", _ANY, "events"),
            ("model", _ANY, "state"),
        ),
    ),
    Role.CLAIMANT: _Rule(
        publish=(("enroll", _ME, ""),),
        subscribe=(("enroll", _ME, "result"),),
    ),
}


def grants(role: Role, domain: str, identity: str) -> Grants:
    """Return what ``identity`` may do in ``domain``; a claimant's identity is its nonce.

    Raises:
        ConfigError: the domain or the identity cannot stand in a topic.
    """
    require_level(identity, f"{role} id")
    topics = Topics(domain)
    rule = RULES[role]
    return Grants(
        publish=tuple(_filter(topics, entry, identity) for entry in rule.publish),
        subscribe=tuple(_filter(topics, entry, identity) for entry in rule.subscribe),
    )


def _filter(topics: Topics, entry: tuple[Area, str, str], identity: str) -> str:
    area, whose, leaf = entry
    owner = identity if whose == _ME else whose
    match area:
        case "server":
            return topics.server_state
        case "dev":
            return topics.device(owner, leaf)
        case "run":
            return topics.run(owner, leaf)
        case "model":
            return topics.model(owner)
        case "op":
            return topics.operator(owner, leaf)
        case "enroll":
            return topics.enroll(owner, leaf)


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


def to_nats(users: Sequence[BrokerUser], *, by_certificate: bool = False) -> str:
    """Return the ``authorization`` block of a nats-server configuration; it holds the passwords.

    Every user is confined to MQTT, so that the server's own client port admits nobody.

    Args:
        users: everybody who may connect.
        by_certificate: the listener takes the user from the client's certificate, by the common
            name.

    Raises:
        ConfigError: no users (NATS would admit everybody), or a name twice.
    """
    require_users(users)
    rendered = [
        {
            "user": _subject(user.name) if by_certificate else user.name,
            "password": user.password,
            "allowed_connection_types": ["MQTT"],
            "permissions": {
                "publish": {"allow": _allowed(user.grants.publish)},
                "subscribe": {"allow": _allowed(user.grants.subscribe)},
            },
        }
        for user in users
    ]
    return _NATS_BLOCK + json.dumps({"users": rendered}, indent=1) + "\n"


def nats_users(block: str, *, by_certificate: bool) -> str:
    """Return a block of :func:`to_nats` with the users named as the listener now asks for them."""
    content = json.loads(block.removeprefix(_NATS_BLOCK))
    for user in content["users"]:
        name = user["user"].removeprefix(_COMMON_NAME)
        user["user"] = _subject(name) if by_certificate else name
    return _NATS_BLOCK + json.dumps(content, indent=1) + "\n"


def _subject(name: str) -> str:
    return _COMMON_NAME + name


def _allowed(filters: Sequence[str]) -> list[str]:
    return [subject for each in filters for subject in nats_subjects(each)] or [_NOWHERE]


def to_mosquitto(users: Sequence[BrokerUser]) -> tuple[str, str]:
    """Return the texts of mosquitto's password file and of its ACL file.

    Passwords are hashed as ``mosquitto_passwd`` does, PBKDF2-HMAC-SHA512 with its default of 101
    iterations. So few are enough for the random passwords of 192 bits that Rengo makes, and the
    broker's only thread repeats them for every connected client at each change of users.

    Raises:
        ConfigError: no users, or a name twice.
    """
    require_users(users)
    passwords = "".join(f"{user.name}:{_pbkdf2(user.password)}\n" for user in users)
    return passwords, "\n".join(_acl(user) for user in users)


def _pbkdf2(password: str) -> str:
    salt = secrets.token_bytes(_SALT_BYTES)
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


def require_users(users: Sequence[BrokerUser]) -> None:
    """Return when a broker can be given these users.

    Raises:
        ConfigError: there are none, or a name stands twice.
    """
    names = [user.name for user in users]
    if not names:
        raise ConfigError("the broker needs at least one user; without any it admits everybody")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ConfigError(f"broker users named twice: {', '.join(twice)}")
