"""Checks the messages that arrive at a device, and passes each to the part that handles it."""

from __future__ import annotations

import logging

from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery
from broker.wire.messages import (
    IdentityNotice,
    Message,
    ModelOffer,
    NewPassword,
    Order,
    ProductionDocument,
    Receipt,
    RunDocument,
    ServerState,
    TreePosition,
    decode,
)
from broker.wire.topics import parse
from fl_client.agent.parts import AgentParts
from fl_client.agent.session_runner import SessionRunner
from fl_client.agent.status.document import result_document
from fl_client.session.events import (
    JobKey,
    OrderArrived,
    ReceiptArrived,
    RunChanged,
    ServerChanged,
)
from runtime.errors import PeerError
from runtime.security.identity import Identity

_LOG = logging.getLogger(__name__)
_PROBLEMS = {
    "shared": "another process uses this device's identity at the same time, and each throws the "
    "other out: stop one of them, and let a second machine enrol by a token of its own",
    "unknown": "the server does not know this device: it may have lost its data, or been restored "
    "from a backup that is older than this device; restore a newer backup, or enrol this device "
    "again with a new token",
    "revoked": "this device was revoked: it needs a new identity, by a new token",
}
_ENDED = frozenset({"completed", "stopped", "failed"})
_CLOSED_PHASES = frozenset({"aggregating", "evaluating", "ended"})


class MessageRouter:
    """The agent's owner thread calls it."""

    def __init__(self, parts: AgentParts, runner: SessionRunner) -> None:
        self._parts = parts
        self._runner = runner

    def deliver(self, delivery: Delivery) -> None:
        """Handle a message and acknowledge it; one that breaks a rule is logged and dropped."""
        parts = self._parts
        try:
            address = parse(delivery.topic)
            if delivery.payload:
                envelope, message = decode(delivery.payload, address, parts.credentials.server)
                if isinstance(message, Order):
                    parts.orders.require_new(message, envelope.seq)
                    parts.bundles.set_server_time(envelope.sent_ms)
                self._route(message, asks=not delivery.retain)
        except PeerError as error:
            _LOG.warning("refused a message on %s: %s", delivery.topic, error)
        parts.session.ack(delivery)

    def confirm_password(self, password: str) -> None:
        """Note that the broker has admitted this device with a password."""
        identity = self._parts.credentials.confirm_password(password)
        if identity is not None:
            _LOG.info("the password was rotated")
        self._use(identity)

    def _route(self, message: Message, *, asks: bool) -> None:
        parts, runner = self._parts, self._runner
        match message:
            case Order():
                refusal = parts.orders.refusal(message, runner.machine)
                runner.handle(OrderArrived(message, refusal))
            case Receipt():
                if message.status != "accepted":
                    _LOG.warning("result refused: %s", message)
                self._receipt(message)
            case RunDocument():
                self._run_document(message)
            case ServerState(status="online"):
                runner.server_online(message.epoch, asks=asks)
            case ServerState():
                runner.handle(ServerChanged(message.epoch))
            case ProductionDocument():
                parts.follower.on_document(message)
            case ModelOffer():
                parts.follower.on_offer(message)
            case IdentityNotice():
                parts.status.server_trouble(_PROBLEMS[message.problem])
            case TreePosition():
                parts.stand_at(message)
            case NewPassword():
                self._use(parts.credentials.store_password(message.rotation, message.sealed))
                parts.session.publish(parts.messages.password_kept(message.rotation))

    def _use(self, identity: Identity | None) -> None:
        if identity is not None:
            self._parts.session.set_endpoint(Endpoint.of(identity))

    def _receipt(self, receipt: Receipt) -> None:
        parts, machine, key = self._parts, self._runner.machine, JobKey.of(receipt)
        job = machine.reporting.get(key)
        if job is not None:
            parts.status.ended(key, {"status": receipt.status, **result_document(job)})
        else:
            # a power cut may leave a result in the outbox whose job is gone
            if machine.active is None or machine.active.key != key:
                parts.folder.remove_lost_job(key, accepted=machine.counts(receipt))
            # the files first: without its result nothing says whose a state is
            parts.session.confirm(parts.messages.outbox_key(key))
        self._runner.handle(ReceiptArrived(receipt))

    def _run_document(self, document: RunDocument) -> None:
        parts, ended = self._parts, document.status in _ENDED
        self._runner.handle(
            RunChanged(
                document.run_id,
                document.epoch,
                ended,
                document.round,
                document.attempt,
                document.phase in _CLOSED_PHASES,
            )
        )
        if ended:
            parts.transfers.remove_models(document.run_id)
            parts.folder.remove_state(document.run_id)
            parts.worker.end_run(document.run_id)
