"""A run as it stands in the journal, and what its rows may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition

P = TypeVar("P")


@dataclass(frozen=True)
class RunRecord(Generic[P]):
    """A journalled run. ``plan`` is its flow kind's own; ``at`` is Unix time, for people only."""

    run_id: str
    definition: RunDefinition
    plan: P
    initial: Model
    at: float


@dataclass(frozen=True)
class AwaitedModel:
    """Where a version 0 goes, and how large it is; its sha256 comes when it is there."""

    key: str
    size_bytes: int

    def model(self, sha256: str) -> Model:
        """Return it as it was promised."""
        return Model(0, self.key, sha256, self.size_bytes)


@dataclass(frozen=True)
class PreparedRun:
    """A run whose version 0 is awaited."""

    run_id: str
    definition: RunDefinition
    awaited: AwaitedModel


@dataclass(frozen=True)
class FactRecord:
    """A journalled fact with the wall clock's Unix time, for people only."""

    fact: Any
    at: float


@dataclass(frozen=True)
class Vocabulary:
    """What the journal holds of one kind of flow: dataclasses, written as JSON.

    Attributes:
        facts: by the name that stands in the journal. A class that is renamed keeps its old name
            here too.
    """

    plan: type
    facts: Mapping[str, type]
