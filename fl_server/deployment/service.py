"""The canaries' shell: what each machine decides is written down, then carried out.

All is called on the owner's thread. What touches the store is done on the data plane's threads.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from broker.wire.messages import Decline, DeviceState, Message, Order, Request, Result
from broker.wire.topics import Topics
from fl_server.dataplane.bundles import Named, SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.deployment.canary.events import (
    ArmDeadline,
    CanaryPlan,
    CandidateMarked,
    CloseOrders,
    Command,
    Contender,
    DeadlinePassed,
    Event,
    MarkCandidate,
    MarkingFailed,
    OrderSide,
    ProductionMoved,
    Settle,
    Side,
    TaskBundle,
    VerdictSettled,
)
from fl_server.deployment.canary.machine import CanaryMachine, Step, choose, quorum_of
from fl_server.deployment.canary.messages import closing_of, order_of, receipt_of, shown
from fl_server.deployment.canary_log import CanaryLog
from fl_server.deployment.production import SharedUrls
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import AuditEvent
from fl_server.rounds.events import (
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    EvaluationReceived,
    OrderRequested,
    SendReceipt,
)
from runtime.errors import ConfigError, NotFound, RengoError
from storage.registry.registry import ModelRegistry
from storage.versions.index import Version

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CanaryRequest:
    """How an operator wants a candidate to be tried.

    Attributes:
        share: of the devices that are there, above 0, at most 1.
        max_drop: by how much the metric may be worse.
    """

    share: float
    metric: str
    max_drop: float
    deadline_s: float


@dataclass(frozen=True)
class CanaryContext:
    """What a canary needs of the server around it.

    Attributes:
        publish: sends a message to a topic.
        moved: is told the task whose production has changed.
        note: writes to the audit log.
    """

    topics: Topics
    epoch: int
    data: DataPlane
    bundles: SiteBundles
    presence: PresenceTable
    publish: Callable[[str, Message], None]
    moved: Callable[[str], None]
    note: Callable[[AuditEvent], None]


@dataclass
class _Canary:
    machine: CanaryMachine
    due_s: float = math.inf

    @property
    def plan(self) -> CanaryPlan:
        return self.machine.plan

    @property
    def over(self) -> bool:
        return self.machine.state.phase == "ended"

    def concerns(self, state: DeviceState) -> bool:
        """Whether a device could measure: it has the task, or takes its bundle."""
        return state.can_run(self.plan.task, bundled=self.plan.bundle is not None)


class Canaries:
    """Every canary of one server, those that have ended too.

    Raises:
        JournalUnusable: what the database holds of them is damaged.
    """

    def __init__(self, house: CanaryContext, log: CanaryLog) -> None:
        self._house = house
        self._log = log
        self._registry: ModelRegistry = house.data.registry
        self._urls = SharedUrls(house.data.store)
        self._all = {
            record.plan.canary_id: _Canary(CanaryMachine(record.plan, record.facts))
            for record in log.canaries()
        }

    # --- what the operator does ---------------------------------------------------------------

    def begin(
        self, candidate: Version, wish: CanaryRequest, caller: str, bundle: Named | None = None
    ) -> str:
        """Start a canary and return its id; the same wish again gives the id of the one that runs.

        Args:
            bundle: the one of the site that devices which have not the task may take.

        Raises:
            ConfigError: there is nothing to compare with, nobody to measure, or one runs already.
        """
        for canary in self._running(candidate.manifest.task):
            plan = canary.plan
            asked = (plan.candidate.name, plan.metric, plan.max_drop, plan.deadline_s)
            if asked == (candidate.name, wish.metric, wish.max_drop, wish.deadline_s):
                return plan.canary_id  # the answer was lost, or somebody waits for it again
        plan = self._plan(candidate, self._baseline(candidate), wish, bundle)
        self._log.begin(plan)
        detail = {"canary": plan.canary_id, "against": plan.production.name}
        self._house.note(AuditEvent(caller, "canary begun", candidate.name, detail))
        canary = self._all[plan.canary_id] = _Canary(CanaryMachine(plan))
        self._carry_out(canary, canary.machine.resume())
        for device in self._house.presence.online(plan.task, bundled=bundle is not None):
            accepting = device.state.status != "draining"
            self._handle(canary, DeviceJoined(device.id, device.state.role, accepting))
        return plan.canary_id

    def _baseline(self, candidate: Version) -> Version:
        task = candidate.manifest.task
        production = self._registry.production(task)
        if production is None:
            raise ConfigError(
                f"task {task!r} has no version in production to compare with: promote a first one "
                "without --canary"
            )
        if production.name == candidate.name:
            raise ConfigError(f"{candidate.name} is in production already")
        for canary in self._running(task):
            raise ConfigError(
                f"a canary of task {task!r} runs already: {canary.plan.candidate.name} "
                f"({canary.plan.canary_id}); wait for its verdict"
            )
        return production

    def _plan(
        self, candidate: Version, production: Version, wish: CanaryRequest, bundle: Named | None
    ) -> CanaryPlan:
        manifest, token = candidate.manifest, secrets.token_hex(8)
        online = self._house.presence.online(manifest.task, bundled=bundle is not None)
        evaluators = [each.id for each in online if each.state.role == "evaluator"]
        measured_by: Literal["evaluators", "devices"] = "evaluators" if evaluators else "devices"
        there = evaluators or [each.id for each in online]
        if not there:
            way = "" if bundle is None else ", or that takes its bundle,"
            raise ConfigError(
                f"no device with the task {manifest.task!r}{way} is there to measure the candidate"
            )
        cohort = choose(there, wish.share, int(token, 16))
        return CanaryPlan(
            canary_id=f"canary-{token}",
            task=manifest.task,
            candidate=_contender(candidate),
            production=_contender(production),
            cohort=cohort,
            measured_by=measured_by,
            metric=wish.metric,
            max_drop=wish.max_drop,
            deadline_s=wish.deadline_s,
            quorum=quorum_of(cohort),
            algorithm=manifest.algorithm,
            algorithm_settings=manifest.algorithm_settings,
            training=manifest.training,
            seed=manifest.seed,
            bundle=None if bundle is None else TaskBundle(bundle.sha256, bundle.size_bytes),
        )

    def require_free(self, version: Version) -> None:
        """Raise ConfigError when a canary that runs tries this version."""
        for canary in self._running(version.manifest.task):
            if canary.plan.candidate.name == version.name:
                raise ConfigError(
                    f"{version.name} is in a canary ({canary.plan.canary_id}); wait for its verdict"
                )

    def needs(self, sha256: str) -> str:
        """Return the id of a running canary whose devices may take this bundle, "" if none."""
        for canary in self._running():
            bundle = canary.plan.bundle
            if bundle is not None and bundle.sha256 == sha256:
                return canary.plan.canary_id
        return ""

    def show(self, canary_id: str) -> dict[str, Any]:
        """Return how a canary stands.

        Raises:
            NotFound: there is none of this id.
        """
        canary = self._all.get(canary_id)
        if canary is None:
            raise NotFound(f"no canary {canary_id!r}")
        left_s = max(0.0, canary.due_s - time.monotonic())
        return shown(canary.plan, canary.machine.state, left_s)

    # --- what happens -------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on with the canaries that a former life of the server began."""
        for canary in self._running():
            _LOG.info("canary %s goes on", canary.plan.canary_id)
            self._carry_out(canary, canary.machine.resume())

    def compare_production(self) -> None:
        """See whether what the canaries compare with is in production still."""
        for task in {canary.plan.task for canary in self._running()}:
            self.production_changed(task)

    def production_changed(self, task: str) -> None:
        """Take note that another version of a task may be in production."""
        for canary in list(self._running(task)):
            self._handle(canary, ProductionMoved(self._production_of(task)))

    def heard_of(self, event: DeviceJoined | DeviceLeft, state: DeviceState | None = None) -> None:
        """Take a device's presence; ``state`` is what it said, where it said something."""
        for canary in list(self._running()):
            if isinstance(event, DeviceLeft) or (state is not None and canary.concerns(state)):
                self._handle(canary, event)

    def knows(self, run_id: str) -> bool:
        """Whether this is not a run but a canary."""
        return run_id in self._all

    def result(self, device_id: str, message: Result) -> None:
        """Take what a device has measured."""
        canary = self._all[message.run_id]
        place = (message.round, message.attempt)
        if message.action == "evaluate":
            measured = (message.num_examples, message.metrics)
            self._handle(canary, EvaluationReceived(device_id, *place, *measured))
        else:
            reason = "a canary takes no updates"
            self._do(canary, SendReceipt(device_id, message.action, *place, "refused", reason))

    def declined(self, device_id: str, message: Decline) -> None:
        """Take that a device does not take an order."""
        place = (device_id, message.action, message.round, message.attempt)
        self._handle(self._all[message.run_id], DeviceDeclined(*place, message.reason))

    def request(self, device_id: str, message: Request) -> None:
        """Take a device's wish for fresh URLs."""
        place = (device_id, message.action, message.round, message.attempt)
        self._handle(self._all[message.run_id], OrderRequested(*place))

    def due_s(self) -> float:
        """Return when the next deadline passes, by the monotonic clock."""
        return min((canary.due_s for canary in self._running()), default=math.inf)

    def look_at_clock(self) -> None:
        """End what has passed its deadline."""
        now_s = time.monotonic()
        for canary in list(self._running()):
            if canary.due_s <= now_s:
                canary.due_s = math.inf
                self._handle(canary, DeadlinePassed())

    def _running(self, task: str = "") -> list[_Canary]:
        return [
            canary
            for canary in self._all.values()
            if not canary.over and task in {"", canary.plan.task}
        ]

    def _production_of(self, task: str) -> str:
        production = self._registry.production(task)
        return "" if production is None else production.name

    # --- carrying out -------------------------------------------------------------------------

    def _handle(self, canary: _Canary, event: Event) -> None:
        self._carry_out(canary, canary.machine.handle(event))

    def _carry_out(self, canary: _Canary, step: Step) -> None:
        self._log.append(canary.plan.canary_id, step.facts)
        for fact in step.facts:
            _LOG.info("canary %s: %s %s", canary.plan.canary_id, type(fact).__name__, asdict(fact))
        for command in step.commands:
            self._do(canary, command)

    def _do(self, canary: _Canary, command: Command) -> None:
        topics, plan = self._house.topics, canary.plan
        match command:
            case ArmDeadline():
                canary.due_s = time.monotonic() + command.seconds
            case MarkCandidate():
                self._mark(canary)
            case OrderSide():
                order = self._order(canary, command.side)
                self._house.publish(topics.device(command.device_id, "task"), order)
            case SendReceipt():
                receipt = receipt_of(plan, command)
                self._house.publish(topics.device(command.device_id, "receipt"), receipt)
            case CloseOrders():
                closing = closing_of(plan, self._house.epoch)
                self._house.publish(topics.run(plan.canary_id, "state"), closing)
            case Settle():
                canary.due_s = math.inf
                self._settle(canary, command)

    def _order(self, canary: _Canary, side: Side) -> Order:
        plan = canary.plan
        url = self._urls.of(plan.contender(side).key)
        left_s = min(plan.deadline_s, max(0.0, canary.due_s - time.monotonic()))
        order = order_of(plan, side, self._house.epoch, url, left_s)
        if plan.bundle is None:
            return order
        return order.model_copy(update={"bundle": self._house.bundles.reference(plan.bundle)})

    def _mark(self, canary: _Canary) -> None:
        plan = canary.plan
        reason = f"in a canary against {plan.production.name} ({plan.canary_id})"

        def work() -> None:
            version = self._registry.get(plan.candidate.run_id, plan.candidate.version)
            self._registry.candidate(version, reason)

        self._house.data.start_task(
            lambda: self._house.data.patiently(work),
            lambda _: self._handle(canary, CandidateMarked()),
            lambda error: self._handle(canary, MarkingFailed(str(error))),
            in_order=True,
        )

    def _settle(self, canary: _Canary, command: Settle) -> None:
        plan = canary.plan

        def settled(problem: str) -> None:
            self._handle(canary, VerdictSettled(problem))
            detail = {"canary": plan.canary_id, "why": problem or command.reason}
            act = f"canary {command.verdict.replace('_', ' ')}"
            self._house.note(AuditEvent("server", act, plan.candidate.name, detail))
            self._house.moved(plan.task)

        def failed(error: RengoError) -> None:
            _LOG.error("the verdict of %s is not carried out: %s", plan.canary_id, error)
            settled(str(error))

        self._house.data.start_task(
            lambda: self._house.data.patiently(lambda: _settle(self._registry, plan, command)),
            settled,
            failed,
            in_order=True,
        )


def _settle(registry: ModelRegistry, plan: CanaryPlan, command: Settle) -> str:
    """Bring the versions' stages to the verdict, once or again; return what is in its way."""
    candidate = registry.get(plan.candidate.run_id, plan.candidate.version)
    production = registry.production(plan.task)
    now = "" if production is None else production.name
    if now == candidate.name:
        return ""  # promoted before a crash, or by the operator
    if command.verdict == "promoted" and now == plan.production.name:
        registry.promote(candidate, command.reason)
        return ""
    if candidate.record.stage == "candidate":
        registry.archive(candidate, command.reason)
    if command.verdict != "promoted":
        return ""
    return f"{now or 'nothing'} is in production by now; the candidate was archived"


def _contender(version: Version) -> Contender:
    manifest = version.manifest
    return Contender(
        manifest.run_id, manifest.version, manifest.key, manifest.sha256, manifest.size_bytes
    )
