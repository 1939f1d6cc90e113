"""A kind of flow in one file, with its task: rounds of two phases, and a sum in each.

Phase "count": each device answers how many examples it has of each class. Phase "weigh": each gets
the counts of all, and answers the product of its own with them. So the last sum is the square of
the first. As a program it is ``rengo server`` with this kind added:

    python -m tests.integration.two_phase CONFIG KILL
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.wire.messages import RunDocument
from fl_client.tasks.digits import Digits
from fl_client.tasks.exchange import ExchangeContext
from fl_server.flows.commands import Command, IssueOrder, TaskSettings
from fl_server.flows.events import (
    DeviceAnswered,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    StopRequested,
)
from fl_server.flows.flow import Flow, Step, receipt_of
from fl_server.flows.report import FlowReport, RecordedFact, RoundReport
from fl_server.kinds.base import FlowKind, FlowServices
from fl_server.persistence.journal import Journal
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import FactRecord, RunRecord, Vocabulary

PHASES = ("count", "weigh")


class CountingTask(Digits):
    def exchange(self, context: ExchangeContext) -> bytes:
        _, labels = context.train_split
        counts = np.bincount(labels, minlength=10).astype(np.int64)
        if context.phase == "count":
            return counts.tobytes()
        return np.array([counts @ np.frombuffer(context.payload, np.int64)]).tobytes()


@dataclass(frozen=True)
class Plan:
    rounds: int
    devices: int


@dataclass(frozen=True)
class PhaseStarted:
    """``said`` goes to each device of ``cohort``."""

    round: int
    phase: str
    cohort: tuple[str, ...]
    said: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShareCounted:
    round: int
    phase: str
    device_id: str
    share: tuple[int, ...]


@dataclass(frozen=True)
class RunEnded:
    status: str
    sums: tuple[int, ...]


class TwoPhase(Flow):
    def __init__(self, record: RunRecord[Plan], facts: Sequence[FactRecord]) -> None:
        self.run_id, self.task, self.record = record.run_id, record.definition.task, record
        self.online: set[str] = set()
        self.phase = PhaseStarted(0, "", ())
        self.shares: dict[str, tuple[int, ...]] = {}
        self.end: RunEnded | None = None
        for row in facts:
            self._apply(row.fact)

    @property
    def ended(self) -> bool:
        return self.end is not None

    def handle(self, event: object) -> Step[Any, Command]:
        step: Step[Any, Command] = Step()
        match event:
            case DeviceJoined(role="trainer", accepting=True):
                self.online.add(event.device_id)
                self._order(event.device_id, step)
                if not self.phase.phase and len(self.online) >= self.record.plan.devices:
                    self._start(1, PHASES[0], tuple(sorted(self.online)), (), step)
            case DeviceLeft():
                self.online.discard(event.device_id)
            case OrderRequested(action="exchange"):
                self._order(event.device_id, step)
            case DeviceAnswered(action="exchange"):
                self._answered(event, step)
            case StopRequested() if not self.ended:
                self._record(RunEnded("stopped", self.sums()), step)
        return step

    def resume(self) -> Step[Any, Command]:
        return Step()  # orders follow as devices join

    def sums(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(*self.shares.values(), strict=True)))

    def _start(
        self,
        number: int,
        phase: str,
        cohort: tuple[str, ...],
        said: tuple[int, ...],
        step: Step[Any, Command],
    ) -> None:
        self._record(PhaseStarted(number, phase, cohort, said), step)
        for device_id in cohort:
            self._order(device_id, step)

    def _order(self, device_id: str, step: Step[Any, Command]) -> None:
        now, definition = self.phase, self.record.definition
        owes = device_id in now.cohort and device_id not in self.shares and not self.ended
        if owes and device_id in self.online:
            settings = TaskSettings(self.task, definition.algorithm.name, {}, {}, definition.seed)
            said = np.array(now.said, np.int64).tobytes()
            order = IssueOrder(device_id, "exchange", now.round, 1, settings, time_s=60.0)
            step.commands.append(replace(order, phase=now.phase, payload=said))

    def _answered(self, event: DeviceAnswered, step: Step[Any, Command]) -> None:
        now = self.phase
        if self.ended or (event.round, event.phase) != (now.round, now.phase):
            step.commands.append(receipt_of(event, "late", "the run went on"))
            return
        if event.device_id not in self.shares:
            share = tuple(np.frombuffer(event.payload, np.int64).tolist())
            self._record(ShareCounted(now.round, now.phase, event.device_id, share), step)
        step.commands.append(receipt_of(event, "accepted"))
        if set(self.shares) == set(now.cohort):
            self._next(step)

    def _next(self, step: Step[Any, Command]) -> None:
        now, sums = self.phase, self.sums()
        if now.phase == PHASES[0]:
            self._start(now.round, PHASES[1], now.cohort, sums, step)
        elif now.round < self.record.plan.rounds:
            self._start(now.round + 1, PHASES[0], now.cohort, (), step)
        else:
            self._record(RunEnded("completed", sums), step)

    def report(self, facts: Sequence[RecordedFact]) -> FlowReport:
        told = FlowReport()
        for row in facts:
            match row.fact:
                case PhaseStarted() as begun if begun.phase == PHASES[0]:
                    for entry in told.rounds[-1:]:
                        entry.end("committed", row.at)
                    told.rounds.append(RoundReport(begun.round, 1, row.at, begun.cohort))
                case ShareCounted() as share if share.phase == PHASES[1]:
                    told.rounds[-1].included = (*told.rounds[-1].included, share.device_id)
                    told.devices[share.device_id].rounds += 1
                case RunEnded() as end:
                    outcome = "committed" if end.status == "completed" else "abandoned"
                    for entry in told.rounds[-1:]:
                        entry.end(outcome, row.at)  # type: ignore[arg-type]
        return told

    def _record(self, fact: Any, step: Step[Any, Command]) -> None:
        self._apply(fact)
        step.facts.append(fact)

    def _apply(self, fact: Any) -> None:
        match fact:
            case PhaseStarted():
                self.phase, self.shares = fact, {}
            case ShareCounted():
                self.shares[fact.device_id] = fact.share
            case RunEnded():
                self.end = fact

    def document(self, epoch: int) -> RunDocument:
        return RunDocument(
            run_id=self.run_id,
            task=self.task,
            algorithm=self.record.definition.algorithm.name,
            status="running" if self.end is None else self.end.status,  # type: ignore[arg-type]
            round=self.phase.round,
            attempt=1,
            rounds=self.record.plan.rounds,
            epoch=epoch,
            phase="ended" if self.ended else self.phase.phase,
            deadline_s=60.0,
            cohort=list(self.phase.cohort),
            answered=sorted(self.shares),
            model_sha256="",
            accuracy=None,
            loss=None,
        )


class TwoPhaseKind(FlowKind):
    vocabulary = Vocabulary(
        Plan, {fact.__name__: fact for fact in (PhaseStarted, ShareCounted, RunEnded)}
    )

    def plan(self, run_id: str, definition: RunDefinition, services: FlowServices) -> Plan:
        return Plan(definition.rounds, definition.cohort.size)

    def open(
        self, record: RunRecord[Plan], facts: Sequence[FactRecord], services: FlowServices
    ) -> TwoPhase:
        return TwoPhase(record, facts)


def die_after(kill: Path) -> None:
    """Have this process kill itself once, after it has journalled the fact that a file names."""
    append = Journal.append

    def watched(self: Journal, run_id: str, facts: Sequence[Any]) -> None:
        append(self, run_id, facts)
        if kill.exists() and any(kill.read_text() in str(fact) for fact in facts):
            kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    from rengo.cli.site.roles import run_server

    die_after(Path(sys.argv[2]))
    options = argparse.Namespace(config=Path(sys.argv[1]), debug=False)
    sys.exit(run_server(options, {"two_phase": TwoPhaseKind()}))
