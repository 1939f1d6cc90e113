"""What happens to a run outside the round machine: events, in the past tense.

What every kind of flow may get stands in ``fl_server.flows.events``. What a job answers carries the
(round, attempt) that it was begun for; an answer that carries another pair has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fl_server.flows.events import (
    DeviceBusy,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    FailureReported,
    OrderRequested,
    PauseRequested,
    ResumeRequested,
    Role,
    StopRequested,
    TimerFired,
)
from fl_server.rounds.model import Model, Update


@dataclass(frozen=True)
class DevicesJoined:
    """Many devices are online at once: the next cohort is drawn from all of them."""

    device_ids: tuple[str, ...]
    role: Role = "trainer"


@dataclass(frozen=True)
class RoundRequested:
    """One round is requested from outside, from ``base``, which is version ``round - 1``.

    Rounds may be left out, but only go on; a request while a round is open ends that round.

    Attributes:
        training: what its orders say of the training, where the run's definition does not.
        deadline_s: how long it collects, 0 for as long as the plan says.
    """

    round: int
    base: Model
    training: dict[str, Any] = field(default_factory=dict)
    deadline_s: float = 0.0

    def __post_init__(self) -> None:
        if self.base.version != self.round - 1:
            raise ValueError(f"round {self.round} cannot begin with version {self.base.version}")


@dataclass(frozen=True)
class CompletionReported:
    """Whoever requests the rounds will request no more."""

    reason: str


@dataclass(frozen=True)
class ResultReceived:
    """A device reported an uploaded update; ``fault`` is why the report itself is not usable.

    The update's key is always the device's own, whatever the report says.
    """

    device_id: str
    round: int
    attempt: int
    update: Update
    fault: str = ""


@dataclass(frozen=True)
class UpdateDelivered:
    """A device's update came with its values, which were checked as they came: nothing is fetched.

    As in a simulation, where client and server share their memory.
    """

    device_id: str
    round: int
    attempt: int
    update: Update


@dataclass(frozen=True)
class UpdatesDelivered:
    """Several devices' updates of one attempt came at once, one after the other."""

    updates: tuple[UpdateDelivered, ...]


@dataclass(frozen=True)
class UpdateVerified:
    """The update's bytes are what its header says, finite and of the right shape."""

    device_id: str
    round: int
    attempt: int
    update: Update


@dataclass(frozen=True)
class UpdateRejected:
    """The update's bytes are not usable; ``reason`` is for the device and the operator."""

    device_id: str
    round: int
    attempt: int
    update: Update
    reason: str


@dataclass(frozen=True)
class UpdateVanished:
    """An accepted update could not be read again when it was to be added."""

    device_id: str
    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class EvaluationReceived:
    """A device reported the metrics of a committed version."""

    device_id: str
    round: int
    attempt: int
    num_examples: int
    metrics: dict[str, float]
    usage: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PartStored:
    """The part of a version that devices of a width train is in the store."""

    base_sha256: str
    width: float
    part: Model


@dataclass(frozen=True)
class AggregationFinished:
    """The next version is in the store."""

    round: int
    attempt: int
    model: Model


@dataclass(frozen=True)
class AggregationFailed:
    """The included updates could not be made into a model."""

    round: int
    attempt: int
    reason: str


Event: TypeAlias = (
    DeviceJoined
    | DevicesJoined
    | DeviceBusy
    | DeviceLeft
    | RoundRequested
    | CompletionReported
    | ResultReceived
    | UpdateDelivered
    | UpdatesDelivered
    | UpdateVerified
    | UpdateRejected
    | UpdateVanished
    | DeviceDeclined
    | OrderRequested
    | EvaluationReceived
    | TimerFired
    | AggregationFinished
    | AggregationFailed
    | PauseRequested
    | ResumeRequested
    | StopRequested
    | FailureReported
)
