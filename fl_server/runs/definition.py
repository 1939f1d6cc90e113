"""What a run is: the definition that an operator submits, as TOML or by flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from algorithms.registry import load as load_algorithm
from broker.wire.messages.base import Settings
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import FitRule, Speed
from runtime.bounds import MAX_INTEGER, MAX_ROUNDS, MAX_SIZE, require_plain
from runtime.config import validate
from storage.versions.manifest import Parent

_NUMBER_FORMAT = frozenset({"scale_bits", "weight_bits"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AlgorithmSection(_Section):
    """Which algorithm, with its hyper-parameters beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Annotated[str, Field(max_length=64)] = "fedavg"

    @model_validator(mode="after")
    def _settings_are_plain(self) -> AlgorithmSection:
        require_plain(self.settings)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters."""
        return dict(self.model_extra or {})


class CohortSection(_Section):
    """Who takes part in a round and when it closes.

    ``size`` is the target number of updates, ``quorum`` the fewest that make a round (default
    60% of ``size``), ``gather_s`` how long to wait for a full cohort once a quorum is there.
    ``fit`` "time" gives slow devices fewer steps, so that all are done after ``fit_target_s``, or
    without it when half of them would be with all their epochs; "off" gives all the same.
    """

    size: Annotated[int, Field(ge=1, le=100_000)] = 2
    quorum: Annotated[int, Field(ge=1, le=100_000)] | None = None
    over_selection: Annotated[float, Field(ge=1, le=10)] = 1.0
    deadline_s: Annotated[float, Field(gt=0, le=604_800)] = 120.0
    gather_s: Annotated[float, Field(ge=0, le=604_800)] = 10.0
    max_attempts: Annotated[int, Field(ge=1, le=100_000)] = 50
    fit: Literal["off", "time"] = "off"
    fit_target_s: Annotated[float, Field(gt=0, le=604_800)] | None = None

    @model_validator(mode="after")
    def _target_is_in_time(self) -> CohortSection:
        if self.fit_target_s is not None and self.fit == "off":
            raise ValueError('fit_target_s needs fit = "time"')
        if self.fit_target_s is not None and self.fit_target_s > self.deadline_s:
            raise ValueError(
                f"fit_target_s {self.fit_target_s:g} is after the deadline of {self.deadline_s:g} s"
            )
        return self

    @model_validator(mode="after")
    def _quorum_fits(self) -> CohortSection:
        if self.quorum is not None and self.quorum > self.size:
            raise ValueError(f"quorum {self.quorum} is more than the cohort's size {self.size}")
        return self


class EvaluationSection(_Section):
    """How the global model is measured.

    ``on`` is "evaluators" (devices of that role), "devices" (each on its own held-out split),
    "none", or "auto": evaluators if one is there when the run is submitted, else devices.
    """

    on: Literal["auto", "evaluators", "devices", "none"] = "auto"
    every: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0


class ModelsSection(_Section):
    """Which versions stay in the store, and what version 0 was made from.

    The latest ``keep`` stay, every ``keep_every``-th where that is not 0, and whatever has a tag or
    a stage. ``parent`` is filled in where the run begins with a version of this project.
    """

    keep: Annotated[int, Field(ge=2, le=100_000)] = 3
    keep_every: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    parent: Parent | None = None


class BundleSection(_Section):
    """The task bundle that a run's devices may take: one that the site has, by its sha256."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=1, le=MAX_SIZE)]


class RunDefinition(_Section):
    """One run of one task.

    ``flow`` is the kind of flow that coordinates it, ``flow_settings`` are for that kind alone.
    """

    flow: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = "sync"
    flow_settings: Settings = {}
    task: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 10
    seed: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    algorithm: AlgorithmSection = AlgorithmSection()
    training: Settings = {}
    cohort: CohortSection = CohortSection()
    evaluation: EvaluationSection = EvaluationSection()
    models: ModelsSection = ModelsSection()
    bundle: BundleSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_number_format(cls, values: Any) -> Any:
        """Leave out what set the sum's number format, which now adapts to the data.

        Runs that were journalled before have it, and so may an operator's file.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("aggregation"), Mapping):
            return values
        left = {k: v for k, v in values["aggregation"].items() if k not in _NUMBER_FORMAT}
        rest = {key: value for key, value in values.items() if key != "aggregation"}
        return {**rest, "aggregation": left} if left else rest

    @property
    def bundled(self) -> bool:
        """Whether devices that do not have the task installed may take it as a bundle."""
        return self.bundle is not None

    def plan(
        self,
        run_id: str,
        *,
        evaluators_online: bool,
        speeds: Mapping[str, Speed] | None = None,
    ) -> Plan:
        """Return what the round machine must know; "auto" evaluation is decided here.

        Args:
            speeds: what devices were measured at in earlier runs of the task.
        """
        cohort, evaluation = self.cohort, self.evaluation
        on = evaluation.on
        if on == "auto":
            on = "evaluators" if evaluators_online else "devices"
        return Plan(
            run_id=run_id,
            rounds=self.rounds,
            cohort_size=cohort.size,
            quorum=cohort.quorum or math.ceil(0.6 * cohort.size),
            seed=self.seed,
            over_selection=cohort.over_selection,
            deadline_s=cohort.deadline_s,
            gather_s=cohort.gather_s,
            max_attempts=cohort.max_attempts,
            evaluate_every=evaluation.every,
            evaluate_on=on,
            evaluation_deadline_s=evaluation.deadline_s,
            fit=self._fit(speeds or {}),
        )

    def _fit(self, speeds: Mapping[str, Speed]) -> FitRule | None:
        cohort, most = self.cohort, self.training.get("max_steps", 0)
        if cohort.fit == "off":
            return None
        return FitRule(
            cohort.fit_target_s,
            cohort.deadline_s,
            most if isinstance(most, int) else 0,
            dict(speeds),
        )


def parse_definition(values: dict[str, Any], source: str) -> RunDefinition:
    """Return the validated definition.

    Raises:
        ConfigError: a key or value is wrong, or the algorithm or one of its settings is unknown.
    """
    definition = validate(RunDefinition, values, source)
    load_algorithm(definition.algorithm.name, definition.algorithm.settings)
    return definition
