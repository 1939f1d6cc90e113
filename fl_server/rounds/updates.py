"""The updates of the open round, from a device's report to the fact that it counts or does not."""

from __future__ import annotations

from fl_server.rounds.commands import DiscardUpdate, FoldUpdate, VerifyUpdate
from fl_server.rounds.events import (
    ResultReceived,
    UpdateDelivered,
    UpdateRejected,
    UpdateVerified,
)
from fl_server.rounds.facts import UpdateAccepted, UpdateRefused
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.model import Update
from fl_server.rounds.receipts import receipt_of


class UpdateIntake:
    """Has reported updates checked, and answers each report exactly once.

    Attributes:
        verifying: the reported updates that are being checked, by device.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.verifying: dict[str, Update] = {}
        self._ledger = ledger

    def owed_by(self, device_id: str) -> bool:
        """Whether the device was ordered to train in the open round and has reported nothing."""
        return self._ledger.awaits(device_id) and device_id not in self.verifying

    def forget(self) -> None:
        """Give up the checks under way: their round is over."""
        self.verifying.clear()

    def reported(self, event: ResultReceived | UpdateDelivered, step: RoundStep) -> None:
        """Handle a device's report, or an update that came with its values."""
        if not self._is_open(event, step):
            return
        if isinstance(event, UpdateDelivered):
            self._accept(event, step)
        elif event.fault:
            self._refuse(event, event.fault, step)
        else:
            self.verifying[event.device_id] = event.update
            place = (event.device_id, event.round, event.attempt)
            width = self._ledger.width_of(event.device_id)
            step.commands.append(VerifyUpdate(*place, event.update, width))

    def _is_open(self, event: ResultReceived | UpdateDelivered, step: RoundStep) -> bool:
        """Return whether an update may count now; where it may not, the device gets its receipt."""
        device_id, ledger = event.device_id, self._ledger
        counted = ledger.counted(event.round, event.attempt, device_id)
        if counted is not None:
            same = counted == event.update.header_sha256
            reason = "" if same else "another update of this device was already counted"
            step.commands.append(receipt_of(event, "accepted" if same else "refused", reason))
            if not ledger.uses_objects_of(event.round, event.attempt):
                step.commands.append(DiscardUpdate(event.update.key))
            return False
        if event.round > ledger.round:
            reason = f"this run has not reached round {event.round}"
            step.commands.append(receipt_of(event, "unknown", reason))
            return False
        if not ledger.collects(event.round, event.attempt):
            step.commands.append(receipt_of(event, "late", "the round went on without it"))
            step.commands.append(DiscardUpdate(event.update.key))
            return False
        if device_id not in ledger.cohort:
            step.commands.append(receipt_of(event, "refused", "not in this round's cohort"))
            step.commands.append(DiscardUpdate(event.update.key))
            return False
        if device_id in ledger.refused:
            step.commands.append(receipt_of(event, "refused", ledger.refused[device_id]))
            return False
        return device_id not in self.verifying

    def checked(self, event: UpdateVerified | UpdateRejected, step: RoundStep) -> None:
        """Handle the end of an update's check."""
        device_id, ledger = event.device_id, self._ledger
        if not ledger.collects(event.round, event.attempt):
            step.commands.append(receipt_of(event, "late", "the round went on without it"))
            step.commands.append(DiscardUpdate(event.update.key))
            return
        if self.verifying.get(device_id) != event.update:
            return
        del self.verifying[device_id]
        if isinstance(event, UpdateRejected):
            self._refuse(event, event.reason, step)
            return
        self._accept(event, step)

    def _accept(self, event: UpdateVerified | UpdateDelivered, step: RoundStep) -> None:
        device_id, place = event.device_id, (event.round, event.attempt)
        self._ledger.record(UpdateAccepted(*place, device_id, event.update), step)
        step.commands.append(receipt_of(event, "accepted"))
        fold = FoldUpdate(device_id, *place, event.update, self._ledger.width_of(device_id))
        step.commands.append(fold)

    def _refuse(self, event: ResultReceived | UpdateRejected, reason: str, step: RoundStep) -> None:
        fact = UpdateRefused(event.round, event.attempt, event.device_id, reason)
        self._ledger.record(fact, step)
        step.commands.append(receipt_of(event, "refused", reason))
        step.commands.append(DiscardUpdate(event.update.key))
