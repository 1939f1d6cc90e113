"""The device's daemon: one owner thread and a bounded inbox around the session machine.

Network and files are on other threads and processes, whose ends come back as events: paho's
thread for the broker, one transfer thread for the store, the training child for the work.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from broker.session.endpoint import Endpoint
from broker.session.inbox import Connected, Disconnected, SessionEvent, SessionFault
from broker.session.outbox import Outbox, OutboxDamaged
from broker.session.publication import Delivery
from broker.session.session import MqttSession
from broker.wire.messages import (
    Envelope,
    Message,
    ModelOffer,
    NewPassword,
    Order,
    ProductionDocument,
    Receipt,
    RunDocument,
    ServerState,
    decode,
)
from broker.wire.topics import parse
from fl_client.agent.messages import DeviceMessages
from fl_client.agent.presence import PresenceDebouncer
from fl_client.agent.resource_policy import ResourcePolicy, Unbounded
from fl_client.agent.status import about, gains, is_known, needed, standing
from fl_client.agent.status_server import Question, StatusServer
from fl_client.agent.worker import TrainingWorker
from fl_client.bundles.store import DeviceBundles
from fl_client.collectors.owned import OwnData
from fl_client.identity.credentials import DeviceCredentials
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.journal import JobJournal, JobJournalDamaged
from fl_client.jobs.transfer_thread import TransferCrashed, TransferThread, UrlsAsked
from fl_client.machine.accelerators import for_orders
from fl_client.machine.hardware import available_engines
from fl_client.production.folder import ProductionFolder
from fl_client.production.follower import DownloadEnded, ProductionFollower
from fl_client.session.events import (
    CancelJob,
    Command,
    DoWork,
    Event,
    FetchModel,
    ForgetJob,
    Job,
    JobFailed,
    JobKey,
    KeepJob,
    ModelFetched,
    OrderArrived,
    Presence,
    PublishState,
    ReceiptArrived,
    RenewUrls,
    RunChanged,
    SendDecline,
    SendResult,
    ServerChanged,
    UpdateUploaded,
    UploadUpdate,
)
from fl_client.session.machine import DeviceSession
from fl_client.settings import AgentSettings
from fl_client.tasks.listing import resolve
from fl_client.training.child import ChildProgressed
from runtime.errors import AuthenticationFailed, ConfigError, MissingExtra, PeerError
from runtime.security.identity import Identity
from runtime.sqlite import opened_or_begun_anew
from storage.transfer.files import Transfers

_LOG = logging.getLogger(__name__)
_INBOX_MAX = 1000
_ENDED = frozenset({"completed", "stopped", "failed"})
_CLOSED_PHASES = frozenset({"aggregating", "evaluating", "ended"})
_STOP = "stop"
_LOST_OUTBOX = "results that were not receipted are sent again from the journal of jobs"
_LOST_JOBS = "what the server has no result of it asks for again"


class Agent:
    """One device. ``run_forever`` is the owner thread and must outlive the training child.

    Raises:
        ConfigError: a task is not there, the data folder is in use or of another version.
    """

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        desk: StatusServer | None = None,
        steward: ResourcePolicy | None = None,
    ) -> None:
        if identity.role != "device":
            raise ConfigError(
                f"identity {identity.id} is a {identity.role}'s, an agent needs a device's"
            )
        references = [resolve(spec) for spec in settings.tasks]
        specs = {reference.name: reference.spec for reference in references}
        engine = settings.engine
        if engine == "auto":
            engine = "torch" if "torch" in available_engines() else "numpy"
        elif engine not in available_engines():
            raise MissingExtra(engine, engine)
        accelerators = for_orders(settings.accelerators, profile=settings.family, engine=engine)
        self._tasks = sorted(specs)
        self._data = OwnData(identity.id, settings, specs)
        # a SimpleQueue's put is reentrant, so that a signal handler may call stop()
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._folder = DeviceFolder(settings.data_dir)
        self._outbox = opened_or_begun_anew(
            Outbox, settings.data_dir / "outbox.sqlite", OutboxDamaged, _LOST_OUTBOX
        )
        self._worklog = opened_or_begun_anew(
            JobJournal, settings.data_dir / "jobs.sqlite", JobJournalDamaged, _LOST_JOBS
        )
        self._machine = DeviceSession()
        self._was_connected = False
        self._desk = desk or StatusServer()
        self._steward: ResourcePolicy = steward or Unbounded()
        self._seen_orders: dict[int, None] = {}
        self._calm = PresenceDebouncer()
        self._keyring = DeviceCredentials(settings.identity, identity)
        transfers = Transfers(tls=identity.store_trust, count_bytes=self._steward.count_bytes)
        self._bundles = DeviceBundles(
            settings.bundles,
            settings.data_dir / "bundles",
            transfers,
            specs,
            self._steward.memory_bytes(),
        )
        self._carrier = TransferThread(
            transfers, self._folder, self._bundles, frozenset(self._tasks), self._inbox.put
        )
        self._workshop = TrainingWorker(
            identity.id,
            settings,
            engine,
            self._bundles,
            self._folder,
            self._inbox.put,
            self._steward,
            accelerators,
        )
        self._voice = DeviceMessages(identity, settings, engine, self._tasks, accelerators)
        self._about = {**self._voice.about(), **about(settings, engine, self._tasks)}
        self._follower = ProductionFollower(
            ProductionFolder(settings.data_dir, self._keyring.server),
            self._keyring.server,
            self._tasks,
            transfers,
            lambda *wanted: self._session.publish(self._voice.model_request(*wanted)),
            self._carrier.do,
            self._steward.download_refusal,
        )
        self._session = MqttSession(
            Endpoint.of(identity),
            self._voice.subscriptions(),
            self._offer,
            will=self._voice.will,
            outbox=self._outbox,
            count_bytes=self._steward.count_bytes,
        )

    # --- life ---------------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Serve until ``stop``."""
        self._session.start()
        self._desk.open(self._folder.root, self._inbox.put)
        self._data.start()
        try:
            self._do(self._machine.restore(*self._kept_jobs()))
            while self._turn():
                pass
        finally:
            self._desk.close()
            self._data.stop()
            self._carrier.cancel_all()
            self._follower.stop()
            self._workshop.cancel()
            self._workshop.close("the agent stops")
            self._session.stop(self._voice.state("offline"))
            self._carrier.stop()
            self._steward.close()
            self._worklog.close()
            self._outbox.close()

    def _kept_jobs(self) -> tuple[list[Job], list[JobKey]]:
        """Return the kept jobs whose update is still what was written; forget the others.

        With them the jobs, known or not, whose result and state wait for a receipt.
        """
        whole, reported = [], self._voice.keys_in(self._outbox)
        for kept in self._worklog.jobs():
            # of the two files the outbox is the one that a power cut takes nothing from
            job = replace(kept, stage="reporting") if kept.key in reported else kept
            if job.stage == "reporting" or self._folder.is_whole(job):
                whole.append(job)
            else:
                _LOG.warning("the update of %s did not survive; it is trained again", job.key)
                self._worklog.forget(job.key)
                self._folder.settle(job.key, accepted=False)
        self._folder.sweep({job.key for job in whole} | reported)
        return whole, [key for key in reported if self._folder.next_state(key).exists()]

    def stop(self) -> None:
        """Ask the owner to end; any thread may call it, and so may a signal handler."""
        self._inbox.put(_STOP)

    def _turn(self) -> bool:
        try:
            item = self._inbox.get(timeout=self._patience_s())
        except queue.Empty:
            if self._workshop.idle_left_s() == 0:
                self._workshop.close("idle")
            item = None
        self._desk.turned(time.monotonic())
        self._say(self._calm.overdue(time.monotonic()))
        self._follower.poll(time.monotonic())
        self._tell_health(self._steward.poll(time.monotonic()))
        match item:
            case None:
                pass
            case Delivery():
                self._deliver(item)
            case Connected():
                self._was_connected = True
                self._desk.connected(self._voice.place)
                self._admitted()
                self._session.publish(self._voice.info())
                self._session.publish(self._voice.state(self._machine.presence))
                self._calm.said(self._machine.presence)
                self._tell_health(self._steward.health())
                self._tell_data(self._data.latest())
            case Disconnected():
                self._desk.disconnected(item.reason)
                _LOG.warning("broker connection lost: %s", item.reason)
            case SessionFault():
                if isinstance(item.error, AuthenticationFailed) and not self._was_connected:
                    raise item.error  # a wrong password at the start is a person's to mend
                self._desk.faulted(str(item.error))
                _LOG.error("broker session: %s", item.error)
            case ModelFetched() | UpdateUploaded() | JobFailed():
                self.handle(item)
            case DownloadEnded():
                self._follower.on_ended(item)
            case UrlsAsked():
                self._session.publish(self._voice.request(item.key))
            case TransferCrashed():
                self._crashed(item)
            case Question():
                return not self._desk.answer(item, self._standing())
            case str():
                return item != _STOP
            case _:
                self._worked(item)
        return True

    def _crashed(self, crash: TransferCrashed) -> None:
        _LOG.error("a transfer crashed", exc_info=crash.error)
        if crash.what is not None:
            self.handle(JobFailed(crash.what, f"internal error: {crash.error!r}"[:2000]))

    def _patience_s(self) -> float | None:
        now_s = time.monotonic()
        waits = (
            self._workshop.idle_left_s(),
            self._calm.left_s(now_s),
            self._follower.left_s(now_s),
            self._desk.left_s(now_s),
            self._steward.left_s(now_s),
        )
        return min((each for each in waits if each is not None), default=None)

    def _standing(self) -> dict[str, Any]:
        child = self._workshop.child_pid
        now = standing(self._machine, len(self._outbox), child)
        return {**self._about, **now, "steward": self._steward.status()}

    def _tell_health(self, health: Message | None) -> None:
        if health is not None:
            self._session.publish(self._voice.health(health))

    def _tell_data(self, report: Message | None) -> None:
        if report is not None:
            self._session.publish(self._voice.data(report))

    def _offer(self, event: SessionEvent) -> bool:
        if self._inbox.qsize() >= _INBOX_MAX:
            return False
        self._inbox.put(event)
        return True

    def _worked(self, item: object) -> None:
        event = self._workshop.translate(item)
        if isinstance(event, ChildProgressed):
            self._session.publish(self._voice.progress(event.job, event.fraction, event.loss))
        elif event is not None:
            self.handle(event)
            self._tell_data(self._data.changed())

    # --- messages -----------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        try:
            address = parse(delivery.topic)
            if delivery.payload:
                envelope, message = decode(delivery.payload, address, self._keyring.server)
                if isinstance(message, Order):
                    self._require_new(message, envelope)
                    self._bundles.set_server_time(envelope.sent_ms)
                self._take(message)
        except PeerError as error:
            _LOG.warning("refused a message on %s: %s", delivery.topic, error)
        self._session.ack(delivery)

    def _require_new(self, order: Order, envelope: Envelope) -> None:
        """Raise PeerError for an order that came before: the server numbers what it says anew."""
        # as one number, of which a thousand take half of what pairs would
        said = order.epoch << 64 | envelope.seq
        if said in self._seen_orders:
            raise PeerError("this very order came before", "replayed")
        self._seen_orders[said] = None
        if len(self._seen_orders) > _INBOX_MAX:
            del self._seen_orders[next(iter(self._seen_orders))]

    def _take(self, message: Message) -> None:
        match message:
            case Order():
                self.handle(OrderArrived(message, self._refusal(message)))
            case Receipt():
                if message.status != "accepted":
                    _LOG.warning("result refused: %s", message)
                self._receipted(message)
            case RunDocument():
                self._run_changed(message)
            case ServerState():
                self.handle(ServerChanged(message.epoch))
            case ProductionDocument():
                self._follower.on_document(message)
            case ModelOffer():
                self._follower.on_offer(message)
            case NewPassword():
                self._passwords_changed(
                    self._keyring.store_password(message.rotation, message.sealed)
                )
                self._session.publish(self._voice.password_kept(message.rotation))

    def _admitted(self) -> None:
        identity = self._keyring.confirm_password(self._session.endpoint.password)
        if identity is not None:
            _LOG.info("the password was rotated")
        self._passwords_changed(identity)

    def _passwords_changed(self, identity: Identity | None) -> None:
        if identity is not None:
            self._session.set_endpoint(Endpoint.of(identity))

    def _receipted(self, receipt: Receipt) -> None:
        key = JobKey.of(receipt)
        if key not in self._machine.reporting:
            # a power cut may leave a result in the outbox whose job is gone
            active = self._machine.active
            if active is None or active.key != key:
                self._folder.settle_orphan(key, accepted=self._machine.counts(receipt))
            # the files first, as in ``_forget``: without its result nothing says whose a state is
            self._session.confirm(self._voice.outbox_key(key))
        else:
            gained = gains(self._machine.reporting[key])
            self._desk.ended(key, status=receipt.status, **gained)
        self.handle(ReceiptArrived(receipt))

    def _run_changed(self, document: RunDocument) -> None:
        ended = document.status in _ENDED
        event = RunChanged(
            document.run_id,
            document.epoch,
            ended,
            document.round,
            document.attempt,
            document.phase in _CLOSED_PHASES,
        )
        self.handle(event)
        if ended:
            self._carrier.forget_models(document.run_id)
            self._folder.forget_state(document.run_id)
        if ended and self._machine.active is None:
            self._workshop.run_ended(document.run_id)

    def _refusal(self, order: Order) -> str:
        if order.task not in self._tasks and (reason := self._bundles.refusal(order)):
            installed = ", ".join(self._tasks)
            return f"task {order.task!r} is not installed here (installed: {installed}), {reason}"
        key = JobKey.of(order)
        if self._desk.held and not is_known(self._machine, key):
            return self._desk.held
        if order.action != "exchange" and (order.action == "train") != (order.upload is not None):
            return "an order to train needs an upload, an order to evaluate has none"
        if is_known(self._machine, key):
            return ""
        return self._steward.refusal(order, needed(order, self._machine, self._folder))

    def handle(self, event: Event) -> None:
        """Give an event to the machine and carry out its commands."""
        self._do(self._machine.handle(event))

    # --- commands -----------------------------------------------------------------------------

    def _do(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case FetchModel():
                    self._fetch(command.job)
                case DoWork():
                    self._workshop.submit(command.job)
                case UploadUpdate():
                    self._upload(command.job)
                case SendResult():
                    spent = self._carrier.spent(command.job.key)
                    self._voice.send_result(self._session, command.job, spent)
                case SendDecline():
                    _LOG.warning("declined %s: %s", command.key, command.reason)
                    self._desk.declined(command.key, command.reason)
                    self._session.publish(self._voice.decline(command))
                case RenewUrls():
                    self._carrier.renew(command.job)
                case CancelJob():
                    self._follower.interrupt()
                    self._carrier.cancel(command.key)
                    self._workshop.cancel()
                case KeepJob():
                    self._worklog.keep(command.job)
                case ForgetJob():
                    self._forget(command)
                case PublishState():
                    self._say(self._calm.want(command.presence, time.monotonic()))

    def _say(self, presence: Presence | None) -> None:
        if presence is not None:
            self._session.publish(self._voice.state(presence))

    def _fetch(self, job: Job) -> None:
        if job.order.model is not None:
            self._desk.store_at(job.order.model.url)
        self._follower.interrupt()
        self._carrier.fetch(job)

    def _upload(self, job: Job) -> None:
        self._follower.interrupt()
        self._carrier.upload(job)

    def _forget(self, command: ForgetJob) -> None:
        # the files first: what a cut leaves undone is done again at the next receipt
        active = self._machine.active
        self._folder.settle(command.key, accepted=command.accepted, active=active)
        self._worklog.forget(command.key)
        self._session.confirm(self._voice.outbox_key(command.key))
        self._carrier.forget(command.key)
