"""A parent's run in a domain: rounds on request, which end with the exact sums of their updates.

With several local rounds for each of the parent's (Liu et al., "Client-Edge-Cloud Hierarchical
Federated Learning", 2020, Algorithm 1, https://arxiv.org/abs/1905.06641) the rounds in between make
models of their own, and the parent gets the change that they made together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from algorithms.base import UPDATE, Algorithm, DeviceFacts
from algorithms.fedavg import FedAvg
from algorithms.registry import load as load_algorithm
from fl_server.dataplane.plane import DataPlane
from fl_server.flows.commands import (
    ArmTimer,
    Command,
    IssueOrder,
    ModelFile,
    ReportResult,
    StartTask,
    TaskSettings,
)
from fl_server.flows.events import (
    DeviceAnswered,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    TimerFired,
)
from fl_server.flows.flow import Step, receipt_of
from fl_server.flows.mean import weighted_mean
from fl_server.kinds.base import FlowServices
from fl_server.kinds.sync import LAST_SWEEP_S, SyncFlow, SyncKind
from fl_server.rounds.commands import Aggregate, ReportRound, SendOrder, SweepRun
from fl_server.rounds.commands import Command as RoundCommand
from fl_server.rounds.events import RoundRequested
from fl_server.rounds.facts import Fact, RequestFailed, RoundAbandoned, RunFailed, RunStopped
from fl_server.rounds.ledger import RoundStep
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import RunDefinition
from fl_server.runs.lineage import Commit
from fl_server.runs.record import FactRecord, RunRecord
from rengo.domain.evaluation import EvaluationRequested, TreeEvaluation
from runtime.bounds import MAX_ROUNDS, total
from runtime.config import validate
from runtime.errors import ConfigError

FLOW = "domain"
_BY_PARENT = "runs of the kind 'domain' are the parent's: submit the run there"
_MEASURE, _ASK_AGAIN = "measure", "measure again"
_ASK_AGAIN_S = 10.0


class DomainSettings(BaseModel):
    """The flow settings of a parent's run.

    Attributes:
        local_rounds: how many rounds the devices do for one of the parent's.
        singly: whether the parent needs the devices' updates and not their sum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    local_rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    singly: bool = False


@dataclass(frozen=True)
class RoundGivenUp:
    """A round that nobody here can do now; ``permanent``: nor can they later."""

    round: int
    reason: str
    permanent: bool = False


@dataclass(frozen=True)
class ChangeMade:
    """What several local rounds have made of the parent's model; ``round`` is the last of them."""

    round: int
    model: Model
    num_examples: int
    population: int


def settings_of(definition: RunDefinition) -> DomainSettings:
    """Return the flow settings of a run of the parent's."""
    return validate(DomainSettings, dict(definition.flow_settings), "flow_settings")


def require_averaging(algorithm: Algorithm, name: str) -> None:
    """Raise ConfigError where rounds in between would need the server half of an algorithm."""
    kind = type(algorithm)
    averages = (
        kind.aggregate in {Algorithm.aggregate, FedAvg.aggregate}
        and getattr(algorithm, "server_learning_rate", 1.0) == 1.0
        and kind.weight is Algorithm.weight
        and algorithm.sends == (UPDATE,)
        and not algorithm.reports
        and not algorithm.broadcasts
        and not algorithm.narrow_widths
        and not algorithm.needs_updates
    )
    if not averages:
        raise ConfigError(
            f"local_rounds above 1 are for algorithms whose server averages updates and no more, "
            f"which {name!r} is not; set parent.local_rounds = 1"
        )


class DomainFlow(SyncFlow):
    """One run of the parent's.

    Attributes:
        local_rounds: the devices' rounds for one of the parent's; theirs are numbered through.
    """

    def __init__(
        self,
        record: RunRecord[Plan],
        facts: Iterable[FactRecord],
        data: DataPlane,
        facts_of: Callable[[str], DeviceFacts] = DeviceFacts,
    ) -> None:
        super().__init__(record, facts, data, facts_of)
        settings = settings_of(record.definition)
        self.local_rounds, self._needs_updates = settings.local_rounds, settings.singly
        self._evaluation: TreeEvaluation | None = None

    def first_round(self, number: int) -> int:
        """Return the first of the devices' rounds for a round of the parent's."""
        return (number - 1) * self.local_rounds + 1

    def parent_round(self, number: int) -> int:
        """Return the parent's round that one of the devices' is for."""
        return (number - 1) // self.local_rounds + 1

    # --- events -------------------------------------------------------------------------------

    def handle(self, event: object) -> Step[Any, Command]:
        """Handle one event; evaluations are this kind's own."""
        match event:
            case EvaluationRequested():
                return self._evaluate(event)
            case DeviceAnswered(action="evaluate"):
                return self._evaluated(event)
            case DeviceDeclined(action="evaluate"):
                return self._without(event.device_id, event.reason)
            case OrderRequested(action="evaluate"):
                return Step([], self._orders_to({event.device_id}))
            case TimerFired(timer=timer) if timer in {_MEASURE, _ASK_AGAIN}:
                return self._evaluation_timer(event)
            case TimerFired(timer="sweep"):
                return Step([], [self._removal()])
        step = super().handle(event)
        if isinstance(event, DeviceJoined):
            step.commands += self._orders_to({event.device_id})
        elif isinstance(event, DeviceLeft):
            step.commands += self._without(event.device_id, "it went away").commands
        return step

    # --- rounds -------------------------------------------------------------------------------

    def _translated(self, step: RoundStep) -> Step[Fact, Command]:
        """Return a step in the commands of flows, and go on with the next local round."""
        found = super()._translated(step)
        for fact in step.facts:
            match fact:
                case RoundAbandoned() if not self.machine.trainers():
                    found.commands.append(self._given_up(fact.reason))
                case RequestFailed() | RunFailed() | RunStopped():
                    found.commands.append(self._given_up(fact.reason, permanent=True))
        made = self.machine.ledger.made
        if made is not None and made.version % self.local_rounds and not self.ended:
            more = self._next_local_round()
            found.facts += more.facts
            found.commands += more.commands
        return found

    def _next_local_round(self) -> Step[Fact, Command]:
        ledger = self.machine.ledger
        assert ledger.made is not None
        terms = (dict(ledger.training), ledger.deadline_s)
        request = RoundRequested(ledger.made.version + 1, ledger.made, *terms)
        return self._translated(self.machine.handle(request))

    def _given_up(self, reason: str, *, permanent: bool = False) -> ReportResult:
        number = self.parent_round(self.machine.ledger.round)
        return ReportResult(RoundGivenUp(number, reason, permanent))

    def _commands(self, command: RoundCommand) -> list[Command]:
        ledger = self.machine.ledger
        match command:
            case ReportRound() if command.round % self.local_rounds:
                return []  # one in between
            case ReportRound() if self.local_rounds > 1:
                examples = total(self._lineage.latest.examples.values())
                told = ChangeMade(command.round, command.model, examples, ledger.population_below)
                return [ReportResult(told)]
            case Aggregate() if self.machine.plan.sums:
                model, metrics = ledger.model, self._training_metrics()
                singly = dict(ledger.accepted) if self._needs_updates else None
                what = (command, model, metrics, singly)
                return [StartTask(lambda: self._data.sum_up(self.run_id, *what), "run")]
            case SweepRun():
                last = ArmTimer("sweep", ledger.round, ledger.attempt, LAST_SWEEP_S)
                return [self._removal(), last]
        return super()._commands(command)

    def _removal(self) -> StartTask:
        """Return the task of leaving nothing in the store: the versions are the parent's."""
        return StartTask(lambda: self._data.remove_objects(self.run_id), "run")

    def _training_metrics(self) -> dict[str, float]:
        rows = sorted(self.machine.ledger.accepted.items())
        names = sorted({name for _, update in rows for name in update.metrics})
        means = {
            name: weighted_mean(
                [
                    (update.metrics[name], update.num_examples)
                    for _, update in rows
                    if name in update.metrics
                ]
            )
            for name in names
        }
        return {name: mean for name, mean in means.items() if mean is not None}

    def _signing(self, commit: Commit, *, is_new: bool = True) -> list[Command]:
        """Return nothing: what is made here is no version of a model's."""
        del commit, is_new
        return []

    def _training(self, command: SendOrder) -> dict[str, Any]:
        del command
        return dict(self.machine.ledger.training)

    # --- evaluation ---------------------------------------------------------------------------

    def _evaluate(self, event: EvaluationRequested) -> Step[Fact, Command]:
        if self.ended:
            return Step()
        self._evaluation = TreeEvaluation(event)
        self._evaluation.ordered.update(self.machine.evaluators(event.on or "devices"))
        orders = self._orders_to(self._evaluation.awaited)
        if not orders:
            return Step([], self._end_evaluation())
        timers: list[Command] = [
            ArmTimer(_MEASURE, event.version, 1, event.deadline_s),
            ArmTimer(_ASK_AGAIN, event.version, 1, _ASK_AGAIN_S),
        ]
        return Step([], [*orders, *timers])

    def _evaluated(self, answer: DeviceAnswered) -> Step[Fact, Command]:
        now = self._evaluation
        if now is None or answer.round != now.requested.version:
            return Step([], [receipt_of(answer, "late", "another version is evaluated now")])
        if answer.device_id not in now.ordered:
            reason = "this device was not ordered to evaluate this version"
            return Step([], [receipt_of(answer, "refused", reason)])
        now.answers[answer.device_id] = (answer.num_examples, dict(answer.metrics))
        return Step([], [receipt_of(answer, "accepted"), *self._end_if_answered()])

    def _without(self, device_id: str, reason: str) -> Step[Fact, Command]:
        now = self._evaluation
        if now is None or device_id not in now.awaited:
            return Step()
        now.gone[device_id] = reason
        return Step([], self._end_if_answered())

    def _evaluation_timer(self, event: TimerFired) -> Step[Fact, Command]:
        now = self._evaluation
        if now is None or now.is_over or event.round != now.requested.version:
            return Step()
        if event.timer == _MEASURE:
            return Step([], self._end_evaluation())
        idle = {each for each in now.awaited if self.machine.is_idle(each)}
        again = ArmTimer(_ASK_AGAIN, event.round, 1, _ASK_AGAIN_S)
        return Step([], [*self._orders_to(idle), again])

    def _end_if_answered(self) -> list[Command]:
        now = self._evaluation
        return [] if now is None or now.awaited or now.is_over else self._end_evaluation()

    def _end_evaluation(self) -> list[Command]:
        assert self._evaluation is not None
        self._evaluation.is_over = True
        return [ReportResult(self._evaluation.result())]

    def _orders_to(self, devices: set[str]) -> list[Command]:
        """Return the orders of those among the devices that are to evaluate and have not."""
        now = self._evaluation
        if now is None or now.is_over or self.ended:
            return []
        for device_id in sorted(devices & now.gone.keys()):
            del now.gone[device_id]  # it is back
        return [self._evaluation_order(each, now) for each in sorted(devices & now.awaited)]

    def _evaluation_order(self, device_id: str, now: TreeEvaluation) -> IssueOrder:
        requested, definition = now.requested, self.record.definition
        model, is_domain = requested.model, self.machine.is_domain(device_id)
        return IssueOrder(
            device_id,
            "evaluate",
            requested.version,
            1,
            TaskSettings(
                definition.task,
                definition.algorithm.name,
                definition.algorithm.settings,
                requested.training,
                definition.seed,
            ),
            ModelFile(model.key, model.sha256, model.size_bytes),
            time_s=requested.deadline_s,
            vectors=self._vectors(model),
            scalars=self._scalars(device_id, model),
            evaluators=requested.on if is_domain else "",
        )


class DomainKind(SyncKind):
    """Runs of a parent's. Nobody submits them here."""

    def check(self, definition: RunDefinition) -> None:
        """Raise ConfigError: an operator of the domain submits runs of other kinds."""
        del definition
        raise ConfigError(_BY_PARENT)

    def plan(self, run_id: str, definition: RunDefinition, services: FlowServices) -> Plan:
        """Return the plan of rounds on request."""
        settings = settings_of(definition)
        local_rounds = settings.local_rounds
        if local_rounds > 1:
            if settings.singly or definition.transforms:
                raise ConfigError(
                    "local_rounds above 1 are for runs without transforms whose rule is the mean; "
                    "set parent.local_rounds = 1"
                )
            algorithm = definition.algorithm
            loaded = load_algorithm(algorithm.name, algorithm.settings)
            require_averaging(loaded, algorithm.name)
        plan = super().plan(run_id, definition, services)
        return replace(
            plan, rounds=MAX_ROUNDS, on_request=True, sums=local_rounds == 1, evaluate_on="none"
        )

    def open(
        self, record: RunRecord[Plan], facts: Sequence[FactRecord], services: FlowServices
    ) -> DomainFlow:
        """Return the run as its facts left it."""
        return DomainFlow(record, facts, services.data, services.presence.facts_of)
