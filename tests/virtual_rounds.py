"""Virtual rounds without training: the real round machine over the virtual world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_server.flows.commands import ArmTimer
from fl_server.rounds.commands import Aggregate, SendOrder, VerifyUpdate
from fl_server.rounds.events import AggregationFinished, ResultReceived, UpdateVerified
from fl_server.rounds.facts import Fact, RoundAbandoned, RoundClosed
from fl_server.rounds.ledger import RoundStep
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from rengo.simulation.virtual.account import VirtualAccount
from rengo.simulation.virtual.availability import Availability, DrawnAvailability
from rengo.simulation.virtual.devices import DeviceModel
from rengo.simulation.virtual.fleet import Kind, VirtualFleet
from rengo.simulation.virtual.orders import OrderEnded, TimedOrder, WorkDone
from rengo.simulation.virtual.work import OrderSize
from rengo.simulation.virtual.world import VirtualWorld, WorldEvent

MOST_EVENTS = 200_000


def fleet_of(models: Sequence[DeviceModel], seed: int = 0) -> VirtualFleet:
    """Return a fleet with one device of each model, in an order of the seed's."""
    return VirtualFleet(
        [Kind(f"k{n}", 1.0, model) for n, model in enumerate(models)], len(models), seed
    )


def plan_of(cohort: int, rounds: int = 3, **settings: object) -> Plan:
    given = {"quorum": 1, "evaluate_on": "none", **settings}
    return Plan("run", rounds, cohort, **given)  # type: ignore[arg-type]


@dataclass
class History:
    """Everything that happened, with its virtual time."""

    events: list[tuple[float, WorldEvent]] = field(default_factory=list)
    facts: list[tuple[float, Fact]] = field(default_factory=list)
    sent: list[TimedOrder] = field(default_factory=list)
    ended: list[OrderEnded] = field(default_factory=list)
    account: VirtualAccount = field(default_factory=VirtualAccount)
    status: str = ""


class VirtualRun:
    """One run of virtual rounds, each update taken as trained."""

    def __init__(
        self,
        fleet: VirtualFleet,
        plan: Plan,
        size: OrderSize,
        availability: Availability | None = None,
    ) -> None:
        self.ids = [f"d{index:03d}" for index in range(fleet.count)]
        self.world = VirtualWorld(fleet, availability or DrawnAvailability(fleet), self.ids, 2000.0)
        self.machine = RoundMachine(plan, Model(0, "m0", "0" * 64, 10))
        self.history, self._size = History(), size

    def run(self, until_s: float = float("inf")) -> History:
        """Go on until the run has ended, or nothing can happen before ``until_s``."""
        self.world.begin()
        for _ in range(MOST_EVENTS):
            if self.machine.ledger.phase == "ended" or self.world.now_s > until_s:
                break
            event = self.world.next()
            self._take_ends()
            if event is None:
                break
            self.history.events.append((self.world.now_s, event))
            self._handle(self._result(event.order) if isinstance(event, WorkDone) else event)
        self.history.status = self.machine.ledger.status
        return self.history

    def _handle(self, event: object) -> None:
        self._obey(self.machine.handle(event))  # type: ignore[arg-type]

    def _obey(self, step: RoundStep) -> None:
        for fact in step.facts:
            self.history.facts.append((self.world.now_s, fact))
            self.history.account.add_fact(fact, self.world.now_s)
            if isinstance(fact, RoundClosed | RoundAbandoned):
                self.world.close(fact.round, fact.attempt)
                self._take_ends()
        for command in step.commands:
            match command:
                case SendOrder():
                    place = (command.device_id, command.action, command.round, command.attempt)
                    order = TimedOrder(*place, self._size)
                    self.history.sent.append(order)
                    self.world.send(order)
                case ArmTimer():
                    self.world.arm(command)
                case VerifyUpdate():
                    place = (command.device_id, command.round, command.attempt)
                    self._handle(UpdateVerified(*place, command.update))
                case Aggregate():
                    model = Model(command.round, f"m{command.round}", "0" * 64, 10)
                    self._handle(AggregationFinished(command.round, command.attempt, model))

    def _result(self, order: TimedOrder) -> ResultReceived:
        update = Update(f"{order.key}", self._size.bytes_up, "0" * 64, self._size.examples)
        return ResultReceived(order.device_id, order.round, order.attempt, update)

    def _take_ends(self) -> None:
        ended, self.world.ended = self.world.ended, []
        self.history.ended += ended
        self.history.account.add_ends(ended)
