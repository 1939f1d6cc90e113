"""A run as it stands in the journal, and what its rows may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from fl_server.flows.flow import Flow
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


@dataclass(frozen=True)
class EndedRun:
    """What is kept of a run that has ended, in place of its flow. All of it is plain data.

    Attributes:
        listed: whether operators see it among their runs.
        summary: the run in one row.
        document: the retained document as it was last, None where it has none.
        speeds: what its devices were measured at, for later runs with the same steps.
        report: all that an operator is told of it.
    """

    run_id: str
    task: str
    listed: bool
    summary: Mapping[str, Any]
    document: Mapping[str, Any] | None
    speeds: Mapping[str, Any]
    report: Mapping[str, Any]


class RunReports(Protocol):
    """What is kept of runs that have ended."""

    def ended(
        self, record: RunRecord[Any], flow: Flow, facts: Sequence[FactRecord], *, listed: bool
    ) -> EndedRun:
        """Return what is kept of a run."""
        ...

    def damaged(self, run_id: str, reason: str) -> EndedRun:
        """Return what is kept of a run that failed, since its rows are damaged."""
        ...
