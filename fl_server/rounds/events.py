"""The vocabulary of a run: events come in, facts are journalled, commands go out.

Events tell the machine what happened outside (past tense). Facts are what the machine decided;
its state is the fold of its facts, so a journal of facts is the whole of its memory. Commands are
what the shell must do now (imperative). Every timer and every job carries (round, attempt); an
answer that carries another pair has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import (
    Action,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    FailureReported,
    OrderRequested,
    PauseRequested,
    ResumeRequested,
    StopRequested,
    TimerFired,
)
from fl_server.rounds.workload import FitRule, OrderWork

Status: TypeAlias = Literal["running", "paused", "completed", "stopped", "failed"]
Phase: TypeAlias = Literal[
    "waiting", "gathering", "collecting", "aggregating", "evaluating", "ended"
]
EvaluateOn: TypeAlias = Literal["evaluators", "devices", "none"]


@dataclass(frozen=True)
class Plan:
    """What the machine must know of a run's definition.

    Attributes:
        cohort_size: the target number of updates of a round.
        over_selection: invited devices per targeted update, at least 1.
        quorum: the fewest updates that make a round.
        deadline_s: how long a round collects.
        gather_s: how long to wait for a full cohort once a quorum is there.
        max_attempts: attempts at one round before the run fails.
        fit: how orders are fitted to devices, None: all get the same.
        on_request: each round waits for ``RoundRequested``, which brings the model to begin with.
    """

    run_id: str
    rounds: int
    cohort_size: int
    quorum: int
    seed: int = 0
    over_selection: float = 1.0
    deadline_s: float = 120.0
    gather_s: float = 10.0
    max_attempts: int = 50
    evaluate_every: int = 1
    evaluate_on: EvaluateOn = "evaluators"
    evaluation_deadline_s: float = 30.0
    fit: FitRule | None = None
    on_request: bool = False


@dataclass(frozen=True)
class Model:
    """One committed version of the global model; version 0 is what the submitter uploaded.

    ``state_key`` names the algorithm's server state that belongs to it, empty where it has none.
    ``changed`` are the byte ranges of the file that differ from the version before it; None where
    that is not known or too much for it to be of use.
    """

    version: int
    key: str
    sha256: str
    size_bytes: int
    state_key: str = ""
    state_sha256: str = ""
    changed: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Update:
    """An uploaded update as its device reports it; ``usage``: see ``messages.Usage``."""

    key: str
    size_bytes: int
    header_sha256: str
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundRequested:
    """One round is requested from outside, from ``base``, which is version ``round - 1``.

    Rounds may be left out, but only go on; a request while a round is open ends that round.
    """

    round: int
    base: Model

    def __post_init__(self) -> None:
        if self.base.version != self.round - 1:
            raise ValueError(f"round {self.round} cannot begin with version {self.base.version}")


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
    | DeviceLeft
    | RoundRequested
    | ResultReceived
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

# --- facts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundStarted:
    """Orders go to ``cohort``; the round closes at ``target`` updates.

    ``work`` is what each device is asked for where orders are fitted. It comes from measured
    speeds, so it is journalled, and an order that is sent again is the same one.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]
    target: int
    work: dict[str, OrderWork] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundOpened:
    """A requested round begins with ``base``: devices are gathered for it from here on."""

    round: int
    attempt: int
    base: Model


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
    """The device will not do this round's order; ``unusable``: it did, and to no use."""

    round: int
    attempt: int
    device_id: str
    reason: str
    unusable: bool = False


@dataclass(frozen=True)
class RoundClosed:
    """No further update counts; the model is made of exactly ``included``."""

    round: int
    attempt: int
    included: tuple[str, ...]


@dataclass(frozen=True)
class RoundAbandoned:
    """The attempt ended without a model; the next attempt gathers anew."""

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
class EvaluationRecorded:
    """One device's metrics of version ``round``."""

    round: int
    device_id: str
    num_examples: int
    metrics: dict[str, float]
    usage: dict[str, float] = field(default_factory=dict)


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
    | RoundCommitted
    | EvaluationRecorded
    | RunPaused
    | RunResumed
    | RunCompleted
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
        RoundCommitted,
        EvaluationRecorded,
        RunPaused,
        RunResumed,
        RunCompleted,
        RunStopped,
        RunFailed,
    )
}

# --- commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SendOrder:
    """Order ``device_id`` to train from version ``round - 1``, or to evaluate version ``round``."""

    device_id: str
    action: Action
    round: int
    attempt: int


@dataclass(frozen=True)
class VerifyUpdate:
    """Fetch and check the update; ends in ``UpdateVerified`` or ``UpdateRejected``."""

    device_id: str
    round: int
    attempt: int
    update: Update


@dataclass(frozen=True)
class FoldUpdate:
    """Add an accepted update to the round's sum; ends in silence or ``UpdateVanished``."""

    device_id: str
    round: int
    attempt: int
    update: Update


@dataclass(frozen=True)
class Aggregate:
    """Make the next version of ``included``, all of which are folded or being folded."""

    round: int
    attempt: int
    included: tuple[str, ...]


@dataclass(frozen=True)
class ReportRound:
    """Report what a requested round committed; repeated after a restart."""

    round: int
    model: Model


@dataclass(frozen=True)
class DiscardUpdate:
    """Delete an update's object that will never count."""

    key: str


@dataclass(frozen=True)
class SweepRound:
    """Delete what no longer serves: updates up to (round, attempt), versions beyond retention."""

    round: int
    attempt: int


@dataclass(frozen=True)
class SweepRun:
    """Leave nothing in the store but the run's retained versions."""


Command: TypeAlias = (
    SendOrder
    | ReportRound
    | SendReceipt
    | ArmTimer
    | VerifyUpdate
    | FoldUpdate
    | Aggregate
    | DiscardUpdate
    | SweepRound
    | SweepRun
)
