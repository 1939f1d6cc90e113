"""Carries out a run in virtual time: when results arrive is a virtual fleet's, what is in them not.

The backend trains what will count, as late as that is known: of an order that is dropped nothing is
trained. So the history is a function of the definition and the fleet, whatever computes it.
"""

from __future__ import annotations

from fl_server.rounds.commands import SendOrder
from fl_server.rounds.events import EvaluationReceived, Event, ResultReceived
from fl_server.rounds.facts import Fact, RoundAbandoned, RoundClosed
from fl_server.rounds.model import Update
from rengo.simulation.backend import Declined, EvaluationResult, TrainingResult
from rengo.simulation.clients import EVALUATOR_ID
from rengo.simulation.coordinator import Coordinator, Parts, RunWatch, SimulatedRun, declined
from rengo.simulation.order_sizes import OrderSizes
from rengo.simulation.timeline import Happening
from rengo.simulation.virtual.account import VirtualAccount
from rengo.simulation.virtual.orders import TimedOrder, WorkDone
from rengo.simulation.virtual.work import OrderSize
from rengo.simulation.virtual.world import STANDSTILL_S, VirtualWorld
from runtime.errors import RunNotCompleted


class PacedCoordinator(Coordinator):
    """One run in virtual time.

    Attributes:
        account: what the rounds took, and who was dropped.
    """

    def __init__(
        self,
        run: SimulatedRun,
        parts: Parts,
        world: VirtualWorld,
        watch: RunWatch,
    ) -> None:
        super().__init__(run, parts, self)
        self.timeline = self._world = world
        self.account = VirtualAccount()
        self._others = watch
        self._sizes = OrderSizes(run.clients, run.initial.weights)
        # what is trained already, and what was measured, until the virtual answer comes
        self._trained: dict[str, TrainingResult] = {}
        self._measured: dict[tuple[str, int], EvaluationResult] = {}
        self._progress_s = 0.0

    def _join(self) -> None:
        self._world.begin()

    def step(self) -> None:
        """Let the next thing happen; raises as ``Coordinator.step``."""
        super().step()
        self._take_ends()
        if self._world.now_s > self._progress_s + STANDSTILL_S and not self.ended:
            ledger = self.machine.ledger
            raise RunNotCompleted(
                f"round {ledger.round} was not committed within {STANDSTILL_S / 86_400:g} days of "
                f"virtual time: {ledger.explanation or 'too few devices are online together'}"
            )
        if self.ended:
            self._world.finish()
            self._take_ends()

    def observe(self, fact: Fact) -> None:
        """See :class:`rengo.simulation.coordinator.RunWatch`."""
        self.account.add_fact(fact, self._world.now_s)
        if isinstance(fact, RoundClosed | RoundAbandoned):
            self._world.close(fact.round, fact.attempt)
            self._trained.clear()
            self._take_ends()
        if isinstance(fact, RoundClosed):
            self._progress_s = self._world.now_s
        self._others.observe(fact)

    def committed(self) -> None:
        """See :class:`rengo.simulation.coordinator.RunWatch`."""
        self._others.committed()

    def _take_ends(self) -> None:
        ended, self._world.ended = self._world.ended, []
        self.account.add_ends(ended)
        for each in ended:
            if each.order.action == "evaluate" and each.end not in {"answered", "repeated"}:
                self._measured.pop((each.order.device_id, each.order.round), None)

    # --- orders -------------------------------------------------------------------------------

    def _train(self, commands: list[SendOrder]) -> None:
        """Send the orders; what comes of them is computed when the first answer is due."""
        for command in commands:
            self._world.send(self._timed(command, self._training_size(command)))

    def _evaluate(self, commands: list[SendOrder]) -> None:
        """Measure now, while the version is there, and let each device's answer come in time."""
        at_server = [each for each in commands if each.device_id == EVALUATOR_ID]
        if at_server:
            super()._evaluate(at_server)
        new = [
            each
            for each in commands
            if each not in at_server and (each.device_id, each.round) not in self._measured
        ]
        orders = [self._order(each) for each in new]
        for result in self.parts.backend.evaluate(orders, self._global_model()) if orders else ():
            self._measured[(result.device_id, commands[0].round)] = result
        for command in commands:
            if command not in at_server:
                measured = self._measured[(command.device_id, command.round)]
                examples = 0 if isinstance(measured, Declined) else measured.num_examples
                self._world.send(self._timed(command, self._sizes.evaluation(examples)))

    def _timed(self, command: SendOrder, size: OrderSize) -> TimedOrder:
        place = (command.device_id, command.action, command.round, command.attempt)
        return TimedOrder(*place, size)

    def _training_size(self, command: SendOrder) -> OrderSize:
        order = self._order(command)
        vectors = len(self.version.vectors) if self._algorithm.broadcasts else 0
        whole = self.version.weights.layout
        part = None
        if order.width < 1:
            part = self._algorithm.part(order.width, order.round, whole)
        share = 1.0 if part is None else part.part.size / whole.size
        return self._sizes.training(order, (vectors, len(self._algorithm.sends)), share)

    # --- answers ------------------------------------------------------------------------------

    def _resolved(self, event: Happening) -> Event:
        """Return what the machine is told where a device's work is done."""
        if not isinstance(event, WorkDone):
            return event
        order = event.order
        pair = (order.round, order.attempt)
        if order.action == "evaluate":
            return self._evaluated(order)
        if not self.machine.ledger.collects(*pair):
            # it came in the very moment in which the round closed
            return ResultReceived(order.device_id, *pair, Update("", 0, "", 0))
        if order.device_id not in self._trained:
            self._compute(order)
        result = self._trained.pop(order.device_id)
        if isinstance(result, Declined):
            return declined(result, "train", pair)
        return self._delivered(result, pair)

    def _compute(self, order: TimedOrder) -> None:
        """Train an order that is due, together with those that will count beside it."""
        ledger = self.machine.ledger
        wanted = ledger.target - len(ledger.accepted) - len(self._trained) - 1
        coming = self._world.next_answers(max(0, wanted) + len(self._trained))
        chosen = {each.device_id: each for each in [order, *coming] if self._is_new(each)}
        orders = [self._order(SendOrder(*each.key)) for each in chosen.values()]
        for result in self.parts.backend.train(orders, self._global_model()):
            self._trained[result.device_id] = result

    def _is_new(self, order: TimedOrder) -> bool:
        is_open = self.machine.ledger.collects(order.round, order.attempt)
        return is_open and order.device_id not in self._trained

    def _evaluated(self, order: TimedOrder) -> Event:
        result = self._measured.pop((order.device_id, order.round))
        pair = (order.round, order.attempt)
        if isinstance(result, Declined):
            return declined(result, "evaluate", pair)
        return EvaluationReceived(order.device_id, *pair, result.num_examples, dict(result.metrics))
