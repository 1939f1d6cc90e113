"""The evaluation of committed versions: who is ordered to, and what counts."""

from __future__ import annotations

from fl_server.rounds.commands import SendOrder
from fl_server.rounds.events import EvaluationReceived
from fl_server.rounds.facts import EvaluationRecorded
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.plan import Plan
from fl_server.rounds.receipts import receipt_of
from fl_server.rounds.roster import Roster


class VersionEvaluation:
    """Orders the latest version to be evaluated, and takes the metrics that come back."""

    def __init__(self, plan: Plan, ledger: Ledger, roster: Roster) -> None:
        self._plan, self._ledger, self._roster = plan, ledger, roster
        self._ordered: set[str] = set()

    @property
    def awaited(self) -> set[str]:
        """Who was ordered to evaluate the latest version and has not answered."""
        return self._ordered - set(self._ledger.evaluations.get(self._ledger.model.version, {}))

    def begin(self, step: RoundStep) -> None:
        """Order the version that was just committed to be evaluated by all who may."""
        self._ordered.clear()
        for device_id in self._evaluators():
            self.order(device_id, step)

    def order(self, device_id: str, step: RoundStep) -> None:
        """Order a device to evaluate the latest version, where that is due and it may."""
        ledger, version = self._ledger, self._ledger.model.version
        due = version > 0 and (
            version % self._plan.evaluate_every == 0 or version == self._plan.rounds
        )
        if not due or ledger.phase == "ended" or device_id not in self._evaluators():
            return
        if device_id not in ledger.evaluations.get(version, {}):
            self._ordered.add(device_id)
            step.commands.append(SendOrder(device_id, "evaluate", version, 1))

    def declined(self, device_id: str, version: int) -> None:
        """Wait no longer for a device that will not evaluate ``version``."""
        if version == self._ledger.model.version:
            self._ordered.discard(device_id)

    def left(self, device_id: str) -> bool:
        """Wait no longer for a device that is gone; returns whether it was awaited."""
        was_awaited = device_id in self.awaited
        self._ordered.discard(device_id)
        return was_awaited

    def received(self, event: EvaluationReceived, step: RoundStep) -> None:
        """Handle a device's metrics."""
        ledger = self._ledger
        if not 1 <= event.round <= ledger.model.version:
            reason = f"version {event.round} is not committed here"
            step.commands.append(receipt_of(event, "unknown", reason))
            return
        known = event.device_id in ledger.evaluations.get(event.round, {})
        if not known and ledger.phase == "ended":
            step.commands.append(receipt_of(event, "late", "the run has ended"))
            return
        if not known:
            measured = (event.num_examples, event.metrics, event.usage)
            ledger.record(EvaluationRecorded(event.round, event.device_id, *measured), step)
        step.commands.append(receipt_of(event, "accepted"))

    def _evaluators(self) -> list[str]:
        match self._plan.evaluate_on:
            case "evaluators":
                return self._roster.accepting("evaluator")
            case "devices":
                return self._roster.accepting("trainer")
        return []
