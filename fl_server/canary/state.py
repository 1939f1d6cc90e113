"""A canary's state, the fold of its facts, and the verdict that follows from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from fl_server.canary.events import (
    ATTEMPT_OF,
    ATTEMPTS,
    CanaryPlan,
    Fact,
    Judged,
    OrdersOpened,
    Settled,
    Side,
    SideDeclined,
    SideMeasured,
    Verdict,
)
from fl_server.flows.mean import weighted_mean
from runtime.bounds import plausible
from runtime.errors import InvalidTransition

Phase: TypeAlias = Literal["opening", "measuring", "settling", "ended"]
_LOWER_IS_BETTER = (
    *("loss", "error", "err", "mse", "rmse", "mae", "mape"),
    *("nll", "cross_entropy", "perplexity", "bpc", "cer", "wer"),
)
# a drop of exactly what is allowed is allowed, whatever 0.95 - 0.94 is in binary
_TOLERANCE = 1e-9
_NAMED_METRICS = 10
_NAMED_DEVICES = 5
_LONGEST_REASON = 200

LEGAL: dict[Phase, frozenset[type[Fact]]] = {
    "opening": frozenset({OrdersOpened, Judged}),
    "measuring": frozenset({SideMeasured, SideDeclined, Judged}),
    "settling": frozenset({Settled}),
    "ended": frozenset(),
}


@dataclass
class CanaryState:
    """What the facts so far add up to."""

    cohort: tuple[str, ...]
    phase: Phase = "opening"
    measured: dict[str, dict[Side, SideMeasured]] = field(default_factory=dict)
    declined: dict[str, SideDeclined] = field(default_factory=dict)
    judged: Judged | None = None
    problem: str = ""

    def owed(self, device_id: str) -> list[Side]:
        """Return the sides that are awaited of a device: none of one that declined a side."""
        here = self.phase == "measuring" and device_id in self.cohort
        if not here or device_id in self.declined:
            return []
        return [side for side in ATTEMPT_OF if side not in self.measured.get(device_id, {})]

    def pairs(self) -> dict[str, tuple[SideMeasured, SideMeasured]]:
        """Return what was measured by those that measured both: (candidate, production)."""
        return {
            device_id: (sides["candidate"], sides["production"])
            for device_id, sides in sorted(self.measured.items())
            if len(sides) == len(ATTEMPTS)
        }

    def apply(self, fact: Fact) -> None:
        """Apply one fact.

        Raises:
            InvalidTransition: the fact cannot follow here; nothing was changed.
        """
        if type(fact) not in LEGAL[self.phase]:
            raise InvalidTransition(f"{type(fact).__name__} cannot follow while {self.phase}")
        match fact:
            case OrdersOpened():
                self.phase = "measuring"
            case SideMeasured() | SideDeclined():
                if fact.side not in self.owed(fact.device_id):
                    raise InvalidTransition(f"{fact.device_id} does not owe {fact.side}")
                if isinstance(fact, SideMeasured):
                    # a journal may hold what an earlier version let in
                    counted = replace(fact, metrics=plausible(fact.metrics))
                    self.measured.setdefault(fact.device_id, {})[fact.side] = counted
                else:
                    self.declined[fact.device_id] = fact
            case Judged():
                self.phase, self.judged = "settling", fact
            case Settled():
                self.phase, self.problem = "ended", fact.problem


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name is better the lower it is.

    >>> lower_is_better("val_loss"), lower_is_better("accuracy"), lower_is_better("rmse")
    (True, False, True)
    """
    name = metric.lower().replace("-", "_")
    return name in _LOWER_IS_BETTER or any(name.endswith(f"_{each}") for each in _LOWER_IS_BETTER)


def is_lower_better(plan: CanaryPlan) -> bool:
    """Whether the plan's metric is better the lower it is."""
    return plan.goal == "lower" if plan.goal else lower_is_better(plan.metric)


@dataclass(frozen=True)
class _Pair:
    """One device's two values; ``weight`` is its number of examples, the smaller if they differ."""

    candidate: float
    production: float
    weight: int


def judge(plan: CanaryPlan, state: CanaryState) -> Judged:
    """Return the verdict of what was measured so far, with its reason in words."""
    pairs = measured_pairs(plan, state)
    broken = [
        device_id
        for device_id, (candidate, production) in state.pairs().items()
        if plan.metric in production.metrics and plan.metric not in candidate.metrics
    ]
    if broken:
        where = ", ".join(broken[:_NAMED_DEVICES])
        reason = f"the candidate's {plan.metric} is no number on {where}, where production's is one"
        return Judged("rolled_back", reason, len(pairs), None, None)
    if len(pairs) < plan.quorum:
        return Judged("inconclusive", _too_few(plan, state, len(pairs)), len(pairs), None, None)
    candidate = weighted_mean([(pair.candidate, pair.weight) for pair in pairs])
    production = weighted_mean([(pair.production, pair.weight) for pair in pairs])
    if candidate is None or production is None:
        return Judged("inconclusive", _too_few(plan, state, 0), 0, None, None)
    worse_by = candidate - production if is_lower_better(plan) else production - candidate
    verdict: Verdict = "promoted" if worse_by <= plan.max_drop + _TOLERANCE else "rolled_back"
    reason = _compared(plan, candidate, production, pairs)
    return Judged(verdict, reason, len(pairs), candidate, production)


def measured_pairs(plan: CanaryPlan, state: CanaryState) -> list[_Pair]:
    """Return the values of those that measured the plan's metric of both versions."""
    return [
        _Pair(
            candidate.metrics[plan.metric],
            production.metrics[plan.metric],
            min(candidate.num_examples, production.num_examples),
        )
        for candidate, production in state.pairs().values()
        if plan.metric in candidate.metrics and plan.metric in production.metrics
    ]


def _compared(plan: CanaryPlan, candidate: float, production: float, pairs: list[_Pair]) -> str:
    kind = plan.measured_by if len(pairs) > 1 else plan.measured_by.removesuffix("s")
    worse = "higher" if is_lower_better(plan) else "lower"
    direction = "higher" if candidate > production else "lower"
    change = "the same" if candidate == production else f"{_figure(abs(candidate - production))} "
    change += "" if candidate == production else direction
    return (
        f"{plan.metric} is {_figure(candidate)}, in production {_figure(production)}, on the same "
        f"{len(pairs)} {kind} ({sum(pair.weight for pair in pairs)} examples): {change}, and at "
        f"most {_figure(plan.max_drop)} {worse} is allowed"
    )


def _too_few(plan: CanaryPlan, state: CanaryState, pairs: int) -> str:
    kind = plan.measured_by if plan.quorum > 1 else plan.measured_by.removesuffix("s")
    said = f"{pairs} of at least {plan.quorum} {kind} measured {plan.metric} of both versions"
    for fact in list(state.declined.values())[:1]:
        said += f"; {fact.device_id} declined the {fact.side}: {fact.reason[:_LONGEST_REASON]}"
    silent = [device_id for device_id in plan.cohort if state.owed(device_id)]
    if silent:
        said += f"; nothing or half came of {', '.join(silent[:_NAMED_DEVICES])}"
    both = state.pairs()
    if both and not pairs:
        names = sorted({name for rows in both.values() for row in rows for name in row.metrics})
        said += f"; what they measure: {', '.join(names[:_NAMED_METRICS]) or 'nothing'}"
    return said


def _figure(value: float) -> str:
    return f"{value:.4g}"
