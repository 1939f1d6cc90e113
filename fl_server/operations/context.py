"""What operations use of the server around them: named here, so that they do not import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fl_server.dataplane.bundles import Named, SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.deployment.canaries import CanaryRequest
from fl_server.faults import Faults
from fl_server.flows.flow import Flow
from fl_server.members.labels import LabelRegistry
from fl_server.members.membership import Membership
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import DeviceRecord
from fl_server.members.store import MemberRegistry
from fl_server.observers.traffic import LinkTraffic
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import RunRecord
from fl_server.selection.traits import DeviceTraits
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore
from storage.versions.version import Version

FlowType = TypeVar("FlowType", bound=Flow)


class RunControl(Protocol):
    """What operations do with runs.

    Attributes:
        flows: the flow of every run that goes on by its id, the oldest first, canaries too.
        records: their records, likewise.
        history: the runs that have ended; those that ended a moment ago may still have a flow.
    """

    @property
    def epoch(self) -> int:
        """The server's, which grows at each start."""
        ...

    flows: dict[str, Flow]
    records: dict[str, RunRecord[Any]]
    history: RunHistory

    def definition(self, run_id: str) -> RunDefinition | None:
        """Return the definition of a run, also of one that is history; None if there is none."""
        ...

    def submitted(self) -> list[str]:
        """Return the ids of the runs with a flow that operators submitted, the oldest first."""
        ...

    def of(self, kind: type[FlowType]) -> dict[str, FlowType]:
        """Return the flows of one class by their runs' ids, the oldest first."""
        ...

    def check(self, definition: RunDefinition) -> None:
        """Raise ConfigError where no flow of this server can carry out the definition."""
        ...

    def new_record(self, run_id: str, definition: RunDefinition, initial: Model) -> RunRecord[Any]:
        """Return the record of a run that may begin now."""
        ...

    def begin(self, record: RunRecord[Any]) -> None:
        """Journal a new run and let it begin."""
        ...

    def handle(self, run_id: str, *events: object) -> None:
        """Give events to a run; journal and carry out what follows."""
        ...


class CanaryControl(Protocol):
    """What operations do with canaries."""

    def begin(
        self,
        candidate: Version,
        wanted: CanaryRequest,
        canary_id: str,
        bundle: Named | None = None,
    ) -> str:
        """Start a canary and return its id, or that of the one that goes on in the same way.

        Raises:
            ConfigError: there is nothing to compare with, nobody to measure, or one runs already.
        """
        ...

    def show(self, canary_id: str) -> Mapping[str, Any]:
        """Return how a canary stands; NotFound where there is none of this id."""
        ...

    def require_free(self, name: str) -> None:
        """Raise ConfigError when a canary that runs tries the version of this name."""
        ...

    def needs(self, sha256: str) -> str:
        """Return the id of a running canary whose devices may take this bundle, "" if none."""
        ...


@dataclass(frozen=True)
class OperationsContext:
    """What operations use. All of it is called on the owner's thread.

    Attributes:
        secret: the server's own key, from which the secrets of answers are derived.
        refused_messages: returns how many messages were refused, by reason.
        production_changed: is told the task whose production has changed.
        offer_password: gives a device the password that awaits it, when it may have it.
        forget_device: takes out a revoked device, which the broker has forgotten.
        labels: those that operators gave to devices.
        traits: what runs may choose a device by.
        traffic: what each device has moved for its orders.
        traits_changed: is told the device of which that has changed.
        faults: has the errors that nobody foresaw.
    """

    domain: str
    secret: SecretKey
    journal: Journal
    store: ObjectStore
    data: DataPlane
    models: ModelRegistry
    bundles: SiteBundles
    members: Membership
    audit: MemberRegistry
    presence: PresenceTable
    canaries: CanaryControl
    runs: RunControl
    refused_messages: Callable[[], Mapping[str, int]]
    production_changed: Callable[[str], None]
    offer_password: Callable[[str], None]
    forget_device: Callable[[DeviceRecord], None]
    labels: LabelRegistry
    traits: Callable[[str], DeviceTraits]
    traits_changed: Callable[[str], None]
    traffic: LinkTraffic
    faults: Faults = field(default_factory=Faults)
