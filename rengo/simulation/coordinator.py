"""Carries out the commands of the server's round machine in memory: a run without a fleet.

The machine is the one of the server: who is drawn, what is refused, when a round closes, which
version is the best and when a run ends early are decided there. Orders go to a backend; what comes
of them goes into the exact sum and the algorithm's server half, as on the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from algorithms.base import Algorithm, DeviceFacts, Report
from algorithms.registry import load as load_algorithm
from fl_client.models.settings import TrainingSettings
from fl_server.aggregation.arithmetic.combining import Combining
from fl_server.aggregation.arithmetic.in_memory import MemorySums, MemoryVersion, next_version
from fl_server.aggregation.arithmetic.server_half import (
    VersionInput,
    covered,
    require_sections,
    weight_of,
)
from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import DeviceDeclined, DeviceJoined, FailureReported
from fl_server.rounds.commands import Aggregate, FoldUpdate, SendOrder, TagBest
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    DevicesJoined,
    EvaluationReceived,
    Event,
    ResultReceived,
    UpdateDelivered,
    UpdatesDelivered,
)
from fl_server.rounds.facts import Fact, RoundCommitted
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import whole_model
from fl_server.runs.definition import RunDefinition
from fl_server.runs.schedule import training_of
from rengo.simulation.backend import (
    Backend,
    Declined,
    Evaluated,
    GlobalModel,
    Trained,
    VirtualOrder,
)
from rengo.simulation.clients import EVALUATOR, EVALUATOR_ID, VirtualClients
from rengo.simulation.states import ClientStates
from rengo.simulation.timeline import AtOnce, Happening, Timeline
from rengo.simulation.virtual.orders import WorkDone
from runtime.errors import Corrupt, RunNotCompleted, StorageError
from storage.weights import NotFinite, Slices, Vector

_R = TypeVar("_R", Trained | Declined, Evaluated | Declined)
_FOLDED_AT_ONCE_BYTES = 8 << 20
_KEPT_VERSIONS = 8


@dataclass(frozen=True)
class SimulatedRun:
    """What a simulated run is.

    Attributes:
        definition: as an operator would submit it.
        plan: what the machine decides by.
        clients: who trains, with the task.
        initial: version 0.
    """

    definition: RunDefinition
    plan: Plan
    clients: VirtualClients
    initial: MemoryVersion

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that the definition names."""
        chosen = self.definition.algorithm
        return load_algorithm(chosen.name, chosen.settings)


@dataclass
class Parts:
    """What a run is simulated with."""

    backend: Backend
    states: ClientStates


class _Result(NamedTuple):
    """An update that is on its way to the server, with its weight in the sums."""

    trained: Trained
    report: Report
    weight: int
    slices: Slices | None


@dataclass
class _OpenSum:
    """The sum of an attempt, and the updates that wait to be added to it."""

    pair: tuple[int, int]
    sums: MemorySums
    reports: dict[str, Report] = field(default_factory=dict)
    waiting: list[tuple[Mapping[str, Vector], int, Slices | None]] = field(default_factory=list)
    waiting_bytes: int = 0
    weights: list[int] = field(default_factory=list)

    def add(self, update: Mapping[str, Vector], weight: int, slices: Slices | None) -> None:
        """Add an update, of the model's part where there are slices: several at once."""
        self.waiting.append((update, weight, slices))
        self.weights.append(weight)
        self.waiting_bytes += sum(vector.nbytes for vector in update.values())
        if self.waiting_bytes > _FOLDED_AT_ONCE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Add what waits."""
        if self.waiting:
            updates, weights, parts = zip(*self.waiting, strict=True)
            self.sums.add(updates, weights, parts)
        self.waiting, self.waiting_bytes = [], 0


class RunWatch(Protocol):
    """Whoever sees what happens in a run."""

    def observe(self, fact: Fact) -> None:
        """Take note of a fact, after the machine has decided it."""
        ...

    def committed(self) -> None:
        """Take note that a round was committed: of the next, nothing has been computed yet."""
        ...


class Coordinator:
    """One run: its machine, its versions, and its virtual time.

    Args:
        ledger: where a run goes on, what its facts add up to; ``restore`` sets the rest.

    Attributes:
        version: the latest committed one.
        best: the best one, where the run looks for it.
    """

    def __init__(
        self, run: SimulatedRun, parts: Parts, watch: RunWatch, ledger: Ledger | None = None
    ) -> None:
        self.run, self.parts = run, parts
        self._algorithm = run.algorithm
        self._has_parts = bool(self._algorithm.narrow_widths)
        width_of = self._width if self._has_parts else whole_model
        self.machine = RoundMachine(run.plan, Model(0, "", "", 0), width_of=width_of, ledger=ledger)
        self.timeline: Timeline = AtOnce()
        self.version = run.initial
        self.best: MemoryVersion | None = None
        self._watch = watch
        composition = run.definition.composition
        self._rule, self._transforms = composition.rule, composition.transforms
        self._numbers = {name: number for number, name in enumerate(run.clients.ids)}
        self._numbers[EVALUATOR_ID] = EVALUATOR
        self._held: dict[int, MemoryVersion] = {}
        self._results: dict[str, _Result] = {}
        self._usual_sections: set[tuple[tuple[str, ...], tuple[int, ...]]] = set()
        self._sum: _OpenSum | None = None
        self._training_of: tuple[int, Mapping[str, Any]] = (0, {})
        self._training: Mapping[str, Any] = run.definition.training
        self._settings = run.clients.task.training.overridden(self._training)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.machine.ledger.phase == "ended"

    def begin(self) -> None:
        """Let the clients join."""
        if self.run.plan.evaluate_on == "evaluators":
            self.timeline.add(DeviceJoined(EVALUATOR_ID, "evaluator"))
        self._join()

    def restore(
        self,
        version: MemoryVersion,
        held: Mapping[int, MemoryVersion],
        now_s: float,
    ) -> None:
        """Set what is not in the ledger, then call ``resume``.

        Args:
            held: the best version, those that may become it, and the latest.
        """
        self.version, self._held = version, dict(held)
        self.timeline = AtOnce(now_s)

    def resume(self) -> None:
        """Go on with what was pending, as a server does that was started again."""
        self._do(self.machine.resume())
        self.begin()

    def kept_versions(self) -> dict[int, MemoryVersion]:
        """Return the versions that going on needs, by number."""
        ledger = self.machine.ledger
        kept = {**self._held, ledger.model.version: self.version}
        if self.best is not None and ledger.best is not None:
            kept[ledger.best[0]] = self.best
        return kept

    def step(self) -> None:
        """Let the next thing happen.

        Raises:
            RunNotCompleted: nothing is to come and the run has not ended.
        """
        event = self.timeline.next()
        if event is None:
            ledger = self.machine.ledger
            raise RunNotCompleted(
                f"round {ledger.round} waits for clients that never come: "
                f"{ledger.explanation or f'it needs {self.run.plan.quorum} of them'}"
            )
        self._carry_out(self._resolved(event))

    def _join(self) -> None:
        """Let the clients join that are there at first."""
        self.timeline.add(DevicesJoined(tuple(self.run.clients.ids)))

    def _resolved(self, event: Happening) -> Event:
        """Return what the machine is told of what happened."""
        assert not isinstance(event, WorkDone)
        return event

    # --- commands -----------------------------------------------------------------------------

    def _carry_out(self, event: Event) -> None:
        self._do(self.machine.handle(event))

    def _do(self, step: RoundStep) -> None:
        is_new = False
        for fact in step.facts:
            if isinstance(fact, RoundCommitted):
                self._committed(fact)
            self._watch.observe(fact)
            is_new = is_new or isinstance(fact, RoundCommitted)
        if is_new:
            self._watch.committed()
        training: list[SendOrder] = []
        evaluation: list[SendOrder] = []
        for command in step.commands:
            match command:
                case SendOrder():
                    (training if command.action == "train" else evaluation).append(command)
                case FoldUpdate():
                    self._fold(command)
                case Aggregate():
                    self.timeline.add(self._aggregated(command))
                case ArmTimer():
                    self.timeline.arm(command)
                case TagBest():
                    self.best = self._held[command.version]
        if evaluation:
            self._evaluate(evaluation)
        if training:
            self._train(training)

    def _global_model(self) -> GlobalModel:
        version, names = self.version, self._algorithm.broadcasts
        scalars = {name: each for name, each in version.scalars.items() if name in names}
        vectors = version.vectors if names else {}
        return GlobalModel(self.machine.ledger.model.version, version.weights, vectors, scalars)

    def _train(self, commands: list[SendOrder]) -> None:
        orders = {each.device_id: self._order(each) for each in commands}
        pair = (commands[0].round, commands[0].attempt)
        results = self.parts.backend.train(list(orders.values()), self._global_model())
        together: list[UpdateDelivered] = []
        for result in _in_order(results, orders):
            event: Event
            if isinstance(result, Declined):
                event = declined(result, "train", pair)
            else:
                event = self._delivered(result, pair)
            if isinstance(event, UpdateDelivered):
                together.append(event)
                continue
            if together:
                self.timeline.add(UpdatesDelivered(tuple(together)))
                together = []
            self.timeline.add(event)
        if together:
            self.timeline.add(UpdatesDelivered(tuple(together)))

    def _evaluate(self, commands: list[SendOrder]) -> None:
        orders = {each.device_id: self._order(each) for each in commands}
        pair = (commands[0].round, commands[0].attempt)
        results = self.parts.backend.evaluate(list(orders.values()), self._global_model())
        for result in _in_order(results, orders):
            match result:
                case Declined():
                    self.timeline.add(declined(result, "evaluate", pair))
                case Evaluated():
                    found = (result.num_examples, dict(result.metrics))
                    self.timeline.add(EvaluationReceived(result.device_id, *pair, *found))

    def _order(self, command: SendOrder) -> VirtualOrder:
        client = self._numbers[command.device_id]
        state = {} if client == EVALUATOR else self.parts.states.get(client)
        settings = self._settings_of(command)
        width = 1.0
        if command.action == "train" and self._has_parts:
            width = self.machine.ledger.width_of(command.device_id)
        return VirtualOrder(client, command.device_id, command.round, settings, state, width)

    def _width(self, device_id: str, round_number: int) -> float:
        facts = DeviceFacts(device_id, self.run.clients.spec.profile)
        return self._algorithm.width(facts, round_number, self.run.definition.seed)

    def _slices(self, device_id: str, round_number: int) -> Slices | None:
        """Return which part of the model a client trains, None for the whole."""
        width = self.machine.ledger.width_of(device_id) if self._has_parts else 1.0
        if width >= 1:
            return None
        return self._algorithm.part(width, round_number, self.version.weights.layout)

    def _settings_of(self, command: SendOrder) -> TrainingSettings:
        """Return the round's training settings with what is fitted to the client."""
        definition = self.run.definition
        if command.action != "train":
            return self._settings_by(definition.training)
        if self._training_of[0] != command.round:
            self._training_of = (command.round, training_of(definition, command.round))
        training, work = self._training_of[1], self.machine.ledger.work.get(command.device_id)
        return self._settings_by(training if work is None else {**training, **work.overrides()})

    def _settings_by(self, training: Mapping[str, Any]) -> TrainingSettings:
        if training is not self._training and training != self._training:
            self._settings = self.run.clients.task.training.overridden(training)
        self._training = training
        return self._settings

    # --- updates ------------------------------------------------------------------------------

    def _delivered(
        self, result: Trained, pair: tuple[int, int]
    ) -> UpdateDelivered | ResultReceived:
        """Return the event that brings an update, or that says why it cannot count."""
        size_bytes = 4 * sum([each.size for each in result.vectors.values()])
        update = Update("", size_bytes, "", result.num_examples, dict(result.metrics))
        try:
            slices = self._slices(result.device_id, pair[0])
            self._require_sections(result, slices)
            report = _report(result)
            weight = weight_of(self._algorithm, report, self.version.scalars)
        except Corrupt as error:
            return ResultReceived(result.device_id, *pair, update, str(error))
        self._results[result.device_id] = _Result(result, report, weight, slices)
        return UpdateDelivered(result.device_id, *pair, update)

    def _require_sections(self, result: Trained, slices: Slices | None) -> None:
        """Raise Corrupt where an update is not what the algorithm's clients send."""
        vectors = result.vectors
        sections = (*vectors, *result.scalars), tuple(each.size for each in vectors.values())
        if sections not in self._usual_sections:
            sizes = {name: vector.size for name, vector in vectors.items()}
            sizes |= dict.fromkeys(result.scalars, 1)
            layout = self.version.weights.layout if slices is None else slices.part
            require_sections(sizes, self._algorithm, layout)
            if slices is None:
                self._usual_sections.add(sections)

    def _fold(self, command: FoldUpdate) -> None:
        found = self._results.pop(command.device_id)
        result, report = found.trained, found.report
        pair = (command.round, command.attempt)
        if self._sum is None or self._sum.pair != pair:
            kept = Combining(self._algorithm, self._rule).kept_singly
            sums = MemorySums(self.run.plan.cohort_size, covered(self._algorithm), kept)
            self._sum = _OpenSum(pair, sums)
        vectors = result.vectors
        if report.scalars:
            scalars = {
                name: np.array([value], np.float32) for name, value in report.scalars.items()
            }
            vectors = {**vectors, **scalars}
        summed = self._sum.sums.keep(result.device_id, vectors)
        self._sum.add(summed, found.weight, found.slices)
        self._sum.reports[result.device_id] = report
        # what an update brings becomes permanent when it counts
        self.parts.states.put(self._numbers[result.device_id], result.state)

    def _aggregated(
        self, command: Aggregate
    ) -> AggregationFinished | AggregationFailed | FailureReported:
        pair, found = (command.round, command.attempt), self._sum
        self._sum, self._results = None, {}
        if found is None or found.pair != pair or set(found.reports) != set(command.included):
            return AggregationFailed(*pair, f"round {pair}: not the included updates were added")
        found.flush()
        reports = sorted(found.reports.values(), key=lambda report: report.device_id)
        population = max(command.population, len(reports))
        figures = VersionInput(
            self.version.scalars,
            found.sums,
            reports,
            population,
            self.run.definition.seed,
            self._rule,
            command.round,
            self._transforms,
            found.weights,
        )
        try:
            after = next_version(self.version, self._algorithm, figures)
        except NotFinite as error:
            return FailureReported(f"round {command.round}: {error}")
        except StorageError as error:
            return AggregationFailed(*pair, str(error))
        self._held[command.round] = after
        scalars = tuple(sorted(after.scalars.items()))
        return AggregationFinished(*pair, Model(command.round, "", "", 0, scalars=scalars))

    def _committed(self, fact: RoundCommitted) -> None:
        held, ledger = self.machine.held, self.machine.ledger
        self.version = self._held[fact.round]
        self._held = {
            number: each
            for number, each in self._held.items()
            if number in held or number == fact.round
        }
        settled = fact.round - _KEPT_VERSIONS
        ledger.forget_before(min(settled, ledger.judged) if self.run.plan.best else settled)


def _in_order(results: Iterable[_R], orders: Mapping[str, VirtualOrder]) -> Iterator[_R]:
    """Yield results in the order of their orders, so that what follows is a function of them."""
    early: dict[str, _R] = {}
    due = iter(orders)
    awaited = next(due, None)
    for result in results:
        early[result.device_id] = result
        while awaited in early:
            yield early.pop(awaited)
            awaited = next(due, None)


def _report(result: Trained) -> Report:
    """Return what the server knows of an update, scalars as they would travel: float32."""
    if not result.scalars:
        return Report(result.device_id, result.num_examples)
    scalars = {name: float(np.float32(value)) for name, value in result.scalars.items()}
    return Report(result.device_id, result.num_examples, scalars)


def declined(result: Declined, action: str, pair: tuple[int, int]) -> DeviceDeclined:
    """Return what the machine is told of an order that gave no result."""
    return DeviceDeclined(
        result.device_id,
        "train" if action == "train" else "evaluate",
        *pair,
        result.reason,
        unusable=result.unusable,
        permanent=not result.unusable,
    )
