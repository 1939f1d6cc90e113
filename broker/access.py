"""Who may publish and subscribe to what: stated once as data, rendered for each kind of broker.

The rules name MQTT topics; :func:`to_nats` turns them into the embedded broker's permissions.
Another broker needs one more renderer and no second statement of the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from broker.topics import Area, Topics, require_level
from runtime.errors import ConfigError

_ME = "me"
_ANY = "+"
_USABLE_PASSWORD = re.compile(r"[A-Za-z0-9_-]{8,256}")
# An empty allow list means "everything" to NATS, so that nothing is spelled as a dead end.
_NOWHERE = "rengo-nowhere"


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
            ("run", _ANY, "state"),
            ("run", _ANY, "events"),
            ("op", _ANY, "reply"),
            ("enroll", _ANY, "result"),
        ),
        subscribe=(
            ("server", "", "state"),
            ("dev", _ANY, "state"),
            ("dev", _ANY, "info"),
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


def to_nats(users: Sequence[BrokerUser]) -> str:
    """Return the ``authorization`` block of a nats-server configuration; it holds the passwords.

    Every user is confined to MQTT, so that the server's own client port admits nobody.

    Raises:
        ConfigError: no users (NATS would admit everybody), or a name twice.
    """
    names = [user.name for user in users]
    if not names:
        raise ConfigError("the broker needs at least one user; without any it admits everybody")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"broker users named twice: {', '.join(twice)}")
    rendered = [
        {
            "user": user.name,
            "password": user.password,
            "allowed_connection_types": ["MQTT"],
            "permissions": {
                "publish": {"allow": _allowed(user.grants.publish)},
                "subscribe": {"allow": _allowed(user.grants.subscribe)},
            },
        }
        for user in users
    ]
    return f"authorization: {json.dumps({'users': rendered}, indent=1)}\n"


def _allowed(filters: Sequence[str]) -> list[str]:
    return [subject for each in filters for subject in nats_subjects(each)] or [_NOWHERE]
