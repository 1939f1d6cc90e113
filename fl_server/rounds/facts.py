"""What the round machine decided: facts, which are journalled.

A run's state is the fold of its facts, so a journal of them is the whole of its memory. The names
of the classes and of their fields are data on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fl_server.rounds.model import Model, Update
from fl_server.rounds.workload import OrderWork


@dataclass(frozen=True)
class RoundStarted:
    """Orders go to ``cohort``; the round closes at ``target`` updates.

    ``work`` is what each device is asked for where orders are fitted or of parts of the model. It
    comes from measured speeds and from what devices say of themselves, so it is journalled, and an
    order that is sent again is the same one. ``population`` is
    how many devices the run knows then: those online, and those that ever were in a cohort.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]
    target: int
    work: dict[str, OrderWork] = field(default_factory=dict)
    population: int = 0


@dataclass(frozen=True)
class RoundOpened:
    """A requested round begins with ``base``: devices are gathered for it from here on.

    ``training`` and ``deadline_s`` are the request's.
    """

    round: int
    attempt: int
    base: Model
    training: dict[str, Any] = field(default_factory=dict)
    deadline_s: float = 0.0


@dataclass(frozen=True)
class UpdateAccepted:
    """The update counts; its receipt follows."""

    round: int
    attempt: int
    device_id: str
    update: Update


@dataclass(frozen=True)
class UpdateRefused:
    """The update does not count, and why."""

    round: int
    attempt: int
    device_id: str
    reason: str


@dataclass(frozen=True)
class UpdateWithdrawn:
    """An accepted update is gone from the store and no longer counts."""

    round: int
    attempt: int
    device_id: str
    reason: str


@dataclass(frozen=True)
class OrderDeclined:
    """The device will not do this round's order; ``unusable``: it did, and to no use.

    ``permanent``: it cannot, and waiting will not change that.
    """

    round: int
    attempt: int
    device_id: str
    reason: str
    unusable: bool = False
    permanent: bool = False


@dataclass(frozen=True)
class RoundClosed:
    """No further update counts; the model is made of exactly ``included``."""

    round: int
    attempt: int
    included: tuple[str, ...]


@dataclass(frozen=True)
class RoundAbandoned:
    """The attempt ended without a model; the next attempt gathers anew.

    ``excused``: there were enough devices, which declined for now; it is not one of the attempts
    after which a run fails.
    """

    round: int
    attempt: int
    reason: str
    excused: bool = False


@dataclass(frozen=True)
class RequestFailed:
    """The requested round has no model after its last attempt; the next request is awaited."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class RoundCommitted:
    """``model`` is the global model from here on."""

    round: int
    attempt: int
    model: Model


@dataclass(frozen=True)
class EvaluationOrdered:
    """Devices are ordered to evaluate version ``round``; nobody else's metrics of it count."""

    round: int
    devices: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationDeclined:
    """A device that was ordered to evaluate version ``round`` does not; ``permanent``: it cannot.

    Metrics of it may follow, where a later order is carried out.
    """

    round: int
    device_id: str
    reason: str
    permanent: bool = False


@dataclass(frozen=True)
class EvaluationRecorded:
    """One device's metrics of version ``round``."""

    round: int
    device_id: str
    num_examples: int
    metrics: dict[str, float]
    usage: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionJudged:
    """Version ``round`` is compared by ``value``, None where nobody measured it.

    ``is_best``: no version before was so good. What is measured of it later changes nothing.
    """

    round: int
    value: float | None
    is_best: bool


@dataclass(frozen=True)
class RunPaused:
    """No new round starts."""


@dataclass(frozen=True)
class RunResumed:
    """Rounds start again."""


@dataclass(frozen=True)
class RunCompleted:
    """Every round was committed."""


@dataclass(frozen=True)
class RunStoppedEarly:
    """The run is complete before its last round: no better version came for too long."""

    reason: str


@dataclass(frozen=True)
class RunStopped:
    """The operator ended the run."""

    reason: str


@dataclass(frozen=True)
class RunFailed:
    """The run cannot go on."""

    reason: str


Fact: TypeAlias = (
    RoundOpened
    | RoundStarted
    | UpdateAccepted
    | UpdateRefused
    | UpdateWithdrawn
    | OrderDeclined
    | RoundClosed
    | RoundAbandoned
    | RequestFailed
    | RoundCommitted
    | EvaluationOrdered
    | EvaluationDeclined
    | EvaluationRecorded
    | VersionJudged
    | RunPaused
    | RunResumed
    | RunCompleted
    | RunStoppedEarly
    | RunStopped
    | RunFailed
)
FACTS: dict[str, type[Fact]] = {
    fact.__name__: fact
    for fact in (
        RoundOpened,
        RoundStarted,
        UpdateAccepted,
        UpdateRefused,
        UpdateWithdrawn,
        OrderDeclined,
        RoundClosed,
        RoundAbandoned,
        RequestFailed,
        RoundCommitted,
        EvaluationOrdered,
        EvaluationDeclined,
        EvaluationRecorded,
        VersionJudged,
        RunPaused,
        RunResumed,
        RunCompleted,
        RunStoppedEarly,
        RunStopped,
        RunFailed,
    )
}
