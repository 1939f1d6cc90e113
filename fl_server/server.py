"""The server's shell: one owner thread, a bounded inbox, and nothing decided here.

Messages, timers and finished jobs come into the inbox; the owner gives them to the machines,
journals the facts, and only then acknowledges the message and carries out the commands. After any
gap (restart, lost broker) the truth comes from the journal and from the devices' retained
presence.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.brokers.access_control import AccessControl, RefusedConnection
from broker.session.endpoint import Endpoint
from broker.session.inbox import Connected, Disconnected, SessionEvent, SessionFault
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import (
    Claim,
    DataReport,
    Decline,
    DeviceHealth,
    DeviceInfo,
    DeviceState,
    Message,
    ModelRequest,
    OperatorReply,
    OperatorRequest,
    Order,
    PasswordKept,
    Progress,
    Receipt,
    Request,
    Result,
    ServerState,
)
from broker.wire.topics import Topics
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.orders import Ordering
from fl_server.dataplane.plane import DataPlane, Done, JobCrashed, JobDone, TaskDone
from fl_server.deployment.canary_log import CanaryLog
from fl_server.deployment.production import ProductionDocuments, SharedUrls
from fl_server.deployment.service import Canaries, CanaryContext
from fl_server.members.gate import MessageGate, VerifiedMessage
from fl_server.members.membership import Membership, SiteInfo
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import DeviceRecord
from fl_server.members.store import MemberRegistry
from fl_server.operations.mqtt import OperatorEndpoint
from fl_server.operations.runs import Operations
from fl_server.persistence.journal import Journal, RunRecord
from fl_server.persistence.manifest_cache import DocumentTable
from fl_server.rounds.events import (
    ArmTimer,
    Command,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    EvaluationReceived,
    Event,
    FailureReported,
    OrderRequested,
    ResultReceived,
    SendOrder,
    SendReceipt,
    SweepRun,
    TimerFired,
    Update,
    UpdateAccepted,
    UpdateRejected,
    UpdateVerified,
)
from fl_server.rounds.machine import Step
from fl_server.runs.active import URL_LIFETIME_S, ActiveRun
from fl_server.runs.documents import RunDocuments
from fl_server.runs.timers import Timers
from runtime.errors import PeerError, RengoError
from runtime.security.identity import Identity
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore

_LOG = logging.getLogger(__name__)
_INBOX_MAX = 10_000
_LOOK_AT_BROKER_EVERY_S = 5.0
_STOP = "stop"


@dataclass(frozen=True)
class ServerSettings:
    """What the server's shell must know beside its parts."""

    data_dir: Path
    site: SiteInfo
    project: str = "default"
    spool_memory_bytes: int = 64 << 20


class Server:
    """Coordinates every run of one domain. ``run_forever`` is the owner thread.

    Attributes:
        epoch: grows at every start; devices obey no order of an older one.
        reception: who is listened to, and what was refused.
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
        self.epoch = journal.next_epoch()
        self.presence = PresenceTable()
        self.runs: dict[str, ActiveRun] = {}
        self._topics = Topics(identity.domain)
        # a SimpleQueue's put is reentrant, so that a signal handler may call stop()
        self._inbox: queue.SimpleQueue[SessionEvent | Done | str] = queue.SimpleQueue()
        # the jobs in the inbox that ended, to be taken together
        self._done: deque[JobDone] = deque()
        self.models = ModelRegistry(
            store, settings.project, identity.secret_key, DocumentTable(journal.database)
        )
        self.data = DataPlane(
            store,
            self.models,
            settings.data_dir / "work",
            self._post,
            settings.spool_memory_bytes,
        )
        self._author = MessageSigner(identity.id, identity.secret_key)
        self.bundles = SiteBundles(store, settings.project, settings.data_dir / "work" / "bundles")
        self._ordering = Ordering(self.data, self.bundles, self._publish_order, self.epoch)
        endpoint = Endpoint.of(identity)
        self.registry = MemberRegistry(journal.database)
        self.members = Membership(
            self.registry, identity, operators, settings.site, access, endpoint, self._publish
        )
        self._urls = SharedUrls(store)
        self._production = ProductionDocuments(
            self.models, self._topics, self.epoch, self._publish_retained, self._clear
        )
        house = CanaryContext(
            self._topics,
            self.epoch,
            self.data,
            self.bundles,
            self.presence,
            self._publish,
            self.production_changed,
            self.members.note,
        )
        self.canaries = Canaries(house, CanaryLog(journal.database))
        self._desk = OperatorEndpoint(Operations(self), self.data, self._reply)
        self.reception = MessageGate(self.domain, self.members, self._clear)
        self._documents = RunDocuments(
            self.runs, self._topics, self.epoch, self._publish_retained, self._clear
        )
        self._timers = Timers()
        self._look_due_s = time.monotonic() + _LOOK_AT_BROKER_EVERY_S
        self._session = MqttSession(
            endpoint, self._subscriptions(), self._offer, will=self._presence_publication("offline")
        )

    def _subscriptions(self) -> list[str]:
        device = [
            self._topics.device("+", leaf)
            for leaf in ("state", "info", "health", "data", "ack", "progress", "result", "request")
        ]
        return [*device, self._topics.operator("+", "request"), self._topics.enroll("+")]

    # --- life ---------------------------------------------------------------------------------

    def start(self, timeout_s: float = 30.0) -> None:
        """Take up every journalled run and connect.

        Raises:
            TransportError: the broker cannot be reached within the time, or refused its users.
        """
        self.members.settle()
        self.data.read_registry()
        for record in self.journal.runs():
            facts = self.journal.facts(record.run_id)
            keys = self.data.keys(record.run_id)
            run = ActiveRun.from_journal(record, facts, keys)
            self.runs[record.run_id] = run
            self.data.open_run(record)
            # the process may have ended between the commit and this
            self.data.record(record, run.lineage.latest, restarted=True)
        self._session.start()
        self._session.wait_connected(timeout_s)

    def run_forever(self) -> None:
        """Own the machines until ``stop``; the caller's thread is the owner."""
        for run in list(self.runs.values()):
            self._carry_out(run, run.machine.resume())
        self.canaries.resume()
        # behind the reading of the registry
        self.data.start_task(
            _do_nothing, lambda _: self._say_production(), _not_settled, in_order=True
        )
        for device in self.members.half_revoked():
            self._forget_later(device)
        try:
            while self._turn():
                pass
        finally:
            self._session.stop(self._presence_publication("offline"))
            self.data.stop()
            self.journal.close()

    def stop(self) -> None:
        """Ask the owner to end; any thread may call it, and so may a signal handler."""
        self._inbox.put(_STOP)

    def _turn(self) -> bool:
        try:
            item = self._inbox.get(timeout=self._patience_s())
        except queue.Empty:
            item = None
        self._fire_timers()
        self.canaries.look_at_clock()
        self._documents.publish_due()
        self._look_at_broker()
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
                self._take_done()
            case TaskDone():
                item.then()
            case JobCrashed():
                self._job_crashed(item)
            case _:
                return False
        return True

    def _offer(self, event: SessionEvent) -> bool:
        if self._inbox.qsize() >= _INBOX_MAX:
            return False
        self._inbox.put(event)
        return True

    def _post(self, done: Done) -> None:
        if isinstance(done, JobDone):
            self._done.append(done)
        self._inbox.put(done)

    # --- runs ---------------------------------------------------------------------------------

    def start_run(self, record: RunRecord) -> None:
        """Journal a new run and invite the devices that are there."""
        self.journal.add_run(record)
        run = ActiveRun.from_journal(record, (), self.data.keys(record.run_id))
        self.runs[record.run_id] = run
        self.data.open_run(record)
        self.data.record(record, run.lineage.latest)
        _LOG.info("run %s starts: %d rounds", record.run_id, record.plan.rounds)
        self._documents.publish(run)
        definition = record.definition
        for device in self.presence.online(definition.task, bundled=definition.bundled):
            accepting = device.state.status != "draining"
            self.handle(run, DeviceJoined(device.id, device.state.role, accepting))

    def handle(self, run: ActiveRun, *events: Event) -> None:
        """Give events to a run's machine, journal their facts at once, carry out the commands."""
        self._carry_out(run, *(run.machine.handle(event) for event in events))

    def _take_done(self) -> None:
        """Take every job that has ended by now: verified updates share a write to the disk."""
        done = [self._done.popleft() for _ in range(len(self._done))]
        for (run_id, _), together in itertools.groupby(done, _together):
            run = self.runs.get(run_id)
            if run is not None:
                self.handle(run, *(each.event for each in together))

    def _carry_out(self, run: ActiveRun, *steps: Step) -> None:
        self.journal.append(run.record.run_id, [fact for step in steps for fact in step.facts])
        for step in steps:
            self._follow(run, step)

    def _follow(self, run: ActiveRun, step: Step) -> None:
        for fact in step.facts:
            commit = run.lineage.take(fact)
            if commit is not None:
                self.data.record(run.record, commit)
            event = run.event(fact)
            # one line a round, not one a device
            level = logging.DEBUG if isinstance(fact, UpdateAccepted) else logging.INFO
            _LOG.log(level, "run %s: %s %s", event.run_id, event.name, event.detail)
            self._publish(self._topics.run(event.run_id, "events"), event)
        for command in step.commands:
            self._do(run, command)
        if step.facts:
            self._documents.changed(run)

    def _do(self, run: ActiveRun, command: Command) -> None:
        match command:
            case SendOrder():
                self._ordering.send(run, command)
            case SendReceipt():
                receipt = Receipt(
                    action=command.action,
                    run_id=run.record.run_id,
                    round=command.round,
                    attempt=command.attempt,
                    status=command.status,
                    reason=command.reason[:2000],
                )
                self._publish(self._topics.device(command.device_id, "receipt"), receipt)
            case ArmTimer():
                if command.timer == "deadline":
                    run.deadline_armed(command)
                self._timers.arm(run.record.run_id, command)
            case SweepRun():
                ledger = run.machine.ledger
                measured = {version: ledger.metrics(version) for version in ledger.evaluations}
                self.data.measure(run.record.run_id, measured)
                self.data.carry_out(run.record.run_id, command, ledger.model)
                self._sweep_again(run)
            case _:
                self.data.carry_out(run.record.run_id, command, run.machine.ledger.model)

    def _sweep_again(self, run: ActiveRun) -> None:
        """Sweep once more when no upload URL of the run can be alive."""
        ledger = run.machine.ledger
        later = ArmTimer("sweep", ledger.round, ledger.attempt, URL_LIFETIME_S + 60.0)
        self._timers.arm(run.record.run_id, later)

    def _job_crashed(self, crash: JobCrashed) -> None:
        _LOG.error("a job crashed", exc_info=crash.error)
        run = self.runs.get(crash.run_id)
        if run is not None and not run.ended:
            error = f"{type(crash.error).__name__}: {crash.error}"
            self.handle(run, FailureReported(f"internal error in the data plane: {error}"))

    # --- timers -------------------------------------------------------------------------------

    def _patience_s(self) -> float | None:
        clocks = (self._timers, self.canaries, self._documents)
        due_s = min(self._look_due_s, *(each.due_s() for each in clocks))
        return None if due_s == math.inf else max(0.0, due_s - time.monotonic())

    def _look_at_broker(self) -> None:
        """Have the broker asked, on a thread, whom it did not let in."""
        if time.monotonic() < self._look_due_s:
            return
        self._look_due_s = math.inf  # until this look has ended
        self.data.start_task(self.members.refused_connections, self._looked, self._not_told)

    def _not_told(self, error: RengoError) -> None:
        _LOG.error("the broker does not tell whom it refused: %s", error)
        self._looked(Counter())

    def _looked(self, refused: Counter[RefusedConnection]) -> None:
        self._look_due_s = time.monotonic() + _LOOK_AT_BROKER_EVERY_S
        if refused:
            self.reception.refused["connection"] += refused.total()
            self.members.note_refused(refused)

    def _fire_timers(self) -> None:
        for run_id, command in self._timers.fired():
            run = self.runs[run_id]
            if command.timer == "sweep":
                self.data.carry_out(run_id, SweepRun(), run.machine.ledger.model)
            else:
                self.handle(run, TimerFired(command.timer, command.round, command.attempt))

    # --- messages -----------------------------------------------------------------------------

    def _connected(self) -> None:
        self.presence.reconnected()
        self._session.publish(self._presence_publication("online"))
        self._documents.publish_all()
        self._production.publish_all()

    def _deliver(self, delivery: Delivery) -> None:
        try:
            heard = self.reception.hear(delivery)
            if heard is not None:
                self._take(heard)
        except PeerError as error:
            self.reception.refuse(delivery, error)
        finally:
            # also when this server is about to fall: what matters is said again until its receipt,
            # and a message that fells it must not come back at every start
            self._session.ack(delivery)

    def _take(self, heard: VerifiedMessage) -> None:
        address, message = heard.address, heard.message
        match message:
            case Claim():
                self._claim(address.id, message, heard.envelope.sent_ms / 1000 - time.time())
            case DeviceState():
                self._device_state(address.id, message)
            case DeviceInfo():
                self.presence.take_info(address.id, message)
            case DeviceHealth() | DataReport():
                self.presence.take_report(address.id, message)
            case Result():
                self._result(address.id, message)
            case Decline():
                self._declined(address.id, message)
            case PasswordKept():
                if self.members.password_kept(address.id, message):
                    self.data.start_task(self.members.settle, _nothing, _not_settled)
            case ModelRequest():
                offer = self._production.offer(message, self._urls)
                if offer is not None:
                    self._publish(self._topics.device(address.id, "task"), offer)
            case Request() if self.canaries.knows(message.run_id):
                self.canaries.request(address.id, message)
            case Request():
                self.handle(
                    self._run_of(message),
                    OrderRequested(address.id, message.action, message.round, message.attempt),
                )
            case Progress():
                _LOG.debug("progress of %s: %s", address.id, message)
            case OperatorRequest():
                self._desk.take(address.id, message)

    # --- members ------------------------------------------------------------------------------

    def _claim(self, token_id: str, claim: Claim, clock_off_s: float) -> None:
        answer = self.members.claim(token_id, claim, clock_off_s)
        topic = self._topics.enroll(token_id, "result")
        self.data.start_task(
            self.members.settle, lambda _: self._publish(topic, answer), _not_settled
        )

    def _forget_later(self, device: DeviceRecord) -> None:
        self.data.start_task(
            lambda: self.members.cut_off(device), lambda _: self.forget(device), _not_settled
        )

    def forget(self, device: DeviceRecord) -> None:
        """Take a revoked device, which the broker has forgotten, out of everything here."""
        self.members.is_cut_off(device)
        for leaf in ("state", "info", "health", "data"):
            self._clear(self._topics.device(device.id, leaf))
        self.presence.forget(device.id)
        for run in self.runs.values():
            if not run.ended:
                self.handle(run, DeviceLeft(device.id))
        self.canaries.heard_of(DeviceLeft(device.id))

    def _device_state(self, device_id: str, state: DeviceState) -> None:
        if state.status == "ready":
            self.members.offer_password(device_id)
        event = self.presence.take_state(device_id, state)
        if event is None:
            return
        for run in self.runs.values():
            definition = run.record.definition
            concerns = state.can_run(definition.task, bundled=definition.bundled)
            if not run.ended and (concerns or not isinstance(event, DeviceJoined)):
                self.handle(run, event)
        self.canaries.heard_of(event, state)

    def _declined(self, device_id: str, message: Decline) -> None:
        if self.canaries.knows(message.run_id):
            self.canaries.declined(device_id, message)
            return
        place = (device_id, message.action, message.round, message.attempt)
        event = DeviceDeclined(*place, message.reason, message.unusable)
        self.handle(self._run_of(message), event)

    def _result(self, device_id: str, message: Result) -> None:
        if self.canaries.knows(message.run_id):
            self.canaries.result(device_id, message)
            return
        run = self.runs.get(message.run_id)
        if run is None or message.action == "exchange":
            self._unknown_run(device_id, message)
            return
        place = (device_id, message.round, message.attempt)
        usage: dict[str, float] = message.usage.model_dump()
        if message.action == "evaluate":
            self.handle(
                run, EvaluationReceived(*place, message.num_examples, message.metrics, usage)
            )
            return
        update, fault = _reported(
            message, run.keys.update(message.round, message.attempt, device_id)
        )
        self.handle(run, ResultReceived(*place, update, fault))

    def _unknown_run(self, device_id: str, message: Result) -> None:
        receipt = Receipt(
            action=message.action,
            run_id=message.run_id,
            round=message.round,
            attempt=message.attempt,
            phase=message.phase,
            seq=message.seq,
            status="unknown",
            reason="no such run here",
        )
        self._publish(self._topics.device(device_id, "receipt"), receipt)

    def _run_of(self, message: Decline | Request) -> ActiveRun:
        run = self.runs.get(message.run_id)
        if run is None or message.action == "exchange":
            raise PeerError("a message about a run that is not here", "unknown_run")
        return run

    # --- production ---------------------------------------------------------------------------

    def production_changed(self, task: str) -> None:
        """Tell the devices and the canaries what is in production of a task by now."""
        self._production.publish(task)
        self.canaries.production_changed(task)

    def _say_production(self) -> None:
        self._production.publish_all()
        self.canaries.compare_production()

    # --- publishing ---------------------------------------------------------------------------

    def _publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        """Send now or never: whoever misses it asks again or finds it in a retained document."""
        self._session.publish(self._author.sign(topic, message, retain=retain))

    def _publish_retained(self, topic: str, message: Message) -> None:
        self._publish(topic, message, retain=True)

    def _publish_order(self, device_id: str, order: Order) -> None:
        self._publish(self._topics.device(device_id, "task"), order)

    def _reply(self, operator_id: str, reply: OperatorReply) -> None:
        self._publish(self._topics.operator(operator_id, "reply"), reply)

    def _clear(self, topic: str) -> None:
        """Remove a retained document."""
        self._session.publish(Publication(topic, b"", retain=True))

    def _presence_publication(self, status: str) -> Publication:
        state = ServerState.model_validate({"status": status, "epoch": self.epoch})
        return self._author.sign(self._topics.server_state, state, retain=True)


def _together(done: JobDone) -> tuple[str, int]:
    """Return what a job shares with those that may be taken with it: none moves its run's model."""
    is_verified = isinstance(done.event, UpdateVerified | UpdateRejected)
    return done.run_id, 0 if is_verified else id(done)


def _do_nothing() -> None:
    """What comes after it matters."""


def _nothing(_: object) -> None:
    """There is nobody to tell."""


def _not_settled(error: RengoError) -> None:
    _LOG.error("the broker has not taken a change of its users: %s", error)


def _reported(message: Result, own_key: str) -> tuple[Update, str]:
    """Return the update under the device's own key, and what is wrong with the report, if any."""
    reference = message.update
    fault = ""
    if reference is None:
        fault = "the result names no update"
    elif reference.key != own_key:
        fault = f"the result names {reference.key}, which is not this device's own key"
    update = Update(
        own_key,
        0 if reference is None else reference.size_bytes,
        "" if reference is None else reference.header_sha256,
        message.num_examples,
        message.metrics,
        message.usage.model_dump(),
    )
    return update, fault
