"""What is run and what came of it, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Metrics: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """A run without its seed.

    Attributes:
        task: as `rengo run` takes it.
        clients: how many share the data set.
        cohort: how many of them train in a round; 0 is all.
        options: the algorithm's settings.
        training: over the task's.
        partition: over the task's.
        backend: of the simulator.
        measured_on: by an evaluator on its own examples, or by every client on what it holds out.
        every: a version is measured after every so many rounds, and the last one always.
        stop_at: the accuracy at which the run ends before its last round.
    """

    task: str
    clients: int
    rounds: int
    cohort: int = 0
    algorithm: str = "fedavg"
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    partition: str = ""
    engine: Literal["numpy", "torch"] = "numpy"
    backend: str = "auto"
    measured_on: Literal["evaluators", "devices"] = "evaluators"
    every: int = 1
    stop_at: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Attributes:
        curve: the metrics by round, as they were measured. Those of clients are means over their
            examples; beside them are ``worst_tenth`` and ``variance`` of the clients' accuracies,
            of their personal models where they have such.
        diverged: the round in which training gave no finite numbers, 0 for none.
        cpu_s: of this process.
        chosen: which of several global models each client trained last, by the client's number.
        sent: how much of the model a client downloads, trains and sends, the mean over all clients.
        backend: of the simulator, which computed it.
    """

    curve: Mapping[int, Metrics]
    diverged: int = 0
    cpu_s: float = 0.0
    chosen: Mapping[int, int] = field(default_factory=dict)
    sent: float = 1.0
    backend: str = ""

    @property
    def last(self) -> Metrics:
        """The metrics of the last version that was measured."""
        return self.curve[max(self.curve)] if self.curve else {}
