"""The topic grammar: the only place that builds or parses an MQTT topic.

    rengo/v1/{domain}/server/state
    rengo/v1/{domain}/dev/{id}/{state,info,health,data,task,receipt,ack,progress,result,request}
    rengo/v1/{domain}/run/{run}/{state,events}
    rengo/v1/{domain}/model/{task}/state
    rengo/v1/{domain}/op/{id}/{request,reply}
    rengo/v1/{domain}/enroll/{nonce}[/result]

Every level matches ``[a-z0-9_-]{1,64}``: safe on NATS (no dot, no space), and no id can bring a
wildcard or ``$`` into a topic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from runtime.errors import ConfigError, PeerError

PREFIX = "rengo/v1"
MAX_LEVELS = 10
LEVEL = re.compile(r"[a-z0-9_-]{1,64}")

Area = Literal["server", "dev", "run", "model", "op", "enroll"]

LEAVES: dict[Area, frozenset[str]] = {
    "server": frozenset({"state"}),
    "dev": frozenset(
        {
            *("state", "info", "health", "data"),
            *("task", "receipt", "ack", "progress", "result", "request"),
        }
    ),
    "run": frozenset({"state", "events"}),
    "model": frozenset({"state"}),
    "op": frozenset({"request", "reply"}),
    "enroll": frozenset({"", "result"}),
}
RETAINED: frozenset[tuple[Area, str]] = frozenset(
    {
        ("server", "state"),
        ("dev", "state"),
        ("dev", "info"),
        ("dev", "health"),
        ("dev", "data"),
        ("run", "state"),
        ("model", "state"),
    }
)


def require_level(value: str, what: str) -> str:
    """Return ``value`` when it can be one topic level.

    Raises:
        ConfigError: it cannot; the text names ``what`` and the rule.
    """
    if LEVEL.fullmatch(value) is None:
        raise ConfigError(
            f"{what} {value!r} is not usable in a topic: "
            "use 1 to 64 characters of a-z, 0-9, '_' and '-'"
        )
    return value


@dataclass(frozen=True)
class Address:
    """A parsed topic. ``id`` is empty for the server, ``leaf`` for a claim of enrolment."""

    domain: str
    area: Area
    id: str
    leaf: str

    @property
    def topic(self) -> str:
        """The topic as text."""
        levels = (PREFIX, self.domain, self.area, self.id, self.leaf)
        return "/".join(level for level in levels if level)

    def __str__(self) -> str:
        return self.topic

    @property
    def retained(self) -> bool:
        """Whether documents at this address are retained."""
        return (self.area, self.leaf) in RETAINED


class Topics:
    """Builds the topics of one domain; ``"+"`` as an id gives a subscription filter."""

    def __init__(self, domain: str) -> None:
        self.domain = require_level(domain, "domain")
        self._base = f"{PREFIX}/{domain}"

    @property
    def server_state(self) -> str:
        """The retained presence of the domain's server."""
        return f"{self._base}/server/state"

    def device(self, device_id: str, leaf: str) -> str:
        """A topic of one device, or of all with ``device_id="+"``."""
        return self._join("dev", device_id, leaf)

    def run(self, run_id: str, leaf: str) -> str:
        """A topic of one run, or of all with ``run_id="+"``."""
        return self._join("run", run_id, leaf)

    def model(self, task: str) -> str:
        """The retained document of a task's production model, or of all with ``task="+"``."""
        return self._join("model", task, "state")

    def operator(self, operator_id: str, leaf: str) -> str:
        """A topic of one operator, or of all with ``operator_id="+"``."""
        return self._join("op", operator_id, leaf)

    def enroll(self, nonce: str, leaf: str = "") -> str:
        """A claimant's topic: without a leaf for the claim, ``result`` for the answer."""
        topic = self._join("enroll", nonce, leaf)
        return topic.rstrip("/")

    def _join(self, area: Area, identity: str, leaf: str) -> str:
        if leaf not in LEAVES[area]:
            raise ConfigError(f"no topic {area}/{{id}}/{leaf}; there are {sorted(LEAVES[area])}")
        if identity != "+":
            require_level(identity, f"{area} id")
        return f"{self._base}/{area}/{identity}/{leaf}"


def parse(topic: str) -> Address:
    """Return what a received topic addresses.

    Raises:
        PeerError: it is not a topic of this protocol.
    """
    levels = topic.split("/")
    valid = len(levels) <= MAX_LEVELS and all(LEVEL.fullmatch(level) for level in levels)
    if not valid or "/".join(levels[:2]) != PREFIX:
        raise PeerError(f"not a topic of {PREFIX}: {topic[:200]!r}", "topic")
    match levels[2:]:
        case [domain, "server", "state"]:
            return Address(domain, "server", "", "state")
        case [domain, "enroll", nonce]:
            return Address(domain, "enroll", nonce, "")
        case [domain, ("dev" | "run" | "model" | "op" | "enroll") as area, identity, leaf] if (
            leaf in LEAVES[area]
        ):
            return Address(domain, area, identity, leaf)
    raise PeerError(f"not a topic of {PREFIX}: {topic[:200]!r}", "topic")
