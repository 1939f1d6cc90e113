"""Tells the runs which devices are there, and a device what is wrong with its identity.

Called on the owner's thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from broker.wire.messages import DeviceState, IdentityNotice
from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft
from fl_server.members.membership import Membership
from fl_server.members.presence import PresenceTable
from fl_server.members.rate_limit import RateLimit
from fl_server.members.rules import AuditEvent
from fl_server.members.twins import ProcessHistory
from fl_server.shell.connection import ServerConnection
from runtime.errors import PeerError

_LOG = logging.getLogger(__name__)
# a server starts seldom: no device has obeyed one that is further ahead than this
_MAX_EPOCH_STEP = 1_000_000
_EPOCHS_PER_S, _EPOCHS_AT_ONCE = 0.1, 5
_NOTICES_PER_S, _NOTICES_AT_ONCE = 0.1, 4
_LOGGED_PER_S = 1 / 3600


@dataclass(frozen=True)
class PresenceActions:
    """What follows from a device's presence.

    Attributes:
        tell_runs: is given what changed, and the device's presence, None where it was removed.
        ready: is given the id of a device that is ready.
        raise_epoch: is given an epoch that a device has obeyed, higher than this server's.
    """

    tell_runs: Callable[[DeviceJoined | DeviceBusy | DeviceLeft, DeviceState | None], None]
    ready: Callable[[str], None]
    raise_epoch: Callable[[int], None]


class PresenceWatch:
    """Keeps the table of presence by what devices say and by what they do not answer."""

    def __init__(
        self,
        table: PresenceTable,
        members: Membership,
        connection: ServerConnection,
        actions: PresenceActions,
    ) -> None:
        self._table = table
        self._members = members
        self._connection = connection
        self._actions = actions
        self._histories: dict[str, ProcessHistory] = {}
        self._epochs = RateLimit(_EPOCHS_PER_S, _EPOCHS_AT_ONCE)
        self._notices = RateLimit(_NOTICES_PER_S, _NOTICES_AT_ONCE)
        self._logged = RateLimit(_LOGGED_PER_S, 1)

    def reconnected(self) -> None:
        """Ask every device whether it is there: after a gap nothing that was known counts."""
        devices = self._members.devices.values()
        active = [each.id for each in devices if each.status == "active"]
        self._table.reconnected(time.monotonic(), active)
        self._connection.publish_online()

    def apply(self, device_id: str, state: DeviceState, *, retained: bool) -> None:
        """Apply a device's presence.

        Raises:
            PeerError: it names an epoch that no server can have had.
        """
        if state.epoch > self._connection.epoch:
            self._obeyed_higher(device_id, state.epoch)
        if state.status == "ready":
            self._actions.ready(device_id)
        if not retained and state.status not in {"lost", "offline"}:
            history = self._histories.setdefault(device_id, ProcessHistory())
            if history.shows_two(state):
                self._shared(device_id)
        event = self._table.apply_state(device_id, state, retained=retained, now_s=time.monotonic())
        if event is not None:
            self._actions.tell_runs(event, state)

    def forget(self, device_id: str) -> None:
        """Forget a device that may not take part any more."""
        self._table.forget(device_id)
        self._histories.pop(device_id, None)
        self._actions.tell_runs(DeviceLeft(device_id, for_good=True), None)

    def tell_stranger(self, device_id: str, reason: str) -> None:
        """Tell whoever speaks as a device that this server does not know it, or has revoked it."""
        problem = "revoked" if reason == "revoked_device" else "unknown"
        self._notify(device_id, IdentityNotice.model_validate({"problem": problem}))

    # --- time ---------------------------------------------------------------------------------

    def due_s(self) -> float:
        """Return when :meth:`handle_due` must be called, by the monotonic clock."""
        due_s = self._table.due_s()
        return math.inf if due_s is None else due_s

    def handle_due(self) -> None:
        """Ask again those who do not answer, and let the runs go on without them."""
        now_s = time.monotonic()
        if now_s < self.due_s():
            return
        left, again = self._table.silent(now_s)
        if again:
            self._connection.publish_online()
        for event in left:
            self._actions.tell_runs(event, None)

    # --- what is wrong ------------------------------------------------------------------------

    def _obeyed_higher(self, device_id: str, epoch: int) -> None:
        if epoch - self._connection.epoch > _MAX_EPOCH_STEP:
            raise PeerError(f"no server can have had epoch {epoch}", "epoch")
        if not self._epochs.admits("", time.monotonic()):
            return
        _LOG.warning(
            "device %s has obeyed epoch %d and ignores this server, at epoch %d: it was restored "
            "from an older backup, or lost its data; it goes on above that epoch",
            device_id,
            epoch,
            self._connection.epoch,
        )
        self._members.note(AuditEvent(device_id, "epoch raised", "", {"obeyed": epoch}))
        self._actions.raise_epoch(epoch)

    def _shared(self, device_id: str) -> None:
        if self._logged.admits(device_id, time.monotonic()):
            _LOG.warning(
                "two processes use the identity of device %s at once, and each throws the other "
                "out; stop one of them, and let a second machine enrol by a token of its own",
                device_id,
            )
            self._members.note(AuditEvent(device_id, "identity used twice"))
        self._notify(device_id, IdentityNotice(problem="shared"))

    def _notify(self, device_id: str, notice: IdentityNotice) -> None:
        if self._notices.admits(f"{device_id}/{notice.problem}", time.monotonic()):
            topic = self._connection.topics.device(device_id, "task")
            self._connection.publish(topic, notice)
