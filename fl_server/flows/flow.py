"""What a run is to the server's shell: a flow, sans-IO. Pure.

``handle(event)`` returns the facts that the flow decided and the commands that follow. The shell
journals the facts, then carries out the commands. A flow reads no clock and does no input or
output itself: the state is the fold of its facts, plus who is online, which devices say again.
After a crash: open the flow with its journalled facts, then ``resume()``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Generic, TypeVar

from broker.wire.messages import DeviceState, RunDocument, RunEvent
from fl_server.flows.commands import Command, IssueOrder, ReceiptStatus, SendReceipt
from fl_server.flows.events import DeviceAnswered
from fl_server.flows.report import FlowReport, RecordedFact

F = TypeVar("F")
C = TypeVar("C")
_LISTED = 200


@dataclass
class Step(Generic[F, C]):
    """What one event led to: facts first to the journal, then commands to the world."""

    facts: list[F] = field(default_factory=list)
    commands: list[C] = field(default_factory=list)


class Flow(ABC):
    """One run of some kind. One owner calls it.

    Attributes:
        run_id: the id of the run, also in its orders and topics.
        task: what its devices must have installed.
        bundled: whether devices may take the task as a bundle instead.
    """

    run_id: str
    task: str
    bundled: bool = False

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing more will happen in it; late messages are still answered.

        Its timers are dropped, but for those of the step that ended it. When these have fired and
        its tasks are done, the run is history: its flow is closed, and opened again from its facts
        where a late message asks for it.
        """

    @abstractmethod
    def handle(self, event: object) -> Step[Any, Command]:
        """Handle one event; one that is not for this kind or no longer matters has no effect."""

    @abstractmethod
    def resume(self) -> Step[Any, Command]:
        """Return what is due at the beginning and after a crash; every timer is armed in full."""

    @abstractmethod
    def document(self, epoch: int) -> RunDocument | None:
        """Return the retained document as it is now, None where nobody needs one yet."""

    def report(self, facts: Sequence[RecordedFact]) -> FlowReport:
        """Return what happened in its rounds so far, for operators; by default nothing of them.

        Args:
            facts: all of the run, as they were journalled.
        """
        del facts
        return FlowReport()

    def concerns(self, state: DeviceState) -> bool:
        """Whether a device with this presence could take part."""
        return state.can_run(self.task, bundled=self.bundled)

    def awaits(self, order: IssueOrder) -> bool:
        """Whether an order that was issued a while ago is still to be sent."""
        return not self.ended

    def event_of(self, fact: Any) -> RunEvent:
        """Return what observers are told of a fact, bounded to fit into a message."""
        detail = {each.name: _bounded(getattr(fact, each.name)) for each in fields(fact)}
        return RunEvent(
            run_id=self.run_id,
            name=type(fact).__name__,
            round=detail.pop("round", 0),
            attempt=detail.pop("attempt", 0),
            detail=detail,
        )


def receipt_of(answer: DeviceAnswered, status: ReceiptStatus, reason: str = "") -> SendReceipt:
    """Return the receipt of a result."""
    place = (answer.device_id, answer.action, answer.round, answer.attempt)
    return SendReceipt(*place, status, reason, answer.phase, answer.seq)


def _bounded(value: Any) -> Any:
    """Return a fact's field as plain data, with the first of many items."""
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, dict):
        return {name: _bounded(each) for name, each in list(value.items())[:_LISTED]}
    if isinstance(value, list | tuple):
        return [_bounded(each) for each in value[:_LISTED]]
    return value
