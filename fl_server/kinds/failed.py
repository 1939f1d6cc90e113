"""What stands in place of a run that this server cannot go on with. Other runs do not notice."""

from __future__ import annotations

from typing import Any

from broker.wire.messages import RunDocument
from fl_server.flows.commands import Command
from fl_server.flows.events import DeviceAnswered
from fl_server.flows.flow import Flow, Step, receipt_of
from fl_server.runs.record import RunRecord


class FailedFlow(Flow):
    """A run whose journalled facts cannot be read or applied, or whose failure decides nothing.

    It has ended, and nothing of that is journalled: a server that can read its facts goes on with
    the run.
    """

    def __init__(self, record: RunRecord[Any], reason: str) -> None:
        self.run_id, self.record = record.run_id, record
        self.task, self.bundled = record.definition.task, record.definition.bundled
        self.reason = reason[:2000]

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen in it: always."""
        return True

    def handle(self, event: object) -> Step[Any, Command]:
        """Answer a late result; nothing else has an effect."""
        if isinstance(event, DeviceAnswered):
            return Step([], [receipt_of(event, "late", f"the run has failed: {self.reason}")])
        return Step()

    def resume(self) -> Step[Any, Command]:
        """Return that nothing is due."""
        return Step()

    def document(self, epoch: int) -> RunDocument:
        """Return the retained document: that it has failed, and why."""
        definition = self.record.definition
        return RunDocument(
            run_id=self.run_id,
            task=self.task,
            algorithm=definition.algorithm.name,
            status="failed",
            reason=self.reason,
            round=0,
            attempt=0,
            rounds=definition.rounds,
            epoch=epoch,
            phase="ended",
            deadline_s=0.0,
            cohort=[],
            answered=[],
            model_sha256=self.record.initial.sha256,
            accuracy=None,
            loss=None,
        )
