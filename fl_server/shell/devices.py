"""Who joins and who goes: claims, revocations, and connections that the broker refused.

Called on the owner's thread; what waits for the broker is done on the workers' threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from broker.brokers.access_control import RefusedConnection
from broker.wire.messages import Claim, PasswordKept
from fl_server.dataplane.workers import Workers
from fl_server.members.gate import MessageGate
from fl_server.members.membership import Membership
from fl_server.members.rules import DeviceRecord
from fl_server.shell.connection import ServerConnection
from runtime.errors import RengoError

_LOG = logging.getLogger(__name__)
_POLL_BROKER_EVERY_S = 5.0
_RETAINED_LEAVES = ("state", "info", "health", "data")


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

    def claim(self, token_id: str, claim: Claim, clock_off_s: float) -> None:
        """Judge a claim, and answer it when the broker admits the new device."""
        answer = self._members.claim(token_id, claim, clock_off_s)
        topic = self._connection.topics.enroll(token_id, "result")
        self._workers.start_task(
            self._members.update_broker,
            lambda _: self._connection.publish(topic, answer),
            _not_changed,
        )

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
        for leaf in _RETAINED_LEAVES:
            self._connection.clear(self._connection.topics.device(device.id, leaf))
        self._forget(device.id)

    # --- refused connections ------------------------------------------------------------------

    def due_s(self) -> float:
        """Return when ``poll_broker`` must be called, by the monotonic clock."""
        return self._poll_due_s

    def poll_broker(self) -> None:
        """Ask the broker, on a thread, which connections it has refused since."""
        if time.monotonic() < self._poll_due_s:
            return
        self._poll_due_s = math.inf  # until this has ended
        self._workers.start_task(
            self._members.refused_connections, self._note_refused, self._poll_failed
        )

    def _poll_failed(self, error: RengoError) -> None:
        _LOG.error("the broker does not say which connections it refused: %s", error)
        self._note_refused(Counter())

    def _note_refused(self, refused: Counter[RefusedConnection]) -> None:
        self._poll_due_s = time.monotonic() + _POLL_BROKER_EVERY_S
        if refused:
            self._gate.refused["connection"] += refused.total()
            self._members.note_refused(refused)


def _not_changed(error: RengoError) -> None:
    _LOG.error("the broker has not taken a change of its users: %s", error)
