"""The evaluation of one of the parent's versions by a domain's devices. Pure.

Nothing of it is journalled: after a restart the parent orders it again, and so do the devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_server.flows.commands import Evaluators
from fl_server.flows.mean import weighted_mean
from fl_server.rounds.model import Model
from runtime.bounds import MAX_EXAMPLES, plausible


@dataclass(frozen=True)
class EvaluationRequested:
    """The parent asks what ``version`` of its model, here ``model``, is worth.

    Attributes:
        version: the parent's number.
        on: which devices are asked.
        deadline_s: after so long those that have answered are enough.
    """

    version: int
    model: Model
    on: Evaluators
    training: Mapping[str, Any]
    deadline_s: float


@dataclass(frozen=True)
class VersionEvaluated:
    """What the devices measured: means by their numbers of examples; None: nobody has answered."""

    version: int
    num_examples: int
    metrics: Mapping[str, float]
    reason: str = ""


@dataclass
class TreeEvaluation:
    """Who was ordered to evaluate a version, and what they answered."""

    requested: EvaluationRequested
    ordered: set[str] = field(default_factory=set)
    gone: dict[str, str] = field(default_factory=dict)
    answers: dict[str, tuple[int, dict[str, float]]] = field(default_factory=dict)
    is_over: bool = False

    @property
    def awaited(self) -> set[str]:
        """Who still owes an answer."""
        return self.ordered - self.gone.keys() - self.answers.keys()

    def result(self) -> VersionEvaluated:
        """Return the means of what was answered, or why there is nothing."""
        version, rows = self.requested.version, sorted(self.answers.items())
        if not rows:
            reasons = sorted(set(self.gone.values()))
            return VersionEvaluated(
                version, 0, {}, "; ".join(reasons[:3]) or "nobody here is to evaluate it"
            )
        names = sorted({name for _, (_, metrics) in rows for name in metrics})
        means = {
            name: weighted_mean(
                [(metrics[name], examples) for _, (examples, metrics) in rows if name in metrics]
            )
            for name in names
        }
        examples = min(sum(examples for _, (examples, _) in rows), MAX_EXAMPLES)
        found = {name: mean for name, mean in means.items() if mean is not None}
        return VersionEvaluated(version, examples, plausible(found))
