"""Who may publish and subscribe to what: stated once, as data over MQTT topics.

The module of each kind of broker under ``broker.brokers`` turns the rules into its permissions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from broker.wire.topics import Area, Topics, require_level
from runtime.errors import ConfigError

_ME = "me"
_ANY = "+"
_USABLE_PASSWORD = re.compile(r"[A-Za-z0-9_-]{8,256}")


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
            # what others have left retained: one that is lost or revoked cannot delete it itself
            ("dev", _ANY, "state"),
            ("dev", _ANY, "info"),
            ("dev", _ANY, "health"),
            ("dev", _ANY, "data"),
            ("dev", _ANY, "ack"),
            ("dev", _ANY, "progress"),
            ("dev", _ANY, "result"),
            ("dev", _ANY, "request"),
            ("op", _ANY, "request"),
            ("enroll", _ANY, ""),
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
        ConfigError: the domain or the identity cannot be a level of a topic.
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


def require_users(users: Sequence[BrokerUser]) -> None:
    """Raise unless a broker can be configured with these users.

    Raises:
        ConfigError: there are none, or two have one name.
    """
    names = [user.name for user in users]
    if not names:
        raise ConfigError("the broker needs at least one user; without any it accepts everybody")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ConfigError(f"broker users named twice: {', '.join(twice)}")
