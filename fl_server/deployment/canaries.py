"""What operators do with canaries: begin them, and see how they stand.

All is called on the owner's thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fl_server.canary.events import DEADLINE, CanaryPlan, Contender, TaskBundle
from fl_server.canary.machine import choose, quorum_of
from fl_server.dataplane.bundles import Named
from fl_server.flows.events import TimerFired
from fl_server.kinds.base import FlowServices
from fl_server.kinds.canary import CanaryFlow
from fl_server.rounds.model import Model
from fl_server.runs.definition import AlgorithmSection, BundleSection, RunDefinition
from fl_server.runs.record import RunRecord
from runtime.errors import ConfigError, NotFound
from storage.versions.version import Version

_PREFIX = "canary-"


@dataclass(frozen=True)
class CanaryRequest:
    """How an operator wants a candidate to be tried.

    Attributes:
        share: of the devices that are online, above 0, at most 1.
        max_drop: by how much the metric may be worse.
        goal: what of it is better, "" for what its name tells.
    """

    share: float
    metric: str
    max_drop: float
    deadline_s: float
    goal: Literal["", "higher", "lower"] = ""


def new_canary_id() -> str:
    """Return an id by chance, from which the canary's devices are chosen too."""
    return f"{_PREFIX}{secrets.token_hex(8)}"


class Canaries:
    """Every canary of one server.

    Args:
        begin: starts the flow of a record.
        time_left_s: of a run's timer, None where it is not armed.
    """

    def __init__(
        self,
        services: FlowServices,
        begin: Callable[[RunRecord[Any]], None],
        time_left_s: Callable[[str, TimerFired], float | None],
    ) -> None:
        self._services = services
        self._begin = begin
        self._time_left_s = time_left_s

    def begin(
        self,
        candidate: Version,
        wanted: CanaryRequest,
        canary_id: str,
        bundle: Named | None = None,
    ) -> str:
        """Start a canary and return its id; the same request again gives that of the running one.

        Args:
            candidate: the version to be tried.
            wanted: how.
            canary_id: of the new one, as :func:`new_canary_id` makes them.
            bundle: the one of the site that devices without the task may take.

        Raises:
            ConfigError: there is nothing to compare with, nobody to measure, or one runs already.
        """
        for flow in self._running(candidate.manifest.task):
            plan = flow.plan
            asked = (plan.candidate.name, plan.metric, plan.max_drop, plan.deadline_s)
            if asked == (candidate.name, wanted.metric, wanted.max_drop, wanted.deadline_s):
                return plan.canary_id  # the answer was lost, or somebody waits for it again
        plan = self._plan(candidate, wanted, canary_id, bundle)
        self._begin(record_of(plan))
        return canary_id

    def _baseline(self, candidate: Version) -> Version:
        task = candidate.manifest.task
        production = self._services.registry.production(task)
        if production is None:
            raise ConfigError(
                f"task {task!r} has no version in production to compare with: promote a first one "
                "without --canary"
            )
        if production.name == candidate.name:
            raise ConfigError(f"{candidate.name} is in production already")
        for flow in self._running(task):
            raise ConfigError(
                f"a canary of task {task!r} runs already: {flow.plan.candidate.name} "
                f"({flow.run_id}); wait for its verdict"
            )
        return production

    def _plan(
        self, candidate: Version, wanted: CanaryRequest, canary_id: str, bundle: Named | None
    ) -> CanaryPlan:
        production, manifest = self._baseline(candidate), candidate.manifest
        online = self._services.presence.online(manifest.task, bundled=bundle is not None)
        evaluators = [each.id for each in online if each.state.role == "evaluator"]
        measured_by: Literal["evaluators", "devices"] = "evaluators" if evaluators else "devices"
        there = evaluators or [each.id for each in online]
        if not there:
            way = "" if bundle is None else ", or that takes its bundle,"
            raise ConfigError(
                f"no device with the task {manifest.task!r}{way} is there to measure the candidate"
            )
        cohort = choose(there, wanted.share, int(canary_id.removeprefix(_PREFIX), 16))
        return CanaryPlan(
            canary_id=canary_id,
            task=manifest.task,
            candidate=_contender(candidate),
            production=_contender(production),
            cohort=cohort,
            measured_by=measured_by,
            metric=wanted.metric,
            goal=wanted.goal,
            max_drop=wanted.max_drop,
            deadline_s=wanted.deadline_s,
            quorum=quorum_of(cohort),
            algorithm=manifest.algorithm,
            algorithm_settings=manifest.algorithm_settings,
            training=manifest.training,
            seed=manifest.seed,
            bundle=None if bundle is None else TaskBundle(bundle.sha256, bundle.size_bytes),
        )

    def require_free(self, name: str) -> None:
        """Raise ConfigError when a running canary tries the version of this name."""
        for flow in self._running():
            if flow.plan.candidate.name == name:
                raise ConfigError(f"{name} is in a canary ({flow.run_id}); wait for its verdict")

    def needs(self, sha256: str) -> str:
        """Return the id of a running canary whose devices may take this bundle, "" if none."""
        for flow in self._running():
            bundle = flow.plan.bundle
            if bundle is not None and bundle.sha256 == sha256:
                return flow.run_id
        return ""

    def show(self, canary_id: str) -> dict[str, Any]:
        """Return how a canary stands.

        Raises:
            NotFound: there is none of this id.
        """
        flow = self._services.flows.get(canary_id)
        if isinstance(flow, CanaryFlow):
            return flow.shown(self._time_left_s(canary_id, DEADLINE) or 0.0)
        kept = self._services.history.report(canary_id) if flow is None else None
        if kept is None or kept.get("canary_id") != canary_id:
            raise NotFound(f"no canary {canary_id!r}")
        return dict(kept)

    def _running(self, task: str = "") -> list[CanaryFlow]:
        return [
            flow
            for flow in self._services.flows.values()
            if isinstance(flow, CanaryFlow) and not flow.ended and task in {"", flow.task}
        ]


def record_of(plan: CanaryPlan) -> RunRecord[CanaryPlan]:
    """Return what is journalled of a new canary."""
    candidate, bundle = plan.candidate, plan.bundle
    definition = RunDefinition(
        flow="canary",
        task=plan.task,
        rounds=1,
        seed=plan.seed,
        algorithm=AlgorithmSection(**{**plan.algorithm_settings, "name": plan.algorithm}),
        training=plan.training,
        bundle=None
        if bundle is None
        else BundleSection(sha256=bundle.sha256, size_bytes=bundle.size_bytes),
    )
    model = Model(candidate.version, candidate.key, candidate.sha256, candidate.size_bytes)
    return RunRecord(plan.canary_id, definition, plan, model, time.time())


def _contender(version: Version) -> Contender:
    manifest = version.manifest
    return Contender(
        manifest.run_id, manifest.version, manifest.key, manifest.sha256, manifest.size_bytes
    )
