"""What a flow has the server's shell do: commands that every kind of flow may use. Imperative.

The shell journals a step's facts before it carries out the step's commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from broker.wire.messages import Patch
from fl_server.flows.events import Action, TimerFired
from runtime.errors import RengoError

Lane: TypeAlias = Literal["", "run", "registry"]
Evaluators: TypeAlias = Literal["", "evaluators", "devices"]
ReceiptStatus: TypeAlias = Literal["accepted", "late", "refused", "unknown"]


@dataclass(frozen=True)
class ModelFile:
    """The model that an order names; ``patches`` say how it differs from versions before it."""

    key: str
    sha256: str
    size_bytes: int
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class BundleFile:
    """The task bundle that an order names."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class TaskSettings:
    """What a device needs to know of the task, the same in all orders of a run."""

    task: str
    algorithm: str
    algorithm_settings: Mapping[str, Any]
    training: Mapping[str, Any]
    seed: int
    transforms: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class IssueOrder:
    """Send a device an order. The shell adds the server's epoch, presigned URLs and the time left.

    The same (action, round, attempt, phase, seq) again renews the URLs. An exchange needs no model.

    Attributes:
        upload_key: the object that the device's update becomes, "" where it uploads none.
        timer: the armed timer that the device's time ends with.
        time_s: the device's time where that timer is not armed, or there is none.
        vectors: the algorithm's server vectors, where its clients get them.
        scalars: the algorithm's server scalars that its clients get, all of them for a domain.
        payload: what an exchange says, for the task on the device.
        evaluators: which of its devices a domain is to order to evaluate.
        singly: whether a domain is to pass on its devices' updates and not their sum.
        width: how much of the model the device trains; below 1 the model is a part.
    """

    device_id: str
    action: Action
    round: int
    attempt: int
    settings: TaskSettings
    model: ModelFile | None = None
    upload_key: str = ""
    bundle: BundleFile | None = None
    timer: TimerFired | None = None
    time_s: float = 0.0
    payload: bytes = b""
    phase: str = ""
    seq: int = 0
    vectors: ModelFile | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    evaluators: Evaluators = ""
    singly: bool = False
    width: float = 1.0


@dataclass(frozen=True)
class SendReceipt:
    """Send the device the final receipt of its result."""

    device_id: str
    action: Action
    round: int
    attempt: int
    status: ReceiptStatus
    reason: str = ""
    phase: str = ""
    seq: int = 0


@dataclass(frozen=True)
class ArmTimer:
    """Bring ``TimerFired`` with the same fields after ``seconds``.

    Armed again before it fired, it fires once, at the later command's time.
    """

    timer: str
    round: int
    attempt: int
    seconds: float


@dataclass(frozen=True)
class StartTask:
    """Do ``work`` on another thread; the event that it returns comes back to the flow.

    Attributes:
        lane: which earlier work it comes after: that of its own run, all that changes the
            registry, or none.
        failed: makes an event of an expected error; without it the flow gets FailureReported.
    """

    work: Callable[[], object | None] = field(compare=False)
    lane: Lane = ""
    failed: Callable[[RengoError], object] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PublishDocument:
    """Publish the flow's document now; after each fact the shell publishes it by itself."""


@dataclass(frozen=True)
class ReportResult:
    """Report a result to whatever drives the run from outside; repeated after a restart."""

    result: object


@dataclass(frozen=True)
class AnnounceProduction:
    """Tell devices and flows that another version of a task may be in production."""

    task: str


@dataclass(frozen=True)
class NoteAudit:
    """Add an entry to the audit log."""

    actor: str
    act: str
    subject: str
    detail: Mapping[str, Any]


Command: TypeAlias = (
    IssueOrder
    | SendReceipt
    | ArmTimer
    | StartTask
    | PublishDocument
    | ReportResult
    | AnnounceProduction
    | NoteAudit
)
