"""Runs every flow: journals what each decides, then carries out its commands.

Called on the owner's thread. Nothing here knows what kinds of flows there are. An error that nobody
foresaw fails the flow that it comes from, and no other.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from broker.wire.messages import DeviceState, Receipt, RunDocument
from fl_server.dataplane.orders import OrderSender
from fl_server.dataplane.workers import JobCrashed, JobDone
from fl_server.flows.commands import (
    AnnounceProduction,
    ArmTimer,
    Command,
    IssueOrder,
    NoteAudit,
    PublishDocument,
    ReportResult,
    SendReceipt,
    StartTask,
)
from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft, FailureReported
from fl_server.flows.flow import Flow, Step
from fl_server.kinds.base import FlowKind, FlowServices
from fl_server.kinds.failed import FailedFlow
from fl_server.members.presence import DevicePresence
from fl_server.members.rules import AuditEvent
from fl_server.observers.base import ObservedFact
from fl_server.persistence.database import JournalUnusable
from fl_server.persistence.journal import DamagedRun
from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition
from fl_server.runs.documents import RunDocuments
from fl_server.runs.record import RunRecord
from fl_server.runs.timers import Timers
from fl_server.shell.addressing import RunAddressing
from fl_server.shell.ended import EndedRuns
from fl_server.shell.parts import OpenRuns, RunnerParts
from runtime.errors import ConfigError, NotFound, PeerError

FlowType = TypeVar("FlowType", bound=Flow)
_LOG = logging.getLogger(__name__)


class FlowRunner:
    """The flows of one server.

    Args:
        kinds: by the name that a run's definition chooses.

    Attributes:
        flows: the flow of every run by its id, oldest first. One that has ended stays as long as
            it has a timer or work under way; then its run is history.
        records: their records, likewise.
        history: the runs that have ended.
    """

    def __init__(self, kinds: Mapping[str, FlowKind], parts: RunnerParts, epoch: int) -> None:
        self._opened = OpenRuns()
        self.flows, self.records = self._opened.flows, self._opened.records
        self.services = FlowServices(
            parts.data, parts.data.registry, parts.presence, self.flows, parts.history
        )
        self.timers = Timers()
        self._kinds = dict(kinds)
        self._parts = parts
        opened = self._opened
        self._addressing = RunAddressing(opened.records, opened.addressed, parts.traits)
        self._ended = EndedRuns(self._opened, self.timers, parts, self._flow, self._is_listed)
        self.history = parts.history
        connection = parts.connection
        self._orders = OrderSender(
            parts.data, parts.bundles, self._time_left_s, connection.publish_order, epoch
        )
        self._epoch = epoch
        self.documents = RunDocuments(
            self.flows,
            parts.history.documents,
            connection.topics,
            self._publish_document,
            connection.clear,
        )
        parts.journal.add_vocabularies({name: kind.vocabulary for name, kind in kinds.items()})

    @property
    def epoch(self) -> int:
        """What orders and documents carry."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._orders.epoch = self._epoch = epoch

    # --- runs ---------------------------------------------------------------------------------

    def kind_of(self, definition: RunDefinition) -> FlowKind:
        """Return the kind of flow that a definition chooses.

        Raises:
            ConfigError: this server has no such kind.
        """
        found = self._kinds.get(definition.flow)
        if found is None:
            there = ", ".join(sorted(self._kinds))
            raise ConfigError(f"no flow {definition.flow!r}; there are: {there}")
        return found

    def check(self, definition: RunDefinition) -> None:
        """Raise ConfigError where no flow of this server can carry out the definition."""
        self.kind_of(definition).check(definition)

    def of(self, kind: type[FlowType]) -> dict[str, FlowType]:
        """Return the flows of one class by their runs' ids, oldest first."""
        return {run_id: flow for run_id, flow in self.flows.items() if isinstance(flow, kind)}

    def definition(self, run_id: str) -> RunDefinition | None:
        """Return the definition of a run, also of one that is history; None if there is none.

        Raises:
            DamagedRun: it is not as it was written.
        """
        if run_id in self.records:
            return self.records[run_id].definition
        if not self.history.has(run_id):
            return None
        return self._parts.journal.record(run_id).definition

    def submitted(self) -> list[str]:
        """Return the ids of the runs that operators submitted and that go on, oldest first.

        Some that have ended are among them, see ``flows``.
        """
        return [run_id for run_id, record in self.records.items() if self._is_listed(record)]

    def _is_listed(self, record: RunRecord[Any]) -> bool:
        return self.kind_of(record.definition).is_submitted

    def new_record(self, run_id: str, definition: RunDefinition, initial: Model) -> RunRecord[Any]:
        """Return the record of a run that may begin now."""
        plan = self.kind_of(definition).plan(run_id, definition, self.services)
        return RunRecord(run_id, definition, plan, initial, time.time())

    def restore(self) -> None:
        """Open the flow of every run that is not history; one that is damaged fails."""
        journal = self._parts.journal
        for run_id in journal.unfiled():
            try:
                self._open(journal.record(run_id))
            except DamagedRun as error:
                self._ended.file_damaged(run_id, error)
            except NotFound as error:
                _LOG.error("the journal holds a run whose id is damaged, and leaves it: %s", error)

    def resume(self) -> None:
        """Let every flow go on from where it was."""
        for run in self._ended.take_damaged():
            self._publish_document(run.run_id, run.document)
        for flow in list(self.flows.values()):
            with self.isolated(flow):
                self._carry_out(flow, [flow.resume()])
            if self.flows[flow.run_id].ended:
                self._parts.data.forget_copies(flow.run_id)

    def begin(self, record: RunRecord[Any]) -> None:
        """Journal a new run and tell its flow which devices are online."""
        self._parts.journal.add_run(record)
        flow = self._open(record)
        _LOG.info("run %s begins, flow %s", record.run_id, record.definition.flow)
        with self.isolated(flow):
            self._carry_out(flow, [flow.resume()])
        self.documents.publish(self.flows[record.run_id])
        for device in self._parts.presence.online(flow.task, bundled=flow.bundled):
            admits = self._addressing.admits
            if flow.concerns(device.state) and admits(flow.run_id, device.id, device.state):
                self.handle(flow.run_id, _joined(device))

    def _open(self, record: RunRecord[Any]) -> Flow:
        """Open a run as its facts left it; where they cannot be read or applied, it has failed.

        Raises:
            DamagedRun: its facts are not as they were written.
        """
        self.records[record.run_id] = record

        def stand_in(reason: str) -> None:
            self.flows[record.run_id] = FailedFlow(record, reason)

        with self._parts.faults.caught(f"run {record.run_id}", stand_in, but=(DamagedRun,)):
            try:
                self.flows[record.run_id] = self._flow(record)
            except JournalUnusable as error:
                _LOG.error("run %s has failed: %s", record.run_id, error)
                stand_in(str(error))
        return self.flows[record.run_id]

    def _flow(self, record: RunRecord[Any]) -> Flow:
        kind = self.kind_of(record.definition)
        facts = self._parts.journal.facts(record.run_id, record.definition.flow)
        return kind.open(record, facts, self.services)

    def listen(self, run_id: str, listener: Callable[[object], None]) -> None:
        """Give a run's reports to whatever drives it from outside. Call it before ``resume``."""
        self._opened.listeners[run_id] = listener

    # --- events -------------------------------------------------------------------------------

    def handle(self, run_id: str, *events: object) -> None:
        """Give events to a run's flow, journal their facts at once, carry out the commands.

        Raises:
            PeerError: there is no such run.
        """
        flow = self.find(run_id)
        if flow is not None:
            with self.isolated(flow):
                self._carry_out(flow, [flow.handle(event) for event in events])
        elif not self.knows(run_id):
            raise PeerError("a message about a run that is not here", "unknown_run")

    def handle_presence(
        self, event: DeviceJoined | DeviceBusy | DeviceLeft, state: DeviceState | None
    ) -> None:
        """Tell the flows of a device; ``state`` is its presence, None where it was removed."""
        for flow in self._going():
            with self.isolated(flow):
                if isinstance(event, DeviceLeft) or (
                    state is not None
                    and flow.concerns(state)
                    and self._addressing.admits(flow.run_id, event.device_id, state)
                ):
                    self.handle(flow.run_id, event)

    def handle_traits(self, device_id: str) -> None:
        """Tell the flows of a device that they address since more is known of it, or no longer."""
        device = self._parts.presence.devices.get(device_id)
        if device is None or not device.online:
            return
        for flow in self._going():
            with self.isolated(flow):
                if flow.concerns(device.state):
                    fits = self._addressing.changed(flow.run_id, device_id, device.state)
                    if fits is not None:
                        self.handle(flow.run_id, _joined(device) if fits else DeviceLeft(device_id))

    def handle_of_task(self, task: str, event: object) -> None:
        """Give an event to every flow of a task."""
        for flow in self._going():
            if flow.task == task:
                self.handle(flow.run_id, event)

    def handle_done(self, jobs: Iterable[JobDone]) -> None:
        """Handle jobs that have ended: those of a run in a row share one write to the disk."""
        for run_id, done in itertools.groupby(jobs, lambda job: job.run_id):
            self.handle(run_id, *(job.event for job in done))

    def handle_crash(self, crash: JobCrashed) -> None:
        """Report an error that nobody foresaw to the flow whose task it ended."""
        reason = self._parts.faults.reason(f"a job of run {crash.run_id or 'none'}", crash.error)
        flow = self.flows.get(crash.run_id)
        if flow is not None and not flow.ended:
            self.handle(crash.run_id, FailureReported(reason))

    def due_s(self) -> float:
        """Return when ``handle_due`` must be called, by the monotonic clock."""
        return min(self.timers.due_s(), self.documents.due_s())

    def handle_due(self) -> None:
        """Give the flows the timers that are due, and publish the documents that are."""
        for run_id, event in self.timers.fired():
            self.handle(run_id, event)
        self.documents.publish_due()

    def _going(self) -> list[Flow]:
        return [flow for flow in self.flows.values() if not flow.ended]

    # --- errors that nobody foresaw -----------------------------------------------------------

    def isolated(self, flow: Flow) -> AbstractContextManager[None]:
        """Have an error that nobody foresaw, within the block, fail this flow alone."""
        run_id = flow.run_id
        return self._parts.faults.caught(
            f"run {run_id}", lambda reason: self._fail(run_id, reason), but=(PeerError,)
        )

    def _fail(self, run_id: str, reason: str) -> None:
        """Fail a run by its own means, else put something in its place.

        What its flow holds in memory may be ahead of the journal, from which it is opened anew. A
        run that is history stays as it was filed.
        """
        if run_id not in self.flows:
            self._ended.close(run_id)
            return
        try:
            flow = self._open(self.records[run_id])
        except DamagedRun as error:
            self._stand_in(run_id, str(error))
            return
        if isinstance(flow, FailedFlow):
            self.documents.changed(flow)
        if flow.ended:
            return

        def stand_in(_: str) -> None:
            self._stand_in(run_id, reason)

        with self._parts.faults.caught(f"the failure of run {run_id}", stand_in):
            step = flow.handle(FailureReported(reason))
            self._carry_out(flow, [step])
            if not step.facts:
                self._stand_in(run_id, reason)

    def _stand_in(self, run_id: str, reason: str) -> None:
        self.flows[run_id] = FailedFlow(self.records[run_id], reason)
        self.documents.changed(self.flows[run_id])

    def _publish_document(self, run_id: str, kept: Mapping[str, Any] | None) -> None:
        """Publish a run's document; a run whose document cannot be told has failed.

        Args:
            kept: the document of a run that is history, None to ask its flow.
        """

        def fail(reason: str) -> None:
            flow = self.flows.get(run_id)
            if flow is None or isinstance(flow, FailedFlow):
                return
            if flow.ended:
                self._stand_in(run_id, reason)
            else:
                self._fail(run_id, reason)

        with self._parts.faults.caught(f"the document of run {run_id}", fail):
            if kept is None:
                document = self.flows[run_id].document(self._epoch)
            else:
                text = json.dumps({**kept, "epoch": self._epoch})
                document = RunDocument.model_validate_json(text)
            if document is not None:
                topic = self._parts.connection.topics.run(run_id, "state")
                self._parts.connection.publish_retained(topic, document)

    def knows(self, run_id: str) -> bool:
        """Whether there is or was such a run."""
        return run_id in self.flows or self.history.has(run_id)

    def find(self, run_id: str) -> Flow | None:
        """Return the flow of a run, opened again where it is history; None where none can be."""
        return self.flows.get(run_id) or self._ended.reopen(run_id)

    # --- commands -----------------------------------------------------------------------------

    def _carry_out(self, flow: Flow, steps: list[Step[Any, Command]]) -> None:
        facts = [fact for step in steps for fact in step.facts]
        # what cannot be told is not written
        observed = [
            ObservedFact(self.records[flow.run_id].definition.flow, fact, flow.event_of(fact))
            for fact in facts
        ]
        self._parts.journal.append(flow.run_id, facts)
        for each in observed:
            self._parts.observers.tell(each)
        if facts and flow.ended:
            self.timers.drop(flow.run_id)
        for step in steps:
            for command in step.commands:
                self._do(flow, command)
        if facts:
            now = self.flows.get(flow.run_id, flow)  # another one where a command failed it
            self.documents.changed(now)
            if now.ended:
                self._parts.data.forget_copies(now.run_id)
        self._ended.file_when_idle(flow.run_id)

    def _do(self, flow: Flow, command: Command) -> None:
        parts = self._parts
        match command:
            case IssueOrder():
                self._orders.send(flow, command, self.isolated(flow))
            case SendReceipt():
                parts.connection.publish_receipt(command.device_id, _receipt(flow, command))
            case ArmTimer():
                self.timers.arm(flow.run_id, command)
            case StartTask():
                parts.data.start_job(flow.run_id, command)
            case PublishDocument():
                if flow.run_id in self.flows:
                    self.documents.publish(self.flows[flow.run_id])
            case ReportResult():
                listener = self._opened.listeners.get(flow.run_id)
                if listener is not None:
                    listener(command.result)
            case AnnounceProduction():
                parts.announce_production(command.task)
            case NoteAudit():
                detail = dict(command.detail)
                parts.note(AuditEvent(command.actor, command.act, command.subject, detail))

    def _time_left_s(self, run_id: str, order: IssueOrder) -> float:
        left_s = None if order.timer is None else self.timers.left_s(run_id, order.timer)
        return order.time_s if left_s is None else left_s


def _joined(device: DevicePresence) -> DeviceJoined:
    state = device.state
    accepting = state.status != "draining"
    return DeviceJoined(device.id, state.role, accepting, state.domain)


def _receipt(flow: Flow, command: SendReceipt) -> Receipt:
    return Receipt(
        action=command.action,
        run_id=flow.run_id,
        round=command.round,
        attempt=command.attempt,
        phase=command.phase,
        seq=command.seq,
        status=command.status,
        reason=command.reason[:2000],
    )
