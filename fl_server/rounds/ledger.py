"""A run's ledger: the fold of its journalled facts, and which fact may follow in which phase."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fl_server.flows.flow import Step
from fl_server.flows.mean import weighted_mean
from fl_server.rounds.commands import Command
from fl_server.rounds.facts import (
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
    Fact,
    OrderDeclined,
    RequestFailed,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunStopped,
    RunStoppedEarly,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
    VersionJudged,
)
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Phase, Status
from fl_server.rounds.workload import OrderWork, Speed, measured
from runtime.bounds import plausible
from runtime.errors import InvalidTransition

RoundStep: TypeAlias = Step[Fact, Command]
_KEPT_EARLIER = 4
_WITH_DIGIT = re.compile(r"\S*\d\S*")
_ALWAYS: frozenset[type[Fact]] = frozenset(
    {
        EvaluationOrdered,
        EvaluationDeclined,
        EvaluationRecorded,
        VersionJudged,
        RunPaused,
        RunResumed,
        RunStopped,
        RunFailed,
    }
)
_BEFORE_THE_LAST = _ALWAYS | {RunStoppedEarly}
LEGAL: dict[Phase, frozenset[type[Fact]]] = {
    "waiting": _BEFORE_THE_LAST | {RoundOpened},
    "gathering": _BEFORE_THE_LAST | {RoundOpened, RoundStarted},
    "collecting": _BEFORE_THE_LAST
    | {
        UpdateAccepted,
        UpdateRefused,
        UpdateWithdrawn,
        OrderDeclined,
        RoundClosed,
        RoundAbandoned,
        RequestFailed,
    },
    "aggregating": _BEFORE_THE_LAST | {RoundCommitted, RoundAbandoned, RequestFailed},
    "evaluating": _ALWAYS | {RunCompleted},
    "ended": frozenset(),
}


@dataclass
class Ledger:
    """What the facts so far add up to.

    Attributes:
        rounds: how many rounds the run has.
        model: the latest committed version, or the base of the requested round.
        earlier: the few before it, nearest last.
        round: the round in progress, from 1; it and ``attempt`` stay after the last commit, so that
            the pair never goes back.
        accepted: this attempt's counted updates by device.
        refused: this attempt's refusals and declines by device, with their reasons.
        unusable: the devices among them whose update was refused or could never count, or that
            cannot carry the order out: waiting changes nothing there.
        causes: why every update of the attempt before was refused; empty if some were not.
        excused: how many attempts at this round were ended by devices that declined for now.
        setback: why the attempt before ended without a model, "" where there was none.
        evaluators: version -> who was ordered to evaluate it.
        not_evaluated: version -> device -> why it does not evaluate it.
        evaluations: version -> device -> (num_examples, metrics).
        judged: the latest version that was compared with the best before it.
        best: the best of them with its value, None before the first that was measured.
        on_request: each round waits until somebody outside requests it.
        made: what the latest requested round committed, None before that.
        base_sha256: of the model that the latest requested round began with.
        training: what the latest request says of the training.
        deadline_s: how long its round collects, 0 for as long as the plan says.
        work: what this attempt's devices are asked for, where orders are fitted or of parts.
        speeds: what devices were measured at in this run, smoothed.
        known: the devices that ever were in a cohort.
        population: how many devices the run knew when the attempt started, a domain as one.
        below: how many there were below each domain by its latest update.
    """

    rounds: int
    model: Model
    status: Status = "running"
    phase: Phase = "gathering"
    reason: str = ""
    earlier: tuple[Model, ...] = ()
    round: int = 1
    attempt: int = 1
    cohort: tuple[str, ...] = ()
    target: int = 0
    included: tuple[str, ...] = ()
    work: dict[str, OrderWork] = field(default_factory=dict)
    speeds: dict[str, Speed] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    population: int = 0
    below: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, Update] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)
    causes: frozenset[str] = frozenset()
    excused: int = 0
    setback: str = ""
    evaluators: dict[int, set[str]] = field(default_factory=dict)
    not_evaluated: dict[int, dict[str, EvaluationDeclined]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, tuple[int, dict[str, float]]]] = field(default_factory=dict)
    judged: int = 0
    best: tuple[int, float] | None = None
    on_request: bool = False
    made: Model | None = None
    base_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    deadline_s: float = 0.0
    _counted: dict[tuple[int, int, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_request:
            self.phase = "waiting"

    @property
    def answered(self) -> set[str]:
        """The devices of the cohort from which nothing more is awaited."""
        return set(self.accepted) | set(self.refused)

    @property
    def all_unusable(self) -> bool:
        """Whether the update of every member of the cohort was refused."""
        return bool(self.cohort) and self.unusable == set(self.cohort)

    @property
    def repeats_itself(self) -> bool:
        """Whether every update was refused as every one of the attempt before was."""
        return self.all_unusable and self._causes() == self.causes

    @property
    def unmeasured(self) -> str:
        """Why nobody measured the latest version that somebody was to evaluate, "" if one did."""
        version = max(self.not_evaluated, default=0)
        if version <= max(self.evaluations, default=0):
            return ""
        rows = self.not_evaluated[version].values()
        reasons = Counter(row.reason for row in rows)
        [(reason, count)] = reasons.most_common(1)
        others = f", and {len(rows) - count} for other reasons" if len(rows) > count else ""
        devices = "1 device" if count == 1 else f"{count} devices"
        return f"version {version} was not measured: {reason} on {devices}{others}"

    @property
    def explanation(self) -> str:
        """Why the run ended or waits, else why its latest version has no metrics, else ""."""
        waits = self.setback if self.phase in {"waiting", "gathering"} else ""
        return self.reason or waits or self.unmeasured

    def collects(self, round_number: int, attempt: int) -> bool:
        """Whether this attempt is the one that collects updates now."""
        return self.phase == "collecting" and (round_number, attempt) == (self.round, self.attempt)

    def uses_objects_of(self, round_number: int, attempt: int) -> bool:
        """Whether the attempt's objects may still be read; those of others were swept."""
        open_phase = self.phase in {"collecting", "aggregating"}
        return open_phase and (round_number, attempt) == (self.round, self.attempt)

    def awaits(self, device_id: str) -> bool:
        """Whether an update of the device could count now."""
        asked = self.phase == "collecting" and device_id in self.cohort
        return asked and device_id not in self.answered

    def width_of(self, device_id: str) -> float:
        """Return how much of the model a device trains in this attempt."""
        return self.work[device_id].width if device_id in self.work else 1.0

    def counted(self, round_number: int, attempt: int, device_id: str) -> str | None:
        """Return the header sha256 of the device's update that was accepted then, or None."""
        return self._counted.get((round_number, attempt, device_id))

    @property
    def population_below(self) -> int:
        """How many devices the run knows, those below domains among them."""
        return self.population + sum(count - 1 for count in self.below.values())

    def metric(self, version: int, name: str) -> float | None:
        """Return the mean of a metric over the devices that evaluated ``version``, by examples."""
        return weighted_mean(
            [
                (metrics[name], examples)
                for _, (examples, metrics) in sorted(self.evaluations.get(version, {}).items())
                if name in metrics
            ]
        )

    def metrics(self, version: int) -> dict[str, float]:
        """Return the mean of each metric over the devices that evaluated ``version``."""
        rows = self.evaluations.get(version, {}).values()
        names = sorted({name for _, metrics in rows for name in metrics})
        means = {name: self.metric(version, name) for name in names}
        return {name: mean for name, mean in means.items() if mean is not None}

    def record(self, fact: Fact, step: RoundStep) -> None:
        """Apply a fact that was decided now, and add it to the step that decided it."""
        self.apply(fact)
        step.facts.append(fact)

    def forget_before(self, version: int) -> None:
        """Forget whose updates counted in earlier rounds, and what was measured of their versions.

        For a run whose messages are never repeated, and whose figures are kept elsewhere: versions
        that were not judged yet stay.
        """
        for key in [key for key in self._counted if key[0] < version]:
            del self._counted[key]
        for of_versions in (self.evaluators, self.not_evaluated, self.evaluations):
            for each in [each for each in of_versions if each < version]:
                del of_versions[each]

    def apply(self, fact: Fact) -> None:
        """Apply one fact.

        Raises:
            InvalidTransition: the fact cannot follow here; nothing was changed.
        """
        self._require_legal(fact)
        match fact:
            case RoundOpened():
                self._open(fact)
            case RoundStarted():
                self.phase, self.cohort, self.target = "collecting", fact.cohort, fact.target
                self.work, self.population = fact.work, fact.population
                self.known.update(fact.cohort)
            case UpdateAccepted():
                self.accepted[fact.device_id] = fact.update
                if fact.update.population > 1 or fact.device_id in self.below:
                    self.below[fact.device_id] = fact.update.population
                self._measure(fact)
                key = (fact.round, fact.attempt, fact.device_id)
                self._counted[key] = fact.update.header_sha256
            case UpdateRefused() | OrderDeclined():
                self._refuse(fact)
            case UpdateWithdrawn():
                del self.accepted[fact.device_id]
                del self._counted[(fact.round, fact.attempt, fact.device_id)]
            case RoundClosed():
                self.phase, self.included = "aggregating", fact.included
            case RoundAbandoned() | RequestFailed():
                self._abandon(fact)
            case RoundCommitted():
                self.earlier = (*self.earlier, self.model)[-_KEPT_EARLIER:]
                self.model, self.causes = fact.model, frozenset()
                self.excused, self.setback = 0, ""
                if self.on_request:
                    self.made = fact.model
                if fact.round == self.rounds:
                    self._next(self.round, self.attempt)
                    self.phase = "evaluating"
                else:
                    self._next(fact.round + 1, 1)
                    self.phase = "waiting" if self.on_request else "gathering"
            case (
                EvaluationOrdered() | EvaluationDeclined() | EvaluationRecorded() | VersionJudged()
            ):
                self._evaluate(fact)
            case RunPaused() | RunResumed():
                self.status = "paused" if isinstance(fact, RunPaused) else "running"
            case RunCompleted() | RunStoppedEarly() | RunStopped() | RunFailed():
                self._end(fact)

    def _open(self, fact: RoundOpened) -> None:
        self._next(fact.round, fact.attempt)
        self.model, self.earlier, self.made = fact.base, (), None
        self.base_sha256 = fact.base.sha256
        self.training, self.deadline_s = fact.training, fact.deadline_s
        self.causes = frozenset()  # the same device may do better with another base
        self.excused, self.setback = 0, ""

    def _evaluate(
        self, fact: EvaluationOrdered | EvaluationDeclined | EvaluationRecorded | VersionJudged
    ) -> None:
        match fact:
            case VersionJudged():
                self.judged = fact.round
                if fact.is_best and fact.value is not None:
                    self.best = (fact.round, fact.value)
            case EvaluationOrdered():
                self.evaluators.setdefault(fact.round, set()).update(fact.devices)
            case EvaluationDeclined():
                self.not_evaluated.setdefault(fact.round, {})[fact.device_id] = fact
            case EvaluationRecorded():
                of_version = self.evaluations.setdefault(fact.round, {})
                # a journal may hold what an earlier version let in
                of_version[fact.device_id] = (fact.num_examples, plausible(fact.metrics))
                self.not_evaluated.get(fact.round, {}).pop(fact.device_id, None)

    def _abandon(self, fact: RoundAbandoned | RequestFailed) -> None:
        self.causes = self._causes() if self.all_unusable else frozenset()
        self.setback = fact.reason
        self._next(self.round, self.attempt + 1)
        if isinstance(fact, RoundAbandoned):
            self.excused += fact.excused
        else:
            self.phase = "waiting"

    def _end(self, fact: RunCompleted | RunStoppedEarly | RunStopped | RunFailed) -> None:
        self.phase = "ended"
        match fact:
            case RunCompleted():
                self.status = "completed"
            case RunStoppedEarly():
                self.status, self.reason = "completed", fact.reason
            case RunStopped():
                self.status, self.reason = "stopped", fact.reason
            case RunFailed():
                self.status, self.reason = "failed", fact.reason

    def _refuse(self, fact: UpdateRefused | OrderDeclined) -> None:
        self.refused[fact.device_id] = fact.reason
        if isinstance(fact, UpdateRefused) or fact.unusable or fact.permanent:
            self.unusable.add(fact.device_id)

    def _causes(self) -> frozenset[str]:
        """Return the reasons without what differs by device, attempt or parameter."""
        return frozenset(_WITH_DIGIT.sub("", reason) for reason in self.refused.values())

    def _measure(self, fact: UpdateAccepted) -> None:
        speed, before = measured(fact.update.usage), self.speeds.get(fact.device_id)
        if speed is not None:
            self.speeds[fact.device_id] = before.followed_by(speed) if before else speed

    def _next(self, round_number: int, attempt: int) -> None:
        self.phase, self.round, self.attempt = "gathering", round_number, attempt
        self.cohort, self.target, self.included, self.work = (), 0, (), {}
        self.accepted, self.refused = {}, {}
        self.unusable = set()

    def _require_legal(self, fact: Fact) -> None:
        problem = self._problem(fact)
        if problem:
            where = f"{self.phase}, round {self.round}, attempt {self.attempt}"
            raise InvalidTransition(f"{problem} in {where}")

    def _problem(self, fact: Fact) -> str:
        """Return why a fact cannot follow here, "" where it can."""
        if type(fact) not in LEGAL[self.phase]:
            return f"{type(fact).__name__} cannot follow"
        pair = (getattr(fact, "round", self.round), getattr(fact, "attempt", self.attempt))
        if isinstance(fact, RoundOpened):
            is_open = self.on_request and pair >= (self.round, self.attempt)
            return "" if is_open else f"{fact} cannot be opened"
        if isinstance(fact, RequestFailed) and not self.on_request:
            raise InvalidTransition(f"{fact} cannot follow where nobody requests rounds")
        if hasattr(fact, "attempt") and pair != (self.round, self.attempt):
            return f"{fact} does not belong"
        return self._own_problem(fact)

    def _own_problem(self, fact: Fact) -> str:
        """Return what of a fact itself does not fit what the ledger has, "" where all does."""
        match fact:
            case UpdateAccepted() | UpdateRefused() | OrderDeclined():
                id_ = fact.device_id
                owes = id_ in self.cohort and id_ not in self.accepted and id_ not in self.refused
                return "" if owes else f"{id_} owes no update"
            case RoundStarted() if not fact.cohort:
                return "a round without a cohort"
            case RoundClosed() if fact.included != tuple(sorted(self.accepted)):
                return f"{fact} includes others than the accepted"
            case RoundCommitted() if fact.model.version != self.round:
                return f"version {fact.model.version} cannot be committed"
            case VersionJudged() if fact.round <= self.judged or fact.round not in self.evaluators:
                return f"version {fact.round} cannot be judged"
            case UpdateWithdrawn() if fact.device_id not in self.accepted:
                return f"{fact.device_id} has no accepted update"
        return ""
