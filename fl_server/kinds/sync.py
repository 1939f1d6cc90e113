"""Flows of the kind ``sync``: rounds of training, one model a round.

The round machine decides; what stands here makes its commands of orders, tasks and documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from algorithms.base import DeviceFacts
from algorithms.registry import load as load_algorithm
from broker.wire.messages import Patch, RunDocument, RunEvent, RunStatus
from fl_server.dataplane.plane import DataCommand, DataPlane
from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.flows.commands import (
    ArmTimer,
    BundleFile,
    Command,
    Evaluators,
    IssueOrder,
    ModelFile,
    ReportResult,
    SendReceipt,
    StartTask,
    TaskSettings,
)
from fl_server.flows.events import DeviceAnswered, DeviceDeclined, OrderRequested, TimerFired
from fl_server.flows.flow import Flow, Step, receipt_of
from fl_server.flows.report import FlowReport, RecordedFact
from fl_server.kinds.base import FlowKind, FlowServices
from fl_server.kinds.sync_report import report_of
from fl_server.rounds.commands import Command as RoundCommand
from fl_server.rounds.commands import ReportRound, SendOrder, SweepRun, TagBest, VerifyUpdate
from fl_server.rounds.events import EvaluationReceived, Event, PartStored, ResultReceived
from fl_server.rounds.facts import FACTS, Fact, RoundAbandoned, RoundCommitted
from fl_server.rounds.ledger import RoundStep
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.spread import spread_over_devices
from fl_server.rounds.workload import Speed, known_speeds
from fl_server.runs.definition import RunDefinition
from fl_server.runs.lineage import Commit, Lineage
from fl_server.runs.patches import patches_to
from fl_server.runs.record import FactRecord, RunRecord, Vocabulary
from fl_server.runs.schedule import training_of

_MAX_LISTED = 1500
_SPEEDS_FROM_RUNS = 20
# once more when no upload URL of the run can be alive
LAST_SWEEP_S = URL_LIFETIME_S + 60.0


class SyncFlow(Flow):
    """One run in rounds: its record, its machine, and how its versions were made.

    Args:
        facts_of: returns what is known of a device now, by its id.
    """

    def __init__(
        self,
        record: RunRecord[Plan],
        facts: Iterable[FactRecord],
        data: DataPlane,
        facts_of: Callable[[str], DeviceFacts] = DeviceFacts,
    ) -> None:
        known = [row.fact for row in facts]
        self.run_id, self.record = record.run_id, record
        self.task, self.bundled = record.definition.task, record.definition.bundled
        self.keys = data.keys(record.run_id)
        algorithm = record.definition.algorithm
        self._algorithm = load_algorithm(algorithm.name, algorithm.settings)
        self._facts_of = facts_of
        self.machine = RoundMachine(record.plan, record.initial, known, self._width)
        self._lineage = Lineage(record)
        self._data = data
        self._broadcasts = self._algorithm.broadcasts
        rule = record.definition.composition.rule
        self._needs_updates = rule.needs_updates or self._algorithm.needs_updates
        self._parts: dict[tuple[str, float], Model] = {}
        self._part_awaited: dict[tuple[str, float], list[SendOrder]] = {}
        self._patches: tuple[str, tuple[Patch, ...]] = ("", ())
        for fact in known:
            self._lineage.apply(fact)
        data.open_run(record)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen in it."""
        return self.machine.ledger.phase == "ended"

    def handle(self, event: object) -> Step[Fact, Command]:
        """Handle one event of the shell or of the data plane."""
        match event:
            case DeviceAnswered(action="exchange"):
                return Step([], [receipt_of(event, "refused", "a run in rounds has no exchanges")])
            case DeviceDeclined(action="exchange") | OrderRequested(action="exchange"):
                return Step()
            case DeviceAnswered() if self._claims_others(event):
                return Step()  # a domain sends it again once it has said that it is one
            case DeviceAnswered():
                return self._translated(self.machine.handle(self._result(event)))
            case PartStored():
                return Step([], self._orders_of_part(event))
            case TimerFired(timer="sweep"):
                return Step([], [self._work(SweepRun())])
            case _ if isinstance(event, Event):
                return self._translated(self.machine.handle(event))
        return Step()

    def resume(self) -> Step[Fact, Command]:
        """Re-issue what was pending, and sign the latest version where that was not yet done."""
        # the process may have ended between the commit and this
        signing = self._signing(self._lineage.latest, is_new=False)
        step = self._translated(self.machine.resume())
        return Step(step.facts, [*signing, *step.commands])

    def report(self, facts: Sequence[RecordedFact]) -> FlowReport:
        """Return its rounds, its devices and its latest version."""
        definition, ledger = self.record.definition, self.machine.ledger
        headline = definition.evaluation.headline
        told = report_of(facts, ledger, headline)
        if self.machine.plan.evaluate_on == "devices":
            lower = definition.goal_of(headline) == "lower"
            told.spread = spread_over_devices(ledger, headline, lower=lower)
        return told

    def awaits(self, order: IssueOrder) -> bool:
        """Whether an order, issued a while ago, is still to be sent."""
        ledger = self.machine.ledger
        is_open = ledger.phase == "collecting"
        current = (order.round, order.attempt) == (ledger.round, ledger.attempt)
        return is_open and current and order.device_id not in ledger.answered

    def _claims_others(self, answer: DeviceAnswered) -> bool:
        """Whether somebody answers for several devices who is no domain to this run."""
        return answer.population > 1 and not self.machine.is_domain(answer.device_id)

    # --- what comes in ------------------------------------------------------------------------

    def _result(self, answer: DeviceAnswered) -> ResultReceived | EvaluationReceived:
        place = (answer.device_id, answer.round, answer.attempt)
        usage = dict(answer.usage)
        if answer.action == "evaluate":
            measured = (answer.num_examples, dict(answer.metrics))
            return EvaluationReceived(*place, *measured, usage)
        own_key = self.keys.update(answer.round, answer.attempt, answer.device_id)
        reported, fault = answer.update, ""
        if reported is None:
            fault = "the result names no update"
        elif reported.key != own_key:
            fault = f"the result names {reported.key}, which is not this device's own key"
        update = Update(
            own_key,
            0 if reported is None else reported.size_bytes,
            "" if reported is None else reported.header_sha256,
            answer.num_examples,
            dict(answer.metrics),
            usage,
            answer.population,
        )
        return ResultReceived(*place, update, fault)

    # --- what goes out ------------------------------------------------------------------------

    def _translated(self, step: RoundStep) -> Step[Fact, Command]:
        """Return a step of the machine in the commands of flows.

        A command is bound to the model of this moment: later events may move it.
        """
        if any(isinstance(fact, RoundCommitted | RoundAbandoned) for fact in step.facts):
            # the next round has other parts, and the next attempt may find these lost
            self._parts, self._part_awaited = {}, {}
        commits = [self._lineage.apply(fact) for fact in step.facts]
        signing = [
            each for commit in commits if commit is not None for each in self._signing(commit)
        ]
        commands = [each for command in step.commands for each in self._commands(command)]
        return Step(step.facts, [*signing, *commands])

    def _commands(self, command: RoundCommand) -> list[Command]:
        ledger = self.machine.ledger
        match command:
            case SendOrder(action="train") if ledger.width_of(command.device_id) < 1:
                return self._order_of_part(command)
            case SendOrder():
                return [self.order(command)]
            case SendReceipt() | ArmTimer():
                return [command]
            case ReportRound():
                return [ReportResult(command)]
            case TagBest():
                tagging = (self.run_id, command.version)
                return [StartTask(lambda: self._data.tag_best(*tagging), "run")]
            case SweepRun():
                metrics = {version: ledger.metrics(version) for version in ledger.evaluations}
                store = StartTask(lambda: self._data.store_metrics(self.run_id, metrics), "run")
                last = ArmTimer("sweep", ledger.round, ledger.attempt, LAST_SWEEP_S)
                return [store, self._work(command), last]
        return [self._work(command)]

    def _work(self, command: DataCommand) -> StartTask:
        model, held = self.machine.ledger.model, self.machine.held
        return StartTask(
            lambda: self._data.perform(self.run_id, command, model, held),
            "" if isinstance(command, VerifyUpdate) else "run",
        )

    def _signing(self, commit: Commit, *, is_new: bool = True) -> list[Command]:
        def sign() -> None:
            self._data.sign_version(self.record, commit, is_new=is_new)

        return [StartTask(sign, "run")]

    def order(self, command: SendOrder) -> IssueOrder:
        """Return the order that the machine asks for."""
        definition, ledger, plan = self.record.definition, self.machine.ledger, self.machine.plan
        model, trains = ledger.model, command.action == "train"
        bundle = definition.bundle
        return IssueOrder(
            command.device_id,
            command.action,
            command.round,
            command.attempt,
            TaskSettings(
                definition.task,
                definition.algorithm.name,
                definition.algorithm.settings,
                self._training(command),
                definition.seed,
                [{"name": each.name, **each.settings} for each in definition.transforms],
            ),
            ModelFile(model.key, model.sha256, model.size_bytes, self._patches_to(model)),
            upload_key=self.keys.update(command.round, command.attempt, command.device_id)
            if trains
            else "",
            bundle=None if bundle is None else BundleFile(bundle.sha256, bundle.size_bytes),
            timer=TimerFired("deadline", command.round, command.attempt) if trains else None,
            time_s=plan.deadline_s if trains else plan.evaluation_deadline_s,
            vectors=self._vectors(model),
            scalars=self._scalars(command.device_id, model),
            evaluators=self._evaluators(command),
            singly=trains and self._needs_updates and self.machine.is_domain(command.device_id),
        )

    def _scalars(self, device_id: str, model: Model) -> dict[str, float]:
        """Return the server's scalars that an order names: a domain needs them all for weights."""
        if self.machine.is_domain(device_id):
            return dict(model.scalars)
        return {name: value for name, value in model.scalars if name in self._broadcasts}

    def _evaluators(self, command: SendOrder) -> Evaluators:
        """Return which of its devices a domain is to order to evaluate."""
        on = self.machine.plan.evaluate_on
        asks = command.action == "evaluate" and self.machine.is_domain(command.device_id)
        return on if asks and on != "none" else ""

    # --- parts of the model -------------------------------------------------------------------

    def _width(self, device_id: str, round_number: int) -> float:
        if self.machine.is_domain(device_id):
            return 1.0  # its devices have widths of their own
        seed = self.record.definition.seed
        return self._algorithm.width(self._facts_of(device_id), round_number, seed)

    def _order_of_part(self, command: SendOrder) -> list[Command]:
        """Return the order to train a part, or first the task of storing it."""
        base, width = self.machine.ledger.model, self.machine.ledger.width_of(command.device_id)
        part = self._parts.get((base.sha256, width))
        if part is not None:
            file = ModelFile(part.key, part.sha256, part.size_bytes)
            return [replace(self.order(command), model=file, width=width)]
        awaited = self._part_awaited.setdefault((base.sha256, width), [])
        awaited.append(command)
        if len(awaited) > 1:
            return []
        return [StartTask(lambda: self._data.store_part(self.run_id, base, width), "run")]

    def _orders_of_part(self, event: PartStored) -> list[Command]:
        """Return the orders that waited for a part."""
        place = (event.base_sha256, event.width)
        if event.base_sha256 != self.machine.ledger.model.sha256:
            return []
        self._parts[place] = event.part
        waited = {each.device_id: each for each in self._part_awaited.pop(place, [])}
        orders = [order for each in waited.values() for order in self._order_of_part(each)]
        return [each for each in orders if isinstance(each, IssueOrder) and self.awaits(each)]

    def _vectors(self, model: Model) -> ModelFile | None:
        state = model.state if self._broadcasts else None
        return None if state is None else ModelFile(state.key, state.sha256, state.size_bytes)

    def _training(self, command: SendOrder) -> dict[str, Any]:
        """Return the round's training settings with what is fitted to the device."""
        if command.action != "train":
            return self.record.definition.training
        settings = training_of(self.record.definition, command.round)
        work = self.machine.ledger.work.get(command.device_id)
        return settings if work is None else settings | work.overrides()

    def _patches_to(self, model: Model) -> tuple[Patch, ...]:
        known, patches = self._patches
        if known != model.sha256:
            patches = tuple(patches_to(model, self.machine.ledger.earlier))
            self._patches = (model.sha256, patches)
        return patches

    # --- what others see ----------------------------------------------------------------------

    def document(self, epoch: int) -> RunDocument:
        """Return the retained document."""
        definition, ledger = self.record.definition, self.machine.ledger
        version = max(ledger.evaluations, default=0)
        status: RunStatus = ledger.status
        if status == "running" and ledger.phase in {"waiting", "gathering"}:
            status = "waiting"
        return RunDocument(
            run_id=self.run_id,
            task=definition.task,
            algorithm=definition.algorithm.name,
            status=status,
            reason=ledger.explanation[:2000],
            round=ledger.round,
            attempt=ledger.attempt,
            rounds=self.machine.plan.rounds,
            epoch=epoch,
            phase=ledger.phase,
            deadline_s=self.machine.plan.deadline_s,
            cohort=list(ledger.cohort[:_MAX_LISTED]),
            answered=sorted(ledger.answered)[:_MAX_LISTED],
            model_sha256=ledger.model.sha256,
            accuracy=ledger.metric(version, "accuracy"),
            loss=ledger.metric(version, "loss"),
            target=definition.target,
            where=definition.where,
        )

    def event_of(self, fact: Fact) -> RunEvent:
        """Return what observers are told of a fact."""
        ledger, event = self.machine.ledger, super().event_of(fact)
        if isinstance(fact, RoundCommitted):
            del event.detail["model"]["changed"]  # up to 256 ranges, of use to no reader
        place = {"round": event.round or ledger.round, "attempt": event.attempt or ledger.attempt}
        return event.model_copy(update=place)


class SyncKind(FlowKind):
    """Rounds: the server orders a cohort to train, and makes one model of its updates."""

    vocabulary = Vocabulary(Plan, FACTS)

    def plan(self, run_id: str, definition: RunDefinition, services: FlowServices) -> Plan:
        """Return the plan: "auto" evaluation and what devices were measured at are decided now."""
        online = services.presence.online(definition.task, bundled=definition.bundled)
        return definition.plan(
            run_id,
            evaluators_online=any(device.state.role == "evaluator" for device in online),
            speeds={} if definition.cohort.fit == "off" else _speeds(definition, services),
        )

    def open(
        self, record: RunRecord[Plan], facts: Sequence[FactRecord], services: FlowServices
    ) -> SyncFlow:
        """Return the run as its facts left it."""
        return SyncFlow(record, facts, services.data, services.presence.facts_of)


def _speeds(definition: RunDefinition, services: FlowServices) -> dict[str, Speed]:
    """Return what devices were measured at in earlier runs with the same steps.

    Of those that are history, the latest of the task are looked at.
    """
    steps = steps_digest(definition)
    kept = [
        {device_id: Speed(**speed) for device_id, speed in found["devices"].items()}
        for found in services.history.speeds(definition.task, _SPEEDS_FROM_RUNS)
        if found.get("steps") == steps
    ]
    alike = [
        flow.machine.ledger.speeds
        for flow in services.flows.values()
        if isinstance(flow, SyncFlow) and steps_digest(flow.record.definition) == steps
    ]
    return known_speeds([*kept, *alike])


def steps_digest(definition: RunDefinition) -> str:
    """Return what two runs share whose devices do the same steps."""
    algorithm = definition.algorithm
    steps: list[object] = [definition.task, definition.training]
    if load_algorithm(algorithm.name, algorithm.settings).narrow_widths:
        # a step of a narrow model is a shorter one
        steps.append([algorithm.name, algorithm.settings])
    text = json.dumps(steps, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
