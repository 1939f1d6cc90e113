"""What a run is made of: its algorithm and its rule by name, and whether they go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from algorithms.base import UPDATE, Algorithm
from algorithms.registry import load as load_algorithm
from fl_server.aggregation.rules import RULES
from fl_server.aggregation.rules.base import Rule
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

    def require(self) -> None:
        """Return when the parts exist and go together.

        Raises:
            ConfigError: they do not; the text says why.
        """
        algorithm, rule = self.algorithm, self.rule
        if not rule.needs_updates:
            return
        reason = _reason_against(algorithm, f"algorithm {self.algorithm_name.name}")
        if self.flow != "sync":
            reason = f"a run of kind {self.flow} has none"
        if reason:
            raise ConfigError(f"rule {self.rule_name.name}: {reason}; use rule.name=mean")
        self._require_cohort()

    def _require_cohort(self) -> None:
        """Raise where a round may have too few updates for the rule, or too many."""
        name, rule = self.rule_name.name, self.rule
        if self.quorum < rule.least_updates:
            raise ConfigError(
                f"rule {name} needs {rule.least_updates} updates in every round, and the quorum is "
                f"{self.quorum}; set cohort.quorum={rule.least_updates} and a cohort.size of at "
                "least as many"
            )
        if self.cohort_size > rule.most_updates:
            raise ConfigError(
                f"rule {name} keeps every update of a round, at most {rule.most_updates}; "
                f"cohort.size is {self.cohort_size}"
            )


def _reason_against(algorithm: Algorithm, called: str) -> str:
    """Return why no rule but the mean goes with an algorithm, "" where all do."""
    if algorithm.needs_updates:
        return f"{called} combines the updates itself"
    if type(algorithm).weight is not Algorithm.weight:
        return f"{called} weighs the updates, and a rule counts all alike"
    if algorithm.sends != (UPDATE,) or algorithm.reports:
        sent = ", ".join((*algorithm.sends, *algorithm.reports))
        return f"the server of {called} reckons with means of all that its clients send ({sent})"
    return ""
