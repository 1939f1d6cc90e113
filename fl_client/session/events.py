"""The vocabulary of the device's session: jobs, events, and commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from broker.wire.messages import Action, ModelRef, Order, Receipt, UploadRef
from runtime.errors import InvalidTransition

Stage: TypeAlias = Literal["fetching", "working", "uploading", "reporting"]
Presence: TypeAlias = Literal["ready", "training", "draining", "offline"]
Memory: TypeAlias = Literal["enough", "suspected", "short"]


@dataclass(frozen=True, order=True)
class JobKey:
    """Identifies a job; the server and the device use the same key."""

    run_id: str
    action: Action
    round: int
    attempt: int
    phase: str = ""
    seq: int = 0

    @classmethod
    def of(cls, message: Order | Receipt) -> JobKey:
        """Return the key of the job that an order asks for, or a receipt is about."""
        return cls(
            message.run_id,
            message.action,
            message.round,
            message.attempt,
            message.phase,
            message.seq,
        )


@dataclass(frozen=True)
class JobOutcome:
    """What a job gave; sizes and hashes are of the update's file.

    ``keeps_state``: the algorithm or the task left a state, which is the next one once the result
    counts. ``payload``: the answer to an exchange that is not in a file. ``population``: how many
    devices the run knows below a domain, 1 for a device.
    """

    num_examples: int
    metrics: dict[str, float]
    train_s: float = 0.0
    peak_rss_bytes: int = 0
    header_sha256: str = ""
    size_bytes: int = 0
    steps: int = 0
    steps_s: float = 0.0
    full_steps: int = 0
    micro_batch: int = 0
    keeps_state: bool = False
    payload: bytes = b""
    population: int = 1


@dataclass(frozen=True)
class Job:
    """One order and its progress; ``shrink`` is how often its micro batch was quartered."""

    key: JobKey
    order: Order
    stage: Stage = "fetching"
    outcome: JobOutcome | None = None
    work_attempts: int = 1
    shrink: int = 0

    @property
    def model(self) -> ModelRef:
        """The order's model; InvalidTransition where it has none."""
        if self.order.model is None:
            raise InvalidTransition(f"the order of {self.key} has no model")
        return self.order.model

    @property
    def upload(self) -> UploadRef:
        """Where the order's update goes; InvalidTransition where it has none."""
        if self.order.upload is None:
            raise InvalidTransition(f"the order of {self.key} has no upload")
        return self.order.upload


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrderArrived:
    """An order came; ``refusal`` is why this device will not do it, or empty.

    ``permanent``: waiting changes nothing about that.
    """

    order: Order
    refusal: str = ""
    permanent: bool = False


@dataclass(frozen=True)
class ReceiptArrived:
    """The server's receipt of a result."""

    receipt: Receipt


@dataclass(frozen=True)
class RunChanged:
    """A run's retained document: where the server is now.

    ``closed`` says that this (round, attempt) takes no more updates. A document may come after
    the order that it precedes (another topic), so "not yet collecting" must not read as closed.
    """

    run_id: str
    epoch: int
    ended: bool
    round: int
    attempt: int
    closed: bool


@dataclass(frozen=True)
class ServerChanged:
    """The server's retained presence."""

    epoch: int


@dataclass(frozen=True)
class ModelFetched:
    """What the order needs lies on disk, verified."""

    key: JobKey


@dataclass(frozen=True)
class WorkFinished:
    """The work ended; an update's file lies on disk."""

    key: JobKey
    outcome: JobOutcome


@dataclass(frozen=True)
class UpdateUploaded:
    """The update's object is in the store."""

    key: JobKey


@dataclass(frozen=True)
class JobFailed:
    """A step of the job failed for good, or ``retryable`` by doing the work again.

    ``memory`` says that it ran short of memory, or may have: the process was killed. ``unusable``:
    the work was done, and its update could never count. ``permanent``: the task or its definition
    is at fault, so that waiting changes nothing. ``traceback``: its end, where the task's own code
    raised an error.
    """

    key: JobKey
    reason: str
    retryable: bool = False
    memory: Memory = "enough"
    unusable: bool = False
    permanent: bool = False
    traceback: tuple[str, ...] = ()


Event: TypeAlias = (
    OrderArrived
    | ReceiptArrived
    | RunChanged
    | ServerChanged
    | ModelFetched
    | WorkFinished
    | UpdateUploaded
    | JobFailed
)

# --- commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FetchModel:
    """Bring the order's model and its bundle, where it has them.

    Ends in ``ModelFetched`` or ``JobFailed``.
    """

    job: Job


@dataclass(frozen=True)
class DoWork:
    """Train, evaluate or exchange; ends in ``WorkFinished`` or ``JobFailed``."""

    job: Job


@dataclass(frozen=True)
class UploadUpdate:
    """Bring the update, or an exchange's answer, to the store.

    Ends in ``UpdateUploaded`` or ``JobFailed``.
    """

    job: Job


@dataclass(frozen=True)
class SendResult:
    """Report the result durably, again and again until the receipt."""

    job: Job


@dataclass(frozen=True)
class SendDecline:
    """Tell the server that an order is not carried out, and why; see ``JobFailed``."""

    key: JobKey
    reason: str
    unusable: bool = False
    permanent: bool = False
    traceback: tuple[str, ...] = ()


@dataclass(frozen=True)
class RenewUrls:
    """The same order came again with fresh URLs."""

    job: Job


@dataclass(frozen=True)
class CancelJob:
    """Stop its transfer or its work; no event of it matters any more."""

    key: JobKey


@dataclass(frozen=True)
class KeepJob:
    """Write the job to disk before going on."""

    job: Job


@dataclass(frozen=True)
class ForgetJob:
    """Remove the job's files and its journal row; the new state stays if accepted."""

    key: JobKey
    accepted: bool


@dataclass(frozen=True)
class PublishState:
    """Publish the presence."""

    presence: Presence


Command: TypeAlias = (
    FetchModel
    | DoWork
    | UploadUpdate
    | SendResult
    | SendDecline
    | RenewUrls
    | CancelJob
    | KeepJob
    | ForgetJob
    | PublishState
)
