"""A run's best version by a metric, and when none better comes any more."""

from __future__ import annotations

from itertools import takewhile

from fl_server.rounds.commands import TagBest
from fl_server.rounds.facts import VersionJudged
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.plan import Plan
from fl_server.rounds.roster import Roster

_WAITED_FOR = 3


class BestVersion:
    """Compares versions with the best before them, in their order, each once.

    A version is judged when everyone who was ordered to evaluate it has answered, left, or answered
    about a later one: a device evaluates versions in order. One that somebody has measured does not
    wait for the others any more when three later ones were ordered: a device may hang. One that
    nobody has measured waits for those who come, until a later one was ordered. Verdicts are
    journalled, so that what is measured late changes none.
    """

    def __init__(self, plan: Plan, ledger: Ledger, roster: Roster) -> None:
        self._rule, self._ledger, self._roster = plan.best, ledger, roster
        self._rounds = plan.rounds

    @property
    def held(self) -> frozenset[int]:
        """The versions that must not be removed: the best, and those that may become it."""
        if self._rule is None:
            return frozenset()
        best = [] if self._ledger.best is None else [self._ledger.best[0]]
        return frozenset(best if self._ledger.phase == "ended" else [*best, *self._unjudged()])

    @property
    def standstill(self) -> str:
        """Why the run ends now, "" where it goes on."""
        rule, ledger = self._rule, self._ledger
        if rule is None or not rule.patience or ledger.best is None:
            return ""
        version, value = ledger.best
        if ledger.judged - version < rule.patience or ledger.model.version >= self._rounds:
            return ""
        return (
            f"no version up to {ledger.judged} was better than version {version} "
            f"({rule.metric} {value:.4g}): stopped early"
        )

    def judge(self, step: RoundStep, *, is_last: bool = False) -> None:
        """Judge the versions whose measurements are in.

        Args:
            is_last: whether no more measurements are awaited.
        """
        rule, ledger = self._rule, self._ledger
        if rule is None or ledger.phase == "ended":
            return
        for version in self._unjudged():
            if not is_last and not self._is_measured(version):
                return
            value = ledger.metric(version, rule.metric)
            before = None if ledger.best is None else ledger.best[1]
            is_best = value is not None and rule.is_better(value, before)
            ledger.record(VersionJudged(version, value, is_best), step)
            if is_best:
                step.commands.append(TagBest(version))

    def _unjudged(self) -> list[int]:
        """Return the versions with evaluators that were not judged, in order."""
        judged = self._ledger.judged
        return sorted(
            takewhile(lambda version: version > judged, reversed(self._ledger.evaluators))
        )

    def _is_measured(self, version: int) -> bool:
        ledger = self._ledger
        later = sum(
            1 for _ in takewhile(lambda other: other > version, reversed(ledger.evaluators))
        )
        if later >= _WAITED_FOR and ledger.evaluations.get(version):
            return True
        answers = [
            device_id
            for of_versions in (ledger.evaluations, ledger.not_evaluated)
            for later in range(version, ledger.model.version + 1)
            for device_id in of_versions.get(later, {})
        ]
        if ledger.evaluators[version] - set(answers) - self._roster.left:
            return False
        return bool(ledger.evaluations.get(version)) or later > 0
