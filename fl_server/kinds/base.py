"""What a kind of flow is to the server, and what its flows may use.

A kind is chosen by the key ``flow`` of a run's definition, from the kinds that the server was
given; a name from a message is never an import path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fl_server.dataplane.plane import DataPlane
from fl_server.flows.flow import Flow
from fl_server.members.presence import PresenceTable
from fl_server.persistence.history import RunHistory
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import FactRecord, RunRecord, Vocabulary
from runtime.errors import ConfigError
from storage.registry.registry import ModelRegistry


@dataclass(frozen=True)
class FlowServices:
    """What flows may use beside commands.

    Attributes:
        data: the data plane and the object store; what blocks belongs into a ``StartTask``.
        registry: the project's versions.
        presence: the devices that are online.
        flows: the flow of every run that goes on by its id, oldest first.
        history: the runs that have ended.
    """

    data: DataPlane
    registry: ModelRegistry
    presence: PresenceTable
    flows: Mapping[str, Flow]
    history: RunHistory


class FlowKind(ABC):
    """One kind of flow. The owner's thread calls it.

    Attributes:
        vocabulary: what the journal holds of its runs.
        is_submitted: whether operators submit runs of this kind, and see them in their lists.
    """

    vocabulary: ClassVar[Vocabulary]
    is_submitted: ClassVar[bool] = True

    def check(self, definition: RunDefinition) -> None:
        """Raise ConfigError where a definition is not usable for this kind."""
        if definition.flow_settings:
            raise ConfigError(f"flow {definition.flow!r} has no flow_settings")

    @abstractmethod
    def plan(self, run_id: str, definition: RunDefinition, services: FlowServices) -> Any:
        """Return the plan of a new run: what its flow decides by, besides events."""

    @abstractmethod
    def open(
        self, record: RunRecord[Any], facts: Sequence[FactRecord], services: FlowServices
    ) -> Flow:
        """Return the flow of a run as its facts left it."""
