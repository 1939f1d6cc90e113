"""The server's shell: one owner thread, a bounded inbox, and nothing decided here.

Messages, timers and finished jobs come into the inbox. The owner gives them to flows, which journal
what they decide before it takes effect; only then it acknowledges the message. After any gap (a
restart, a lost broker) the truth comes from the journal and from the devices' retained presence.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.brokers.access_control import AccessControl
from broker.session.inbox import Connected, Disconnected, SessionEvent, SessionFault
from broker.session.publication import Delivery
from broker.wire.messages import (
    Ancestor,
    Claim,
    DataReport,
    Decline,
    DeviceHealth,
    DeviceInfo,
    DeviceState,
    ModelRequest,
    OperatorRequest,
    PasswordKept,
    Progress,
    RefusedBody,
    Request,
    Result,
)
from broker.wire.topics import parse
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.epoch import StoredEpoch
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.urls import SharedUrls
from fl_server.dataplane.workers import Done, JobCrashed, JobDone, TaskDone
from fl_server.deployment.canaries import Canaries
from fl_server.deployment.production import ProductionDocuments
from fl_server.faults import Faults
from fl_server.flows.events import (
    DeviceBusy,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    ProductionMoved,
)
from fl_server.kinds.base import FlowKind
from fl_server.kinds.listing import FLOW_KINDS
from fl_server.members.gate import MessageGate, VerifiedMessage
from fl_server.members.labels import LabelRegistry
from fl_server.members.membership import Membership, SiteInfo
from fl_server.members.presence import PresenceTable
from fl_server.members.store import MemberRegistry
from fl_server.members.traits import TraitsTable
from fl_server.observers.base import Observer, ObserverList
from fl_server.observers.log import LogObserver
from fl_server.observers.mqtt import MqttObserver
from fl_server.observers.traffic import LinkTraffic
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.ended_runs import EndedRunReports
from fl_server.operations.mqtt import OperatorEndpoint
from fl_server.operations.submission import Operations
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.persistence.manifest_cache import DocumentTable
from fl_server.persistence.mark import MarkFile
from fl_server.settings import JournalRetention
from fl_server.shell.connection import ServerConnection
from fl_server.shell.devices import DeviceAdmission
from fl_server.shell.parts import RunnerParts
from fl_server.shell.position import TreePositions
from fl_server.shell.presence import PresenceActions, PresenceWatch
from fl_server.shell.refusals import RefusedBodies
from fl_server.shell.results import answer_of, receipt_without_flow
from fl_server.shell.runner import FlowRunner
from fl_server.shell.upkeep import JournalUpkeep
from runtime.errors import PeerError, RengoError
from runtime.security.identity import Identity
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore

_LOG = logging.getLogger(__name__)
_INBOX_MAX = 10_000
_STOP = "stop"


@dataclass(frozen=True)
class ServerSettings:
    """What the server's shell must know beside its parts.

    Attributes:
        flow_kinds: further kinds of flows, by the name that a run's definition chooses.
        observers: who is told of every fact, beside the log and the MQTT stream.
        presence_changed: is called on the owner's thread when a device came, went or said what it
            can do.
        report_name: returns what a run's reports, which go to a parent, call a device.
    """

    data_dir: Path
    site: SiteInfo
    project: str = "default"
    spool_memory_bytes: int = 64 << 20
    retention: JournalRetention = field(default_factory=JournalRetention)
    flow_kinds: Mapping[str, FlowKind] = field(default_factory=dict)
    observers: Sequence[Observer] = ()
    presence_changed: Callable[[], None] = lambda: None
    report_name: Callable[[str, str], str] = lambda _, device_id: device_id


class Server:
    """Coordinates every run of one domain. ``run_forever`` is the owner thread.

    Attributes:
        epoch: grows at every start; devices obey no order of an older one.
        gate: checks every message; counts what was refused.
        runner: the flows.
        operations: what operators and other callers may do.
    """

    def __init__(
        self,
        settings: ServerSettings,
        identity: Identity,
        operators: Sequence[Identity],
        store: ObjectStore,
        journal: Journal,
        access: AccessControl,
    ) -> None:
        self.settings = settings
        self.domain = identity.domain
        self.store = store
        self.journal = journal
        self.registry = MemberRegistry(journal.database, identity.secret_key)
        self.history = RunHistory(journal.database)
        self.upkeep = self._upkeep()
        self.upkeep.require_latest()
        self._epochs = StoredEpoch(store, settings.project)
        self.epoch = journal.next_epoch(above=self._epochs.read())
        self.upkeep.begin()
        self._epochs.write(self.epoch)
        # a SimpleQueue's put is reentrant, so that a signal handler may call stop()
        self._inbox: queue.SimpleQueue[SessionEvent | Done | str] = queue.SimpleQueue()
        # the jobs in the inbox that ended, to be handled together
        self._done: deque[JobDone] = deque()
        self.connection = ServerConnection(identity, self.epoch, self._offer)
        documents = DocumentTable(journal.database)
        self.models = ModelRegistry(store, settings.project, identity.secret_key, documents)
        work = settings.data_dir / "work"
        self.data = DataPlane(
            store,
            self.models,
            work,
            self._post,
            settings.spool_memory_bytes,
            settings.report_name,
        )
        self.bundles = SiteBundles(store, settings.project, work / "bundles")
        self.presence = PresenceTable()
        self.members = Membership(
            self.registry,
            identity,
            operators,
            settings.site,
            access,
            self.connection.endpoint,
            self.connection.publish,
        )
        self.labels = LabelRegistry(journal.database)
        self.traits = TraitsTable(self.presence, self.members, self.labels)
        self.traffic = LinkTraffic()
        self.faults = Faults()
        self.runner = self._runner()
        connection = self.connection
        self.positions = TreePositions(
            connection,
            Ancestor(domain=identity.domain, server=identity.secret_key.public.text),
        )
        actions = PresenceActions(
            self._presence_changed,
            lambda device_id: self._admission.offer_password(device_id),  # noqa: PLW0108 (below)
            self._raise_epoch,
        )
        self._watch = PresenceWatch(self.presence, self.members, self.connection, actions)
        self.gate = MessageGate(
            self.domain, self.members, self.connection.clear, self._watch.tell_stranger
        )
        self.canaries = Canaries(self.runner.services, self.runner.begin, self.runner.timers.left_s)
        self._admission = DeviceAdmission(
            self.members, self.gate, self.data, self.connection, self._watch.forget
        )
        self._production = ProductionDocuments(
            self.models,
            connection.topics,
            self.epoch,
            connection.publish_retained,
            connection.clear,
        )
        self._urls = SharedUrls(store)
        self.operations = Operations(self._operations_context(identity))
        self._operators = OperatorEndpoint(
            self.operations, self.connection.publish_reply, self.faults
        )
        self._refused = RefusedBodies(self.connection, self.runner, self._operators.refuse)

    def _upkeep(self) -> JournalUpkeep:
        file = self.journal.database.file
        mark = None if file is None else MarkFile(file.with_name(f"{file.name}.mark"))
        retention = self.settings.retention
        return JournalUpkeep(self.journal, self.registry, self.history, retention, mark)

    def _operations_context(self, identity: Identity) -> OperationsContext:
        return OperationsContext(
            domain=self.domain,
            secret=identity.secret_key,
            journal=self.journal,
            store=self.store,
            data=self.data,
            models=self.models,
            bundles=self.bundles,
            members=self.members,
            audit=self.registry,
            presence=self.presence,
            canaries=self.canaries,
            runs=self.runner,
            refused_messages=lambda: self.gate.refused,
            production_changed=self.production_changed,
            offer_password=self._admission.offer_password,
            forget_device=self._admission.forget,
            labels=self.labels,
            traits=self.traits.of,
            traits_changed=self.runner.handle_traits,
            traffic=self.traffic,
            faults=self.faults,
        )

    def _runner(self) -> FlowRunner:
        stream = MqttObserver(self.connection.topics, self.connection.publish)
        watching: list[Observer] = [stream, LogObserver(), self.traffic, *self.settings.observers]
        self._observers = ObserverList(watching)
        parts = RunnerParts(
            self.journal,
            self.history,
            EndedRunReports(self.presence, self.epoch),
            self.data,
            self.bundles,
            self.presence,
            self.connection,
            self._observers,
            self.production_changed,
            self.members.note,
            self.faults,
            self.traits.of,
        )
        return FlowRunner({**FLOW_KINDS, **self.settings.flow_kinds}, parts, self.epoch)

    # --- life ---------------------------------------------------------------------------------

    def start(self, timeout_s: float = 30.0) -> None:
        """Open every journalled run and connect.

        Raises:
            TransportError: the broker cannot be reached within the time, or refused its users.
        """
        self.members.update_broker()
        self.data.read_registry()
        self.runner.restore()
        self.connection.start(timeout_s)

    def run_forever(self) -> None:
        """Own the flows until ``stop``; the caller's thread is the owner."""
        self.runner.resume()
        # behind the reading of the registry
        self.data.start_task(
            lambda: None, lambda _: self._compare_production(), _unexpected, in_order=True
        )
        self.operations.resume()
        self._admission.finish_revocations()
        try:
            while self._turn():
                pass
        finally:
            self._observers.close()
            self.connection.stop()
            self.data.stop()
            self.upkeep.end()
            self.journal.close()

    def stop(self) -> None:
        """Ask the owner to end; any thread may call it, and so may a signal handler."""
        self._inbox.put(_STOP)

    def call(self, work: Callable[[], None]) -> None:
        """Have the owner's thread do something; any thread may call it."""
        self._inbox.put(TaskDone(work))

    def _turn(self) -> bool:
        try:
            item = self._inbox.get(timeout=self._longest_wait_s())
        except queue.Empty:
            item = None
        self.runner.handle_due()
        self._watch.handle_due()
        self._admission.poll_broker()
        self.upkeep.handle_due()
        match item:
            case None:
                pass
            case Delivery():
                self._deliver(item)
            case Connected():
                self._connected()
            case Disconnected():
                _LOG.warning("broker connection lost: %s", item.reason)
            case SessionFault():
                _LOG.error("broker session: %s", item.error)
            case JobDone():
                self._handle_done()
            case TaskDone():
                with self.faults.caught("what follows a task", _LOG.error):
                    item.then()
            case JobCrashed():
                self.runner.handle_crash(item)
            case str():
                return False
        return True

    def _longest_wait_s(self) -> float | None:
        due_s = min(
            self.runner.due_s(),
            self._watch.due_s(),
            self._admission.due_s(),
            self.upkeep.due_s(),
        )
        return None if due_s == math.inf else max(0.0, due_s - time.monotonic())

    def _offer(self, event: SessionEvent) -> bool:
        if self._inbox.qsize() >= _INBOX_MAX:
            return False
        self._inbox.put(event)
        return True

    def _post(self, done: Done) -> None:
        if isinstance(done, JobDone):
            self._done.append(done)
        self._inbox.put(done)

    def _handle_done(self) -> None:
        """Handle every job that has ended by now; each has its own item in the inbox."""
        self.runner.handle_done([self._done.popleft() for _ in range(len(self._done))])

    # --- messages -----------------------------------------------------------------------------

    def _connected(self) -> None:
        self._watch.reconnected()
        self.runner.documents.publish_all()
        self._production.publish_all()

    def _deliver(self, delivery: Delivery) -> None:
        def refuse(reason: str) -> None:
            self.gate.refuse(delivery, PeerError(reason, "internal_error"))

        try:
            with self.faults.caught(f"a message on {delivery.topic}", refuse):
                self._receive(delivery)
        finally:
            # also when this server is about to end by an error: devices send again what has no
            # receipt, and a message that ends the server must not come back at every start
            self.connection.acknowledge(delivery)

    def _receive(self, delivery: Delivery) -> None:
        try:
            verified = self.gate.verify(delivery)
            if verified is not None:
                self._handle(verified)
        except PeerError as error:
            self.gate.refuse(delivery, error)
            if isinstance(error, RefusedBody):
                self._refused.answer(parse(delivery.topic).id, error)

    def _handle(self, verified: VerifiedMessage) -> None:
        sender, message = verified.address.id, verified.message
        match message:
            case Claim():
                clock_off_s = verified.envelope.sent_ms / 1000 - time.time()
                self._admission.claim(sender, message, clock_off_s)
            case DeviceState():
                self._watch.apply(sender, message, retained=verified.retained)
                self.positions.note(sender, message)
            case DeviceInfo():
                self.presence.store_info(sender, message)
                self.runner.handle_traits(sender)
                self.settings.presence_changed()
            case DeviceHealth() | DataReport():
                self.presence.store_report(sender, message)
            case Result():
                self._result(sender, message)
            case Decline():
                place = (sender, message.action, message.round, message.attempt)
                why = (message.reason, message.phase, message.seq)
                kinds = (message.unusable, message.permanent)
                self.runner.handle(message.run_id, DeviceDeclined(*place, *why, *kinds))
                self.presence.store_decline(sender, message, time.time())
            case Request():
                place = (sender, message.action, message.round, message.attempt)
                name = (message.phase, message.seq)
                self.runner.handle(message.run_id, OrderRequested(*place, *name))
            case PasswordKept():
                self._admission.password_kept(sender, message)
            case ModelRequest():
                offer = self._production.offer(message, self._urls)
                if offer is not None:
                    self.connection.publish(self.connection.topics.device(sender, "task"), offer)
            case Progress():
                _LOG.debug("progress of %s: %s", sender, message)
            case OperatorRequest():
                self._operators.handle(sender, message)

    def _presence_changed(
        self, event: DeviceJoined | DeviceBusy | DeviceLeft, state: DeviceState | None
    ) -> None:
        self.runner.handle_presence(event, state)
        self.settings.presence_changed()

    def _raise_epoch(self, obeyed: int) -> None:
        """Go on above an epoch that a device has obeyed, and say all again with the new one."""
        self.epoch = epoch = self.journal.next_epoch(above=obeyed)
        self.data.in_order(lambda: self._epochs.write(epoch))
        self.connection.epoch = self.runner.epoch = self._production.epoch = epoch
        self._connected()

    def _result(self, device_id: str, message: Result) -> None:
        if self.runner.find(message.run_id) is None:
            self.connection.publish_receipt(
                device_id, receipt_without_flow(message, is_known=self.runner.knows(message.run_id))
            )
            return
        self.runner.handle(message.run_id, answer_of(device_id, message))

    # --- production ---------------------------------------------------------------------------

    def production_changed(self, task: str) -> None:
        """Tell the devices and the flows what is in production of a task by now."""
        self._production.publish(task)
        version = self.models.production(task)
        moved = ProductionMoved("" if version is None else version.name)
        self.runner.handle_of_task(task, moved)

    def _compare_production(self) -> None:
        """Publish what the registry says after a restart, and compare it with the journal."""
        unknown = self.journal.unknown(self.models.runs())
        if unknown:
            _LOG.warning(
                "the store holds versions of %d runs that the journal does not know, %s among "
                "them: it was lost, or an older one came back; if there is a later backup, put it "
                "back before devices enrol again",
                len(unknown),
                unknown[-1],
            )
        self._production.publish_all()
        for task in sorted({flow.task for flow in self.runner.flows.values() if not flow.ended}):
            self.production_changed(task)


def _unexpected(error: RengoError) -> None:
    _LOG.error("a task that cannot fail has failed: %s", error)
