"""Runs every flow: journals what each decides, then carries out its commands.

Called on the owner's thread. Nothing here knows what kinds of flows there are.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from broker.wire.messages import DeviceState, Receipt
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.orders import OrderSender
from fl_server.dataplane.plane import DataPlane
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
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import AuditEvent
from fl_server.observers.base import ObservedFact, ObserverList
from fl_server.persistence.journal import Journal
from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition
from fl_server.runs.documents import RunDocuments
from fl_server.runs.record import RunRecord
from fl_server.runs.timers import Timers
from fl_server.shell.connection import ServerConnection
from runtime.errors import ConfigError, PeerError

FlowType = TypeVar("FlowType", bound=Flow)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerParts:
    """What the flows' commands are carried out with.

    Attributes:
        announce_production: is given the task whose production has changed.
        note: writes to the audit log.
    """

    journal: Journal
    data: DataPlane
    bundles: SiteBundles
    presence: PresenceTable
    connection: ServerConnection
    observers: ObserverList
    announce_production: Callable[[str], None]
    note: Callable[[AuditEvent], None]


class FlowRunner:
    """The flows of one server.

    Args:
        kinds: by the name that a run's definition chooses.

    Attributes:
        flows: every flow by its run's id, oldest first, those that have ended too.
        records: their records, likewise.
    """

    def __init__(self, kinds: Mapping[str, FlowKind], parts: RunnerParts, epoch: int) -> None:
        self.flows: dict[str, Flow] = {}
        self.records: dict[str, RunRecord[Any]] = {}
        self.services = FlowServices(parts.data, parts.data.registry, parts.presence, self.flows)
        self.timers = Timers()
        self._kinds = dict(kinds)
        self._listeners: dict[str, Callable[[object], None]] = {}
        self._parts = parts
        connection = parts.connection
        self._orders = OrderSender(
            parts.data, parts.bundles, self._time_left_s, connection.publish_order, epoch
        )
        self.documents = RunDocuments(
            self.flows, connection.topics, epoch, connection.publish_retained, connection.clear
        )
        parts.journal.add_vocabularies({name: kind.vocabulary for name, kind in kinds.items()})

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

    def submitted(self) -> list[str]:
        """Return the ids of the runs that operators submitted, oldest first."""
        return [
            run_id
            for run_id, record in self.records.items()
            if self.kind_of(record.definition).is_submitted
        ]

    def new_record(self, run_id: str, definition: RunDefinition, initial: Model) -> RunRecord[Any]:
        """Return the record of a run that may begin now."""
        plan = self.kind_of(definition).plan(run_id, definition, self.services)
        return RunRecord(run_id, definition, plan, initial, time.time())

    def restore(self) -> None:
        """Open the flow of every journalled run."""
        for record in self._parts.journal.runs():
            self._open(record)

    def resume(self) -> None:
        """Let every flow go on from where it was."""
        for flow in list(self.flows.values()):
            self._carry_out(flow, [flow.resume()])
            if flow.ended:
                self._parts.data.forget_copies(flow.run_id)

    def begin(self, record: RunRecord[Any]) -> None:
        """Journal a new run and tell its flow which devices are online."""
        self._parts.journal.add_run(record)
        flow = self._open(record)
        _LOG.info("run %s begins, flow %s", record.run_id, record.definition.flow)
        self._carry_out(flow, [flow.resume()])
        self.documents.publish(flow)
        for device in self._parts.presence.online(flow.task, bundled=flow.bundled):
            accepting = device.state.status != "draining"
            self.handle(flow.run_id, DeviceJoined(device.id, device.state.role, accepting))

    def _open(self, record: RunRecord[Any]) -> Flow:
        kind = self.kind_of(record.definition)
        facts = self._parts.journal.facts(record.run_id, record.definition.flow)
        flow = kind.open(record, facts, self.services)
        self.flows[record.run_id], self.records[record.run_id] = flow, record
        return flow

    def listen(self, run_id: str, listener: Callable[[object], None]) -> None:
        """Give a run's reports to whatever drives it from outside. Call it before ``resume``."""
        self._listeners[run_id] = listener

    # --- events -------------------------------------------------------------------------------

    def handle(self, run_id: str, *events: object) -> None:
        """Give events to a run's flow, journal their facts at once, carry out the commands.

        Raises:
            PeerError: there is no such run.
        """
        flow = self.flows.get(run_id)
        if flow is None:
            raise PeerError("a message about a run that is not here", "unknown_run")
        self._carry_out(flow, [flow.handle(event) for event in events])

    def handle_presence(
        self, event: DeviceJoined | DeviceBusy | DeviceLeft, state: DeviceState | None
    ) -> None:
        """Tell the flows of a device; ``state`` is its presence, None where it was removed."""
        for flow in self._going():
            if isinstance(event, DeviceLeft) or (state is not None and flow.concerns(state)):
                self.handle(flow.run_id, event)

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
        _LOG.error("a job crashed", exc_info=crash.error)
        flow = self.flows.get(crash.run_id)
        if flow is not None and not flow.ended:
            error = f"{type(crash.error).__name__}: {crash.error}"
            reason = f"internal error in the data plane: {error}"
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

    # --- commands -----------------------------------------------------------------------------

    def _carry_out(self, flow: Flow, steps: list[Step[Any, Command]]) -> None:
        facts = [fact for step in steps for fact in step.facts]
        self._parts.journal.append(flow.run_id, facts)
        kind = self.records[flow.run_id].definition.flow
        for fact in facts:
            self._parts.observers.tell(ObservedFact(kind, fact, flow.event_of(fact)))
        for step in steps:
            for command in step.commands:
                self._do(flow, command)
        if facts:
            self.documents.changed(flow)
            if flow.ended:
                self._parts.data.forget_copies(flow.run_id)

    def _do(self, flow: Flow, command: Command) -> None:
        parts = self._parts
        match command:
            case IssueOrder():
                self._orders.send(flow, command)
            case SendReceipt():
                parts.connection.publish_receipt(command.device_id, _receipt(flow, command))
            case ArmTimer():
                self.timers.arm(flow.run_id, command)
            case StartTask():
                parts.data.start_job(flow.run_id, command)
            case PublishDocument():
                self.documents.publish(flow)
            case ReportResult():
                listener = self._listeners.get(flow.run_id)
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
