"""What a run is made of by name: its algorithm, its rule, its transforms; do they go together?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from algorithms.base import UPDATE, Algorithm
from algorithms.registry import load as load_algorithm
from algorithms.transforms import TRANSFORMS, bound_of
from algorithms.transforms.base import Transform
from fl_server.aggregation.rules import RULES
from fl_server.aggregation.rules.base import ByDistance, Rule
from runtime.errors import ConfigError


@dataclass(frozen=True)
class ChosenPart:
    """One of a listing, with its settings."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Composition:
    """The parts of a run.

    Attributes:
        flow: the kind of flow that coordinates it.
        cohort_size: how many updates a round is to have.
        quorum: how many it has at least.

    Raises:
        ConfigError: where one is asked for that does not exist, or refuses a setting.
    """

    flow: str
    algorithm_name: ChosenPart
    rule_name: ChosenPart
    transform_names: tuple[ChosenPart, ...]
    cohort_size: int
    quorum: int

    @cached_property
    def algorithm(self) -> Algorithm:
        """The algorithm."""
        return load_algorithm(self.algorithm_name.name, self.algorithm_name.settings)

    @cached_property
    def rule(self) -> Rule:
        """The rule."""
        return RULES.load(self.rule_name.name, self.rule_name.settings)

    @cached_property
    def transforms(self) -> tuple[Transform, ...]:
        """The transforms, in their order."""
        return tuple(TRANSFORMS.load(each.name, each.settings) for each in self.transform_names)

    def require(self) -> None:
        """Return when the parts exist and go together.

        Raises:
            ConfigError: they do not; the text says why.
        """
        name, rule = self.algorithm_name.name, self.rule
        if rule.needs_updates:
            self._require_rule(rule)
            self._require_few(f"rule {self.rule_name.name}", rule.most_updates)
        if self.algorithm.needs_updates:
            self._require_few(f"algorithm {name}", ByDistance.most_updates)
        self._require_transforms()

    def _require_transforms(self) -> None:
        """Raise where a transform goes with neither the algorithm, nor the rule, nor the others."""
        names = [each.name for each in self.transform_names]
        called, bound = f"algorithm {self.algorithm_name.name}", bound_of(self.transforms)
        for name, transform in zip(names, self.transforms, strict=True):
            reason = transform.refusal(self.algorithm, bound)
            if names.count(name) > 1:
                reason = "it stands in the list more than once"
            elif self.flow != "sync":
                reason = f"a run of kind {self.flow} has none"
            elif transform.needs_mean and self.rule.needs_updates:
                reason = f"its size is that of a mean; rule {self.rule_name.name} makes none"
            elif transform.needs_mean and self.algorithm.needs_updates:
                reason = f"its size is that of a mean; {called} makes none"
            if reason:
                raise ConfigError(f"transform {name} with {called}: {reason}")

    def _require_rule(self, rule: Rule) -> None:
        """Raise where a rule does not go with the algorithm, or a round may be too small for it."""
        called = f"rule {self.rule_name.name}"
        reason = _reason_against(self.algorithm, f"algorithm {self.algorithm_name.name}")
        if self.flow != "sync":
            reason = f"a run of kind {self.flow} has none"
        if reason:
            raise ConfigError(f"{called}: {reason}; use rule.name=mean")
        if self.quorum < rule.least_updates:
            raise ConfigError(
                f"{called} needs {rule.least_updates} updates in every round, and the quorum is "
                f"{self.quorum}; set cohort.quorum={rule.least_updates} and a cohort.size of at "
                "least as many"
            )

    def _require_few(self, called: str, most: int) -> None:
        """Raise where a round may have too many updates to keep each."""
        if self.cohort_size > most:
            raise ConfigError(
                f"{called} keeps every update of a round, at most {most}; cohort.size is "
                f"{self.cohort_size}"
            )


def _reason_against(algorithm: Algorithm, called: str) -> str:
    """Return why no rule but the mean goes with an algorithm, "" where all do."""
    if algorithm.needs_updates:
        return f"{called} combines the updates itself"
    if algorithm.narrow_widths:
        return f"clients of {called} send parts of the model"
    if type(algorithm).weight is not Algorithm.weight:
        return f"{called} weighs the updates, and a rule counts all alike"
    if algorithm.sends != (UPDATE,) or algorithm.reports:
        sent = ", ".join((*algorithm.sends, *algorithm.reports))
        return f"the server of {called} reckons with means of all that its clients send ({sent})"
    return ""
