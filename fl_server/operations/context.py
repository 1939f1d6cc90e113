"""What operations use of the server around them: named here, so that they do not import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fl_server.dataplane.bundles import Named, SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.deployment.service import CanaryRequest
from fl_server.members.membership import Membership
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import DeviceRecord
from fl_server.members.store import MemberRegistry
from fl_server.persistence.journal import Journal, RunRecord
from fl_server.rounds.events import PauseRequested, ResumeRequested, StopRequested
from fl_server.runs.active import ActiveRun
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore
from storage.versions.index import Version

Steering = PauseRequested | ResumeRequested | StopRequested


class CanaryControl(Protocol):
    """What operations do with canaries."""

    def begin(
        self,
        candidate: Version,
        request: CanaryRequest,
        caller: str,
        bundle: Named | None = None,
        canary_id: str = "",
    ) -> str:
        """Start a canary and return its id, or that of the one that goes on in the same way.

        Raises:
            ConfigError: there is nothing to compare with, nobody to measure, or one runs already.
        """
        ...

    def show(self, canary_id: str) -> Mapping[str, Any]:
        """Return how a canary stands; NotFound where there is none of this id."""
        ...

    def require_free(self, version: Version) -> None:
        """Raise ConfigError when a canary that runs tries this version."""
        ...

    def needs(self, sha256: str) -> str:
        """Return the id of a running canary whose devices may take this bundle, "" if none."""
        ...


@dataclass(frozen=True)
class OperationsContext:
    """What operations use. All of it is called on the owner's thread.

    Attributes:
        secret: the server's own key, from which the secrets of answers are derived.
        runs: every run, the oldest first.
        refused_messages: returns how many messages were refused, by reason.
        start_run: journals a new run and lets it begin.
        steer: gives a run what an operator wants of it; journals and carries out what follows.
        production_changed: is told the task whose production has changed.
        forget_device: takes out a revoked device, which the broker has forgotten.
    """

    domain: str
    epoch: int
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
    runs: Mapping[str, ActiveRun]
    refused_messages: Callable[[], Mapping[str, int]]
    start_run: Callable[[RunRecord], None]
    steer: Callable[[ActiveRun, Steering], None]
    production_changed: Callable[[str], None]
    forget_device: Callable[[DeviceRecord], None]
