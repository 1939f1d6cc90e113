"""What the server's shell tells a flow: events that any kind of flow may get. Past tense.

An order is named by (action, round, attempt, phase, seq). ``phase`` and ``seq`` tell apart the
orders of a round with several messages; they keep their defaults where a round has one order.

A flow's own background tasks bring further events, which only that kind knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["trainer", "evaluator"]
Action: TypeAlias = Literal["train", "evaluate", "exchange"]


@dataclass(frozen=True)
class DeviceJoined:
    """A device published that it is online; ``accepting`` is False while it drains.

    ``domain``: there are devices below it, whose updates it sums.
    """

    device_id: str
    role: Role = "trainer"
    accepting: bool = True
    domain: bool = False


@dataclass(frozen=True)
class DeviceBusy:
    """An online device began to carry out an order, of whatever run."""

    device_id: str


@dataclass(frozen=True)
class DeviceLeft:
    """A device went offline, by its own message or by its will; ``for_good``: it was revoked."""

    device_id: str
    for_good: bool = False


@dataclass(frozen=True)
class DeviceDeclined:
    """A device answered an order with a reason instead of a result.

    ``unusable``: it carried the order out, and what came of it could never count. ``permanent``:
    it cannot carry it out, and waiting will not change that.
    """

    device_id: str
    action: Action
    round: int
    attempt: int
    reason: str
    phase: str = ""
    seq: int = 0
    unusable: bool = False
    permanent: bool = False


@dataclass(frozen=True)
class OrderRequested:
    """A device asks for its order again, with fresh URLs."""

    device_id: str
    action: Action
    round: int
    attempt: int
    phase: str = ""
    seq: int = 0


@dataclass(frozen=True)
class ReportedUpdate:
    """The uploaded object that a result names."""

    key: str
    size_bytes: int
    header_sha256: str


@dataclass(frozen=True)
class DeviceAnswered:
    """A device sent the result of an order; it is sent again until a receipt follows.

    Attributes:
        usage: what the order cost the device (see ``broker.wire.messages.Usage``).
        update: None where the result names no uploaded object.
        payload: what an exchange answers.
        population: how many devices the run knows below a domain, 1 for a device.
    """

    device_id: str
    action: Action
    round: int
    attempt: int
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    usage: Mapping[str, float] = field(default_factory=dict)
    update: ReportedUpdate | None = None
    payload: bytes = b""
    phase: str = ""
    seq: int = 0
    population: int = 1


@dataclass(frozen=True)
class TimerFired:
    """The time of an ``ArmTimer`` with the same fields is over."""

    timer: str
    round: int
    attempt: int


@dataclass(frozen=True)
class ProductionMoved:
    """The production version of the flow's task may be another one now; "" where none is."""

    name: str


@dataclass(frozen=True)
class PauseRequested:
    """The operator lets the open round finish and wants no new one."""


@dataclass(frozen=True)
class ResumeRequested:
    """The operator lets a paused run go on."""


@dataclass(frozen=True)
class StopRequested:
    """The operator ends the run with the versions committed so far."""

    reason: str = "stopped by the operator"


@dataclass(frozen=True)
class FailureReported:
    """One of the flow's background tasks ended with an error that no retry mends."""

    reason: str
