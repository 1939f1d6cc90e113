"""The books of a run's best version: what the law says of the verdicts on versions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from fl_server.flows.flow import Step
from fl_server.rounds.commands import TagBest
from fl_server.rounds.facts import (
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
    Fact,
    RunCompleted,
    RunFailed,
    RunStopped,
    RunStoppedEarly,
    VersionJudged,
)
from fl_server.rounds.plan import Plan


@dataclass
class BestBooks:
    """Who was ordered to measure which version, what they said, and the verdicts so far."""

    plan: Plan
    ordered: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    answered: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    values: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    judged: int = 0
    best: tuple[int, float] | None = None

    def saw(self, fact: Fact, step: Step, left: set[str]) -> str:
        """Take note of a fact; returns the law that it breaks, "" for none."""
        match fact:
            case EvaluationOrdered():
                self.ordered[fact.round] |= set(fact.devices)
            case EvaluationDeclined():
                self.answered[fact.round].add(fact.device_id)
            case EvaluationRecorded():
                self.answered[fact.round].add(fact.device_id)
                measured = (fact.num_examples, fact.metrics.get("accuracy", float("nan")))
                self.values[fact.round].append(measured)
            case VersionJudged():
                return self._verdict(fact, step, left)
            case RunStoppedEarly() if not self.is_stuck:
                return "a run ends early only after its patience"
            case RunCompleted() | RunStopped() | RunFailed() if self.plan.best and self._pending():
                return "an ended run has judged all that was measured"
        return ""

    def broken(self, left: set[str], committed: int) -> str:
        """Return the law that is broken between two steps of a run that goes on, "" for none."""
        if self.plan.best is None:
            return ""
        if self.is_stuck and committed < self.plan.rounds:
            return "a run ends when its patience is over"
        pending = self._pending()
        if pending and not self._awaited(pending[0], left) and self._may_be(pending[0]):
            return "what was measured is judged"
        return ""

    @property
    def is_stuck(self) -> bool:
        """Whether no better version came for as many rounds as the run has patience."""
        rule = self.plan.best
        if rule is None or not rule.patience or self.best is None:
            return False
        return self.judged - self.best[0] >= rule.patience

    def _pending(self) -> list[int]:
        return sorted(version for version in self.ordered if version > self.judged)

    def _awaited(self, version: int, left: set[str]) -> set[str]:
        later = [other for other in self.ordered if other > version]
        if len(later) >= 3 and self.values.get(version):
            return set()
        said = {name for at, names in self.answered.items() if at >= version for name in names}
        return self.ordered[version] - said - left

    def _may_be(self, version: int) -> bool:
        return bool(self.values.get(version)) or version < max(self.ordered)

    def _verdict(self, fact: VersionJudged, step: Step, left: set[str]) -> str:
        rule = self.plan.best
        if rule is None:
            return "nobody judges unless the plan says so"
        if self._pending()[:1] != [fact.round]:
            return "versions are judged in their order, each once"
        ends = any(isinstance(f, RunCompleted | RunStopped | RunFailed) for f in step.facts)
        if not ends and (self._awaited(fact.round, left) or not self._may_be(fact.round)):
            return "a version is judged when its measurements are in"
        rows = self.values.get(fact.round, [])
        examples = sum(count for count, _ in rows)
        mean = sum(count * value for count, value in rows) / examples if rows else None
        if fact.value != (None if mean is None else pytest.approx(mean)):
            return "a verdict is by the mean over the examples"
        gain = None if mean is None or self.best is None else mean - self.best[1]
        gain = -gain if gain is not None and rule.lower else gain
        better = mean is not None and (gain is None or gain > rule.min_delta)
        if fact.is_best != better:
            return "the best is the one that is better than all before"
        if better != (TagBest(fact.round) in step.commands):
            return "the best version is tagged"
        self.judged = fact.round
        self.best = (fact.round, mean) if better and mean is not None else self.best
        return ""
