"""Who joins and who goes: claims, revocations, and connections that the broker refused.

Called on the owner's thread; what waits for the broker is done on the workers' threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

from broker.brokers.access_control import RefusedConnection
from broker.wire.access import RULES, Role
from broker.wire.messages import Claim, PasswordKept
from fl_server.dataplane.workers import Workers
from fl_server.members.gate import MessageGate
from fl_server.members.membership import Membership
from fl_server.members.rules import AuditEvent, DeviceRecord
from fl_server.shell.connection import ServerConnection
from runtime.errors import RengoError

_LOG = logging.getLogger(__name__)
_POLL_BROKER_EVERY_S = 5.0
_SWEEP_EVERY_S = 60.0
_ENDED_AT_ONCE = 1000
_REFUSED_NOTED = 20
# a device that breaks the rules may have retained something on any topic that is its own
_OWN_LEAVES = tuple(leaf for _, _, leaf in RULES[Role.DEVICE].publish)


class DeviceAdmission:
    """Carries out what changes the set of devices.

    Args:
        forget: removes a device, by its id, from what the server knows of devices and runs.
    """

    def __init__(
        self,
        members: Membership,
        gate: MessageGate,
        workers: Workers,
        connection: ServerConnection,
        forget: Callable[[str], None],
    ) -> None:
        self._members = members
        self._gate = gate
        self._workers = workers
        self._connection = connection
        self._forget = forget
        self._poll_due_s = time.monotonic() + _POLL_BROKER_EVERY_S
        self._sweep_due_s = self._poll_due_s

    def claim(self, token_id: str, claim: Claim, clock_off_s: float) -> None:
        """Judge a claim, and answer it when the broker admits the new device."""
        answer = self._members.claim(token_id, claim, clock_off_s)
        topic = self._connection.topics.enroll(token_id, "result")
        self._workers.start_task(
            self._members.update_broker,
            lambda _: self._connection.publish(topic, answer),
            _not_changed,
        )

    def offer_password(self, device_id: str) -> None:
        """Offer a device the password that awaits it, once the broker has the latest users."""
        if not self._members.awaits_password(device_id):
            return

        def offer(_: None) -> None:
            if not self._members.offer_password(device_id):
                self.offer_password(device_id)  # the users have changed meanwhile

        self._workers.start_task(self._members.update_broker, offer, _not_changed)

    def password_kept(self, device_id: str, message: PasswordKept) -> None:
        """Have the broker take a password that its device has stored."""
        if self._members.password_kept(device_id, message):
            self._workers.start_task(self._members.update_broker, lambda _: None, _not_changed)

    def finish_revocations(self) -> None:
        """Cut off the devices whose revocation a former process began."""
        for device in self._members.being_revoked():
            self._cut_off(device)

    def _cut_off(self, device: DeviceRecord) -> None:
        self._workers.start_task(
            lambda: self._members.cut_off(device), lambda _: self.forget(device), _not_changed
        )

    def forget(self, device: DeviceRecord) -> None:
        """Remove a revoked device, which the broker has forgotten, from everything here."""
        self._members.note_cut_off(device)
        for leaf in _OWN_LEAVES:
            self._connection.clear(self._connection.topics.device(device.id, leaf))
        self._forget(device.id)
        self._sweep_sessions()

    # --- what the broker tells ----------------------------------------------------------------

    def due_s(self) -> float:
        """Return when ``poll_broker`` must be called, by the monotonic clock."""
        return self._poll_due_s

    def poll_broker(self) -> None:
        """Ask the broker which connections it refused, and now and then which sessions it keeps."""
        now_s = time.monotonic()
        if now_s < self._poll_due_s:
            return
        self._poll_due_s = math.inf  # until this has ended
        self._workers.start_task(
            self._members.broker.refused_connections, self._note_refused, self._poll_failed
        )
        if now_s >= self._sweep_due_s:
            self._sweep_sessions()

    def _poll_failed(self, error: RengoError) -> None:
        _LOG.error("the broker does not say which connections it refused: %s", error)
        self._note_refused(Counter())

    def _note_refused(self, refused: Counter[RefusedConnection]) -> None:
        self._poll_due_s = time.monotonic() + _POLL_BROKER_EVERY_S
        if refused:
            self._gate.refused["connection"] += refused.total()
            self._members.note(
                *(
                    AuditEvent(who.user, "connection refused", who.address, {"times": times})
                    for who, times in refused.most_common(_REFUSED_NOTED)
                )
            )

    def _sweep_sessions(self) -> None:
        """End the sessions that are no member's own: a broker keeps messages for each of them."""
        self._sweep_due_s = time.monotonic() + _SWEEP_EVERY_S
        self._workers.start_task(self._members.broker.lasting_sessions, self._end, _not_swept)

    def _end(self, client_ids: Sequence[str]) -> None:
        # compared after they were listed: a member is known here before the broker admits it
        own = self._members.client_ids()
        foreign = [each for each in client_ids if each not in own][:_ENDED_AT_ONCE]
        if not foreign:
            return

        def note(_: None) -> None:
            _LOG.warning("ended %d sessions at the broker that are no member's own", len(foreign))
            self._members.note(AuditEvent("server", "sessions ended", "", {"count": len(foreign)}))

        self._workers.start_task(
            lambda: self._members.broker.end_sessions(foreign), note, _not_swept
        )


def _not_swept(error: RengoError) -> None:
    _LOG.error("the sessions at the broker were not looked at: %s", error)


def _not_changed(error: RengoError) -> None:
    _LOG.error("the broker has not taken a change of its users: %s", error)
