"""What a run's definition gives the round machine to decide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fl_server.rounds.workload import FitRule

Status: TypeAlias = Literal["running", "paused", "completed", "stopped", "failed"]
Phase: TypeAlias = Literal[
    "waiting", "gathering", "collecting", "aggregating", "evaluating", "ended"
]
EvaluateOn: TypeAlias = Literal["evaluators", "devices", "none"]


@dataclass(frozen=True)
class BestRule:
    """Which version of a run is its best, and when no better one is looked for.

    Attributes:
        metric: what versions are compared by.
        lower: whether less of it is better.
        min_delta: how much better a version must be to count as better.
        patience: after so many rounds without a better version the run ends; 0 for never.
    """

    metric: str
    lower: bool = False
    min_delta: float = 0.0
    patience: int = 0

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a version with this value takes the place of the best so far, if there is one."""
        if best is None:
            return True
        return (best - value if self.lower else value - best) > self.min_delta


@dataclass(frozen=True)
class Plan:
    """What the machine must know of a run's definition.

    Attributes:
        cohort_size: the target number of updates of a round.
        over_selection: invited devices per targeted update, at least 1.
        quorum: the fewest updates that make a round.
        deadline_s: how long a round collects.
        gather_s: how long to wait for a full cohort once a quorum is there.
        max_attempts: attempts at one round before the run fails.
        fit: how orders are fitted to devices, None: all get the same.
        best: how the best version is found, None: nobody looks for it.
        on_request: each round waits for ``RoundRequested``, which brings the model to begin with.
        sums: a round ends with the exact sums of its updates, of which no model is made here.
    """

    run_id: str
    rounds: int
    cohort_size: int
    quorum: int
    seed: int = 0
    over_selection: float = 1.0
    deadline_s: float = 120.0
    gather_s: float = 10.0
    max_attempts: int = 50
    evaluate_every: int = 1
    evaluate_on: EvaluateOn = "evaluators"
    evaluation_deadline_s: float = 30.0
    fit: FitRule | None = None
    best: BestRule | None = None
    on_request: bool = False
    sums: bool = False
