"""A run as it goes on, for a person: a line for each thing that matters."""

from __future__ import annotations

from typing import Self

from rengo.runs import Follower, RunResult


class RunView:
    """Prints a run's progress."""

    def __init__(self) -> None:
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def update(self, follower: Follower) -> None:
        """Show what is new."""
        for event in follower.events[self._shown :]:
            if event.name in {"RoundCommitted", "RoundAbandoned", "EvaluationRecorded"}:
                print(event.round, event.name, event.detail, flush=True)
        self._shown = len(follower.events)

    def conclude(self, result: RunResult) -> None:
        """Say what came of it."""
        print(f"{result.status}: accuracy {result.accuracy}, model {result.model_path}")
