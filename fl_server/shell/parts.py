"""What the runner of the flows is made with, and the runs that it has open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.faults import Faults
from fl_server.flows.flow import Flow
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import AuditEvent
from fl_server.observers.base import ObserverList
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.runs.record import RunRecord, RunReports
from fl_server.selection.traits import DeviceTraits
from fl_server.shell.addressing import AddressedRun
from fl_server.shell.connection import ServerConnection


@dataclass(frozen=True)
class RunnerParts:
    """What the flows' commands are carried out with.

    Attributes:
        history: the runs that have ended.
        reports: makes what goes there.
        announce_production: is given the task whose production has changed.
        note: writes to the audit log.
        traits: what is known of a device, by which runs choose.
    """

    journal: Journal
    history: RunHistory
    reports: RunReports
    data: DataPlane
    bundles: SiteBundles
    presence: PresenceTable
    connection: ServerConnection
    observers: ObserverList
    announce_production: Callable[[str], None]
    note: Callable[[AuditEvent], None]
    faults: Faults = field(default_factory=Faults)
    traits: Callable[[str], DeviceTraits] = DeviceTraits


@dataclass(frozen=True)
class OpenRuns:
    """The runs that are not history, oldest first, by their ids.

    Attributes:
        listeners: are given the reports of the runs that are driven from outside.
        addressed: what was said of whom each run addresses.
    """

    flows: dict[str, Flow] = field(default_factory=dict)
    records: dict[str, RunRecord[Any]] = field(default_factory=dict)
    listeners: dict[str, Callable[[object], None]] = field(default_factory=dict)
    addressed: dict[str, AddressedRun] = field(default_factory=dict)

    def remove(self, run_id: str) -> None:
        """Remove a run that is history now."""
        self.flows.pop(run_id, None)
        self.records.pop(run_id, None)
        self.listeners.pop(run_id, None)
        self.addressed.pop(run_id, None)
