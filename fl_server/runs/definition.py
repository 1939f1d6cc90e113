"""What a run is: the definition that an operator submits, as TOML or by flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from broker.wire.messages.base import MetricName, Settings
from fl_server.canary.state import lower_is_better
from fl_server.rounds.plan import BestRule, Plan
from fl_server.rounds.workload import FitRule, Speed
from fl_server.runs.composition import ChosenPart, Composition
from fl_server.selection.targets import RunTarget
from runtime.bounds import (
    MAX_HYPER_PARAMETER,
    MAX_INTEGER,
    MAX_ROUNDS,
    MAX_SIZE,
    MAX_TRANSFORMS,
    require_plain,
)
from runtime.config import validate
from runtime.errors import ConfigError
from storage.versions.manifest import Parent

_NUMBER_FORMAT = frozenset({"scale_bits", "weight_bits"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _NamedSection(_Section):
    """A name, and beside it the settings of what has that name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="after")
    def _settings_are_plain(self) -> Self:
        require_plain(self.settings)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings."""
        return dict(self.model_extra or {})

    @property
    def chosen(self) -> ChosenPart:
        """The name and the settings."""
        return ChosenPart(self.name, self.settings)


class AlgorithmSection(_NamedSection):
    """Which algorithm, with its hyper-parameters beside its name."""

    name: Annotated[str, Field(max_length=64)] = "fedavg"
    """The algorithm's name; `rengo algorithms` lists them."""


class RuleSection(_NamedSection):
    """How a round's updates become one, with the rule's settings beside its name."""

    name: Annotated[str, Field(max_length=64)] = "mean"
    """The rule's name; `rengo algorithms` lists them too. All but `mean` hold against a part of the
    devices that send wrong updates; the server then keeps every update until a round's end."""


class TransformSection(_NamedSection):
    """What is done to updates and means, around any algorithm: a list, in the order in which it is
    done, as `--set 'transforms=[{name="clip", norm=1}, {name="noise", multiplier=0.1}]'` or as
    `[[transforms]]` in a file. The settings of each stand beside its name."""

    name: Annotated[str, Field(max_length=64)]
    """The transform's name; `rengo algorithms` lists them too."""


class ScheduleSection(_Section):
    """How the learning rate changes from round to round. It begins with `training.learning_rate`,
    which is the task's unless the run sets it; devices get that of their round with the order."""

    name: Literal["constant", "step", "exponential", "cosine"] = "constant"
    """`step` multiplies it by `schedule.decay` after every `schedule.every` rounds, `exponential`
    after every round, and `cosine` lowers it along half a wave over all rounds of the run."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """What `step` and `exponential` multiply it by; they need it."""
    every: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 10
    """After how many rounds `step` does."""
    least: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The part of it that is never gone below, and that `cosine` goes towards."""
    warmup_rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] = 0
    """Over so many rounds it grows evenly to its whole, and only then does the schedule begin."""
    after: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] = 0
    """So many rounds were before this run, and count as if they were of it; filled in by `rengo
    runs extend`."""

    @model_validator(mode="after")
    def _has_its_decay(self) -> ScheduleSection:
        if self.name in {"step", "exponential"} and self.decay is None:
            raise ValueError(f"schedule {self.name} needs schedule.decay")
        return self

    @property
    def is_constant(self) -> bool:
        """Whether every round has the same learning rate."""
        return self.name == "constant" and not self.warmup_rounds


class CohortSection(_Section):
    """Who takes part in a round and when it closes."""

    size: Annotated[int, Field(ge=1, le=100_000)] = 2
    """The number of updates that a round is to have. Unless it is set, `rengo run` sets it to the
    number of devices that are online and have the task."""
    quorum: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The fewest updates that make a round; without it 60% of `cohort.size`."""
    over_selection: Annotated[float, Field(ge=1, le=10)] = 1.0
    """How many devices are invited for each update that a round is to have."""
    deadline_s: Annotated[float, Field(gt=0, le=604_800)] = 120.0
    """When a round that has not its updates is closed, with a quorum, or abandoned."""
    gather_s: Annotated[float, Field(ge=0, le=604_800)] = 10.0
    """How long a round waits for a full cohort to be online once a quorum is, and for the return of
    those that owe an update once all of them have left."""
    max_attempts: Annotated[int, Field(ge=1, le=100_000)] = 50
    """How often one round is attempted before the run fails, attempts that devices declined for now
    not counted."""
    fit: Literal["off", "time"] = "off"
    """With `time` slow devices get fewer steps, so that all are done at the same time."""
    fit_target_s: Annotated[float, Field(gt=0, le=604_800)] | None = None
    """When all are to be done with `time`; without it when half would be with all their epochs."""

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
    """How the global model is measured."""

    on: Literal["auto", "evaluators", "devices", "none"] = "auto"
    """Who measures: devices of the role evaluator, or trainers, each on its own held-out split.
    With `auto` evaluators where one is online when the run is submitted, else trainers."""
    every: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1
    """A version is measured after every so many rounds, and the last one always."""
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """How long measurements are waited for."""
    metrics: Annotated[dict[MetricName, Literal["higher", "lower"]], Field(max_length=64)] = {}
    """The metrics in the order in which they are shown, each with what is better; runs are compared
    by the first. `rengo run` fills it in from the task's `goals`; empty is accuracy."""

    @property
    def headline(self) -> str:
        """The metric that runs are compared by."""
        return next(iter(self.metrics), "accuracy")


class ModelsSection(_Section):
    """Which versions stay in the store, and what version 0 was made from."""

    keep: Annotated[int, Field(ge=2, le=100_000)] = 3
    """So many of the latest versions stay, beside those that have a tag or a stage."""
    keep_every: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Every version whose number is a multiple of this stays too; 0 is none."""
    parent: Parent | None = None
    """The version that the run begins with, filled in by `rengo run --from`."""


class BestSection(_Section):
    """Which version of the run is its best, and when none better is looked for any more.

    Versions are compared in their order, each when those who measure it have answered.
    """

    keep: bool = False
    """Whether the best version stays in the store, with the tag `RUN.best`, which is a name of it
    everywhere; with `best.patience` it does anyway."""
    metric: MetricName | None = None
    """What versions are compared by; without it by the first of `evaluation.metrics`."""
    min_delta: Annotated[float, Field(ge=0, le=MAX_HYPER_PARAMETER)] = 0.0
    """By more than this a version must be better to count as better."""
    patience: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] = 0
    """The run is completed before its last round when so many rounds brought no better version; 0
    is never."""


class BundleSection(_Section):
    """The task bundle that a run's devices may take: one that the site has, by its sha256."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The bundle's hash, filled in by `rengo run --bundle`."""
    size_bytes: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    """The bundle's size, filled in likewise."""


def _readable(names: list[str], conditions: list[str]) -> list[str]:
    try:
        RunTarget.read(names, conditions)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return names or conditions


class RunDefinition(_Section):
    """One run of one task."""

    flow: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = "sync"
    """The kind of flow that coordinates the run."""
    flow_settings: Settings = {}
    """What that kind of flow alone is told; `sync` takes none."""
    task: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    """The name of the task that the devices have."""
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 10
    """How many rounds are committed before the run is completed."""
    seed: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    """What the first weights, the cohorts and the order of examples are drawn from."""
    group: Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,64}$")] = ""
    """The name that runs of one experiment share; `rengo runs compare` takes it for all of them."""
    variant: Annotated[str, Field(max_length=256)] = ""
    """What of its group a run is, as `algorithm.mu=0.1`: runs of one variant differ by their seeds.
    Filled in by `rengo run --sweep`."""
    target: Annotated[
        list[Annotated[str, Field(max_length=70)]],
        Field(max_length=256),
        AfterValidator(lambda names: _readable(names, [])),
    ] = []
    """Who may train: names of devices and domains, and `group:NAME`; empty is everybody. `rengo run
    --target` adds one."""
    where: Annotated[
        list[Annotated[str, Field(max_length=256)]],
        Field(max_length=32),
        AfterValidator(lambda conditions: _readable([], conditions)),
    ] = []
    """What must be true of who trains, as `profile=pi`, `ram>=4GB` or `lab=a,b`; `rengo run
    --where` adds one."""
    algorithm: AlgorithmSection = AlgorithmSection()
    rule: RuleSection = RuleSection()
    transforms: Annotated[tuple[TransformSection, ...], Field(max_length=MAX_TRANSFORMS)] = ()
    training: Settings = {}
    schedule: ScheduleSection = ScheduleSection()
    cohort: CohortSection = CohortSection()
    evaluation: EvaluationSection = EvaluationSection()
    models: ModelsSection = ModelsSection()
    best: BestSection = BestSection()
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

    @model_validator(mode="after")
    def _schedule_fits(self) -> RunDefinition:
        rate = self.training.get("learning_rate")
        if self.schedule.is_constant:
            return self
        rounds = self.schedule.after + self.rounds
        if self.schedule.warmup_rounds >= rounds:
            raise ValueError(
                f"schedule.warmup_rounds {self.schedule.warmup_rounds} leaves nothing of "
                f"{rounds} rounds"
            )
        if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
            raise ValueError(
                "a schedule needs training.learning_rate, a number above 0; `rengo run` fills it "
                "in from the task"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> RunDefinition:
        if self.looks_for_best and self.evaluation.on == "none":
            raise ValueError('best needs somebody who measures: evaluation.on is "none"')
        return self

    @property
    def quorum(self) -> int:
        """The fewest updates that make a round."""
        return self.cohort.quorum or math.ceil(0.6 * self.cohort.size)

    @property
    def composition(self) -> Composition:
        """What ``parse_definition`` has seen to go together."""
        return Composition(
            self.flow,
            self.algorithm.chosen,
            self.rule.chosen,
            tuple(each.chosen for each in self.transforms),
            self.cohort.size,
            self.quorum,
        )

    @property
    def addressed(self) -> RunTarget:
        """Whom the run addresses."""
        return RunTarget.read(self.target, self.where)

    @property
    def looks_for_best(self) -> bool:
        """Whether versions are compared."""
        return self.best.keep or self.best.patience > 0

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
            quorum=self.quorum,
            seed=self.seed,
            over_selection=cohort.over_selection,
            deadline_s=cohort.deadline_s,
            gather_s=cohort.gather_s,
            max_attempts=cohort.max_attempts,
            evaluate_every=evaluation.every,
            evaluate_on=on,
            evaluation_deadline_s=evaluation.deadline_s,
            fit=self._fit(speeds or {}),
            best=self._best_rule(),
        )

    def _best_rule(self) -> BestRule | None:
        if not self.looks_for_best:
            return None
        metric = self.best.metric or self.evaluation.headline
        lower = self.goal_of(metric) == "lower"
        return BestRule(metric, lower, self.best.min_delta, self.best.patience)

    def goal_of(self, metric: str) -> Literal["higher", "lower"]:
        """Return what is better of a metric, by its name where the definition does not say."""
        usual: Literal["higher", "lower"] = "lower" if lower_is_better(metric) else "higher"
        return self.evaluation.metrics.get(metric, usual)

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
        ConfigError: a key or value is wrong; the algorithm, the rule or one of their settings is
            unknown; or the two do not go together.
    """
    definition = validate(RunDefinition, values, source)
    definition.composition.require()
    return definition
