"""The evaluation of committed versions: who is ordered to, and what counts."""

from __future__ import annotations

from collections.abc import Sequence

from fl_server.flows.events import DeviceDeclined, OrderRequested
from fl_server.rounds.commands import SendOrder
from fl_server.rounds.events import EvaluationReceived
from fl_server.rounds.facts import EvaluationDeclined, EvaluationOrdered, EvaluationRecorded
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.plan import Plan
from fl_server.rounds.receipts import receipt_of
from fl_server.rounds.roster import Roster
from fl_server.rounds.workload import WidthOf, whole_model

_ATTEMPT = 1


class VersionEvaluation:
    """Orders the latest version to be evaluated, and takes the metrics that come back.

    Orders are journalled, so that after a restart too nothing counts but what was ordered.
    """

    def __init__(
        self, plan: Plan, ledger: Ledger, roster: Roster, width_of: WidthOf = whole_model
    ) -> None:
        self._plan, self._ledger, self._roster = plan, ledger, roster
        self._width_of = width_of
        # who declined the latest version and was ordered again since
        self._again: set[str] = set()

    @property
    def awaited(self) -> set[str]:
        """Who was ordered to evaluate the latest version, is not gone, and has not answered."""
        ledger, version = self._ledger, self._ledger.model.version
        declined = set(ledger.not_evaluated.get(version, {})) - self._again
        answered = set(ledger.evaluations.get(version, {})) | declined
        return ledger.evaluators.get(version, set()) - answered - self._roster.left

    def begin(self, step: RoundStep) -> None:
        """Order the version that was just committed to be evaluated by all who may."""
        self._again.clear()
        if self._is_due():
            self._order(self._evaluators(), step)

    def join(self, device_id: str, step: RoundStep) -> None:
        """Order a device that is there to evaluate the latest version, where it may and has not."""
        ledger, version = self._ledger, self._ledger.model.version
        declined = ledger.not_evaluated.get(version, {}).get(device_id)
        over = device_id in ledger.evaluations.get(version, {}) or (declined and declined.permanent)
        if self._is_due() and not over and device_id in self._evaluators():
            if declined:
                self._again.add(device_id)
            self._order([device_id], step)

    def asked(self, event: OrderRequested, step: RoundStep) -> None:
        """Send a device its order again, if it has it and still owes an answer."""
        is_latest = event.round == self._ledger.model.version
        if self._ledger.phase != "ended" and is_latest and event.device_id in self.awaited:
            self.send(event.device_id, step)

    def send(self, device_id: str, step: RoundStep) -> None:
        """Send the order to evaluate the latest version."""
        step.commands.append(SendOrder(device_id, "evaluate", self._ledger.model.version, _ATTEMPT))

    def declined(self, event: DeviceDeclined, step: RoundStep) -> bool:
        """Record why a device will not evaluate a version; returns whether it was awaited."""
        ledger, device_id = self._ledger, event.device_id
        if not self._is_owed(event) or ledger.phase == "ended":
            return False
        was_awaited = event.round == ledger.model.version and device_id in self.awaited
        before = ledger.not_evaluated.get(event.round, {}).get(device_id)
        # a device may decline the same version each time that it comes back
        if before is None or (event.permanent and not before.permanent):
            why = (event.reason, event.permanent)
            ledger.record(EvaluationDeclined(event.round, device_id, *why), step)
        if event.round == ledger.model.version:
            self._again.discard(device_id)
        return was_awaited

    def received(self, event: EvaluationReceived, step: RoundStep) -> None:
        """Handle a device's metrics."""
        ledger = self._ledger
        if event.device_id in ledger.evaluations.get(event.round, {}):
            step.commands.append(receipt_of(event, "accepted"))
        elif not 1 <= event.round <= ledger.model.version:
            reason = f"version {event.round} is not committed here"
            step.commands.append(receipt_of(event, "unknown", reason))
        elif not self._is_owed(event):
            reason = f"this device was not ordered to evaluate version {event.round}"
            step.commands.append(receipt_of(event, "refused", reason))
        elif ledger.phase == "ended":
            step.commands.append(receipt_of(event, "late", "the run has ended"))
        else:
            measured = (event.num_examples, event.metrics, event.usage)
            ledger.record(EvaluationRecorded(event.round, event.device_id, *measured), step)
            step.commands.append(receipt_of(event, "accepted"))

    def _is_due(self) -> bool:
        version, plan = self._ledger.model.version, self._plan
        measured = version % plan.evaluate_every == 0 or version == plan.rounds
        return version > 0 and measured and self._ledger.phase != "ended"

    def _is_owed(self, event: EvaluationReceived | DeviceDeclined) -> bool:
        ordered = event.device_id in self._ledger.evaluators.get(event.round, set())
        measured = event.device_id in self._ledger.evaluations.get(event.round, {})
        return ordered and not measured and event.attempt == _ATTEMPT

    def _order(self, devices: Sequence[str], step: RoundStep) -> None:
        ledger, version = self._ledger, self._ledger.model.version
        known = ledger.evaluators.get(version, set())
        new = tuple(device_id for device_id in devices if device_id not in known)
        if new:
            ledger.record(EvaluationOrdered(version, new), step)
        for device_id in devices:
            self.send(device_id, step)

    def _evaluators(self) -> Sequence[str]:
        match self._plan.evaluate_on:
            case "evaluators":
                return self._roster.evaluators()
            case "devices":
                return self._widest(self._roster.accepting("trainer"))
        return ()

    def _widest(self, devices: Sequence[str]) -> Sequence[str]:
        """Return the devices that train most of the model: others may have no room for it."""
        version = self._ledger.model.version
        widths = {device_id: self._width_of(device_id, version) for device_id in devices}
        most = max(widths.values(), default=1.0)
        return [device_id for device_id in devices if widths[device_id] >= most]
