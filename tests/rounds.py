"""A round machine with short ways to speak to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fl_server.flows.commands import SendReceipt
from fl_server.flows.events import (
    DeviceJoined,
    TimerFired,
)
from fl_server.flows.flow import Step
from fl_server.rounds.commands import (
    Command,
    SendOrder,
)
from fl_server.rounds.events import (
    AggregationFinished,
    Event,
    ResultReceived,
    UpdateVerified,
)
from fl_server.rounds.facts import (
    Fact,
)
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Phase, Plan

INITIAL = Model(0, "g/0", "0" * 64, 100)


def model(version: int) -> Model:
    return Model(version, f"g/{version}", f"{version}" * 64, 100)


def update(device_id: str, round_number: int = 1, attempt: int = 1, header: str = "a") -> Update:
    return Update(f"u/{round_number}/{attempt}/{device_id}", 10, header * 64, 5)


@dataclass
class Run:
    """A machine, all that it decided and asked for, and short ways to speak to it."""

    plan: Plan
    machine: RoundMachine
    facts: list[Fact] = field(default_factory=list)
    last: Step = field(default_factory=Step)

    @classmethod
    def of(cls, *devices: str, **settings: object) -> Run:
        known: dict[str, object] = {"rounds": 2, "cohort_size": 3, "quorum": 2}
        plan = Plan("run", **{**known, **settings})  # type: ignore[arg-type]
        run = cls(plan, RoundMachine(plan, INITIAL))
        run.join(*devices)
        return run

    def give(self, *events: Event) -> list[Command]:
        """Give events; returns the last one's commands."""
        for event in events:
            self.last = self.machine.handle(event)
            self.facts += self.last.facts
        return self.last.commands

    def restart(self) -> list[Command]:
        """Lose the machine's memory and resume from the facts."""
        self.machine = RoundMachine(self.plan, INITIAL, self.facts)
        self.last = self.machine.resume()
        self.facts += self.last.facts
        return self.last.commands

    def join(self, *devices: str) -> list[Command]:
        return self.give(
            *(DeviceJoined(d, "evaluator" if d[0] == "e" else "trainer") for d in devices)
        )

    @property
    def now(self) -> tuple[int, int]:
        return self.machine.ledger.round, self.machine.ledger.attempt

    def reports(self, *devices: str) -> list[Command]:
        return self.give(*(ResultReceived(d, *self.now, update(d, *self.now)) for d in devices))

    def verifies(self, *devices: str) -> list[Command]:
        return self.give(*(UpdateVerified(d, *self.now, update(d, *self.now)) for d in devices))

    def counts(self, *devices: str) -> list[Command]:
        for device_id in devices:
            self.reports(device_id)
            self.verifies(device_id)
        return self.last.commands

    def fires(self, timer: str) -> list[Command]:
        return self.give(TimerFired(timer, *self.now))

    def commits(self) -> list[Command]:
        return self.give(AggregationFinished(*self.now, model(self.now[0])))

    @property
    def phase(self) -> Phase:
        return self.machine.ledger.phase


def of_type(commands: list[Command], kind: type) -> list[Command]:
    return [command for command in commands if isinstance(command, kind)]


def ordered(commands: list[Command]) -> set[str]:
    return {command.device_id for command in commands if isinstance(command, SendOrder)}


def receipt(commands: list[Command]) -> SendReceipt:
    (found,) = of_type(commands, SendReceipt)
    assert isinstance(found, SendReceipt)
    return found


def finish(run: Run) -> None:
    while run.phase != "evaluating":
        run.counts("a", "b", "c")
        run.commits()
