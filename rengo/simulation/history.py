"""What happened in a simulated run: the fold of its facts into figures, a row for each round.

A row holds numbers alone, so that memory hardly grows with the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fl_server.rounds.facts import (
    EvaluationRecorded,
    Fact,
    OrderDeclined,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    UpdateAccepted,
    UpdateRefused,
)
from fl_server.rounds.ledger import Ledger

_LATE = 4
"""So many versions later a version's metrics are taken as they are then."""
_REASONS = 20


@dataclass(slots=True)
class RoundFigures:
    """One committed round.

    Attributes:
        attempts: how many it took.
        seconds: from its start to its commit, of this machine.
        virtual_s: when it was committed, in virtual seconds from the beginning.
        invited: how many clients were, in the last attempt.
        updates: how many are in its version.
        refused: how many declined or were refused, in all attempts.
        num_examples: of the updates together.
        train_loss: the mean over the updates' examples, None where clients report none.
        dropped: whose updates did not count, of those who were invited to the last attempt; in
            virtual time alone.
        energy_j: what the round cost a fleet's devices in virtual time, all attempts together.
        metrics: of its version by name, empty where nobody measured it.
    """

    round: int
    attempts: int = 1
    seconds: float = 0.0
    virtual_s: float = 0.0
    invited: int = 0
    updates: int = 0
    refused: int = 0
    num_examples: int = 0
    train_loss: float | None = None
    dropped: int = 0
    energy_j: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class RoundHistory:
    """The rounds of a run so far.

    Args:
        ledger: of the run; metrics come from it.
        clock: returns this machine's monotonic seconds.
        virtual_clock: returns virtual seconds.
        download_bytes: what a client fetches for a round.

    Attributes:
        reasons: why the first clients declined or were refused, by client.
        taken_part: in how many versions a client's update is.
        bytes_up: of the values that clients sent, as a fleet's without its headers.
        bytes_down: of the models and vectors that they would have fetched.
        wall_s: of this machine, from the beginning to the last commit.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        virtual_clock: Callable[[], float],
        download_bytes: int = 0,
    ) -> None:
        self.rounds: list[RoundFigures] = []
        self.reasons: dict[str, str] = {}
        self.taken_part: dict[str, int] = {}
        self.bytes_up = self.bytes_down = 0
        self.wall_s = 0.0
        self._ledger, self._clock, self._virtual_clock = ledger, clock, virtual_clock
        self._open = RoundFigures(len(self.rounds) + 1)
        self._begun_s = self._last_s = clock()
        self._download_bytes = download_bytes
        self._losses: list[float] = []
        self._unsettled: list[int] = []

    def observe(self, fact: Fact) -> None:
        """Take note of a fact that the ledger has."""
        row = self._open
        match fact:
            case RoundStarted():
                if fact.attempt == 1:
                    self._begun_s = self._clock()
                row.invited, row.attempts = len(fact.cohort), fact.attempt
                row.num_examples, self._losses = 0, []
                self.bytes_down += len(fact.cohort) * self._download_bytes
            case UpdateAccepted():
                self._add(fact, row)
            case UpdateRefused() | OrderDeclined():
                row.refused += 1
                if len(self.reasons) < _REASONS:
                    self.reasons[fact.device_id] = fact.reason
            case RoundClosed():
                row.updates = len(fact.included)
                for device_id in fact.included:
                    self.taken_part[device_id] = self.taken_part.get(device_id, 0) + 1
            case RoundAbandoned():
                row.num_examples, self._losses = 0, []
            case RoundCommitted():
                self._commit(row)
            case EvaluationRecorded():
                if fact.round not in self._unsettled:
                    self._unsettled.append(fact.round)

    def settle(self, *, last: bool = False) -> None:
        """Set the metrics of versions that are no longer measured.

        Args:
            last: whether none is.
        """
        newest = self._ledger.model.version
        for version in list(self._unsettled):
            if last or version <= newest - _LATE:
                self.rounds[version - 1].metrics = self._ledger.metrics(version)
                self._unsettled.remove(version)

    def latest(self, metric: str) -> float | None:
        """Return a metric of the latest version that was measured, None where it has none."""
        if self._unsettled:
            return self._ledger.metric(self._unsettled[-1], metric)
        measured = (row.metrics for row in reversed(self.rounds) if row.metrics)
        return next(measured, {}).get(metric)

    def saved(self) -> dict[str, Any]:
        """Return it as plain data, where a round was just committed."""
        return {
            "rounds": [asdict(row) for row in self.rounds],
            "reasons": self.reasons,
            "taken_part": self.taken_part,
            "bytes": [self.bytes_up, self.bytes_down],
            "wall_s": self.wall_s,
            "unsettled": self._unsettled,
            "invited": self._open.invited,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Set what ``saved`` gave."""
        self.rounds[:] = [RoundFigures(**row) for row in saved["rounds"]]
        self.reasons, self.taken_part = dict(saved["reasons"]), dict(saved["taken_part"])
        self.bytes_up, self.bytes_down = saved["bytes"]
        self.wall_s, self._unsettled = saved["wall_s"], list(saved["unsettled"])
        self._open = RoundFigures(len(self.rounds) + 1, invited=saved["invited"])
        self._begun_s = self._last_s = self._clock()

    def _add(self, fact: UpdateAccepted, row: RoundFigures) -> None:
        self.bytes_up += fact.update.size_bytes
        count, loss = fact.update.num_examples, fact.update.metrics.get("train_loss")
        row.num_examples += count
        if loss is not None:
            self._losses.append(count * loss)

    def _commit(self, row: RoundFigures) -> None:
        now_s = self._clock()
        self.wall_s += now_s - self._last_s
        self._last_s = now_s
        row.seconds, row.virtual_s = now_s - self._begun_s, self._virtual_clock()
        if self._losses:
            row.train_loss = math.fsum(self._losses) / row.num_examples
        self.rounds.append(row)
        self._open, self._begun_s = RoundFigures(row.round + 1), now_s
        self._losses = []
