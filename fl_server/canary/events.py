"""The vocabulary of a canary: its plan, what happens to it, what it decides, what must be done.

As in a run (``fl_server/rounds``): events come in, facts are journalled, commands go
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fl_server.flows.commands import SendReceipt
from fl_server.flows.events import (
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    ProductionMoved,
    TimerFired,
)
from fl_server.rounds.events import EvaluationReceived

Side: TypeAlias = Literal["production", "candidate"]
Verdict: TypeAlias = Literal["promoted", "rolled_back", "inconclusive"]
ROUND = 1
DEADLINE = TimerFired("deadline", ROUND, 1)
ATTEMPTS: dict[int, Side] = {1: "production", 2: "candidate"}
ATTEMPT_OF: dict[Side, int] = {side: attempt for attempt, side in ATTEMPTS.items()}


@dataclass(frozen=True)
class Contender:
    """One of the two versions."""

    run_id: str
    version: int
    key: str
    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        """How a person names it."""
        return f"{self.run_id}:{self.version}"


@dataclass(frozen=True)
class TaskBundle:
    """The bundle that brings the task to devices that do not have it installed."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class CanaryPlan:
    """One canary.

    Attributes:
        canary_id: what its orders have in place of a run's id.
        cohort: who evaluates; ``measured_by`` says what they are, for people.
        goal: what of the metric is better, as the task says; "" for what its name tells.
        max_drop: by how much the metric may be worse and the candidate still be promoted.
        quorum: the fewest pairs that a comparison needs.
        algorithm: it, its settings, ``training``, ``seed`` and ``bundle`` are the candidate's, for
            both.
    """

    canary_id: str
    task: str
    candidate: Contender
    production: Contender
    cohort: tuple[str, ...]
    measured_by: Literal["evaluators", "devices"]
    metric: str
    max_drop: float
    deadline_s: float
    quorum: int
    algorithm: str
    algorithm_settings: dict[str, Any]
    training: dict[str, Any]
    seed: int
    bundle: TaskBundle | None = None
    goal: Literal["", "higher", "lower"] = ""

    def contender(self, side: Side) -> Contender:
        """Return the version of a side."""
        return self.candidate if side == "candidate" else self.production


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CandidateMarked:
    """The candidate's stage in the registry is "candidate"."""


@dataclass(frozen=True)
class MarkingFailed:
    """The candidate's stage could not be changed."""

    reason: str


@dataclass(frozen=True)
class ComparisonFailed:
    """Something went wrong that nobody foresaw: nothing more is compared."""

    reason: str


@dataclass(frozen=True)
class DeadlinePassed:
    """The time of the canary is over."""


@dataclass(frozen=True)
class VerdictCarriedOut:
    """The versions' stages are as the verdict says; ``problem`` is why they are not."""

    problem: str = ""


Event: TypeAlias = (
    CandidateMarked
    | MarkingFailed
    | ComparisonFailed
    | ProductionMoved
    | DeadlinePassed
    | VerdictCarriedOut
    | DeviceJoined
    | DeviceLeft
    | DeviceDeclined
    | OrderRequested
    | EvaluationReceived
)

# --- facts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrdersOpened:
    """From here on the cohort is ordered to evaluate."""


@dataclass(frozen=True)
class SideMeasured:
    """One device's metrics of one of the two versions."""

    device_id: str
    side: Side
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class SideDeclined:
    """The device will not evaluate one of the two versions."""

    device_id: str
    side: Side
    reason: str


@dataclass(frozen=True)
class Judged:
    """What came of the comparison and why; no further measurement counts."""

    verdict: Verdict
    reason: str
    pairs: int
    candidate_mean: float | None
    production_mean: float | None


@dataclass(frozen=True)
class Settled:
    """The verdict is carried out, but for ``problem``."""

    problem: str = ""


Fact: TypeAlias = OrdersOpened | SideMeasured | SideDeclined | Judged | Settled
FACTS: dict[str, type[Fact]] = {
    fact.__name__: fact for fact in (OrdersOpened, SideMeasured, SideDeclined, Judged, Settled)
}

# --- commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class MarkCandidate:
    """Give the candidate its stage; ends in ``CandidateMarked`` or ``MarkingFailed``."""


@dataclass(frozen=True)
class ArmDeadline:
    """Bring ``DeadlinePassed`` after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class OrderSide:
    """Order a device to evaluate one of the two versions."""

    device_id: str
    side: Side


@dataclass(frozen=True)
class CloseOrders:
    """Publish that no evaluation is awaited any more."""


@dataclass(frozen=True)
class CarryOutVerdict:
    """Promote the candidate or archive it, and say why; ends in ``VerdictCarriedOut``."""

    verdict: Verdict
    reason: str


Command: TypeAlias = (
    MarkCandidate | ArmDeadline | OrderSide | SendReceipt | CloseOrders | CarryOutVerdict
)
