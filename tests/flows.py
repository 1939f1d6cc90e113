"""The flows of a server without its network and its threads; ``crash`` gives it another life."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from broker.wire.messages import DeviceState, Message
from broker.wire.topics import Topics
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.uploads import Uploads
from fl_server.dataplane.workers import JobDone
from fl_server.flows.commands import StartTask
from fl_server.kinds.base import FlowKind
from fl_server.kinds.listing import FLOW_KINDS
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import AuditEvent
from fl_server.observers.base import Observer, ObserverList
from fl_server.operations.handlers.ended_runs import EndedRunReports
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.runs.record import RunRecord
from fl_server.selection.traits import DeviceTraits
from fl_server.shell.connection import ServerConnection
from fl_server.shell.parts import RunnerParts
from fl_server.shell.runner import FlowRunner
from runtime.errors import RengoError
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from tests.versions import KEY, PROJECT

TOPICS = Topics("home")


@dataclass
class Plane:
    """A data plane whose jobs wait until the test lets them go."""

    store: MemoryStore
    registry: ModelRegistry
    jobs: list[Callable[[], None]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    handle_done: Callable[[list[JobDone]], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.store)

    def patiently(self, work: Callable[[], Any]) -> Any:
        return work()

    def start_job(self, run_id: str, task: StartTask) -> None:
        def job() -> None:
            try:
                event = task.work()
            except RengoError as error:
                if task.failed is None:
                    raise
                event = task.failed(error)
            if event is not None:
                self.handle_done([JobDone(run_id, event)])

        self.jobs.append(job)

    def start_task(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[RengoError], None],
        *,
        in_order: bool = False,
        run_id: str = "",
    ) -> None:
        self.jobs.append(lambda: then(work()))

    def waiting(self, run_id: str) -> None:
        return None

    def forget_copies(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    def close_run(self, run_id: str) -> None:
        self.closed.append(run_id)

    def keys(self, run_id: str) -> RunKeys:
        return RunKeys(PROJECT, run_id)

    def open_run(self, record: RunRecord[Any]) -> None:
        """Hold nothing for a run."""

    def perform(self, *_: object) -> None:
        """Do no work on bytes."""

    def store_metrics(self, *_: object) -> None:
        """Store no metrics."""

    def sign_version(self, *_: object, is_new: bool = True) -> None:
        """Sign nothing."""

    def run(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


@dataclass
class Sent:
    """What goes out, in order: (topic, message, retained)."""

    messages: list[tuple[str, Message, bool]] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    topics: Topics = TOPICS

    def publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        self.messages.append((topic, message, retain))

    def publish_retained(self, topic: str, message: Message) -> None:
        self.publish(topic, message, retain=True)

    def publish_order(self, device_id: str, message: Message) -> None:
        self.publish(TOPICS.device(device_id, "task"), message)

    def publish_receipt(self, device_id: str, message: Message) -> None:
        self.publish(TOPICS.device(device_id, "receipt"), message)

    def clear(self, topic: str) -> None:
        self.cleared.append(topic)


class FlowServer:
    """One server's flows, with a journal on disk."""

    def __init__(
        self,
        folder: Path,
        kinds: Mapping[str, FlowKind] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.folder = folder
        self.kinds = {**FLOW_KINDS, **(kinds or {})}
        self.observers = list(observers)
        self.store = MemoryStore()
        self.registry = ModelRegistry(self.store, PROJECT, KEY, now_ms=lambda: 1)
        self.registry.rebuild()
        self.sent = Sent()
        self.acts: list[AuditEvent] = []
        self.moved: list[str] = []
        self.labels: dict[str, dict[str, str]] = {}
        self.begin_life()

    def begin_life(self) -> None:
        self.journal = Journal(f"sqlite:///{self.folder / 'journal.sqlite'}")
        self.epoch = self.journal.next_epoch()
        self.history = RunHistory(self.journal.database)
        self.presence = PresenceTable()
        self.plane = Plane(self.store, self.registry)
        self.told = ObserverList(self.observers)
        parts = RunnerParts(
            self.journal,
            self.history,
            EndedRunReports(self.presence, self.epoch),
            cast(DataPlane, self.plane),
            SiteBundles(self.store, PROJECT, self.folder / "bundles"),
            self.presence,
            cast(ServerConnection, self.sent),
            self.told,
            self.moved.append,
            self.acts.append,
            traits=self.traits_of,
        )
        self.runner = FlowRunner(self.kinds, parts, self.epoch)
        self.plane.handle_done = self.runner.handle_done
        self.runner.restore()

    def traits_of(self, device_id: str) -> DeviceTraits:
        info = self.presence.info(device_id)
        return DeviceTraits(device_id, info, labels=self.labels.get(device_id, {}))

    def crash(self) -> None:
        self.told.close()
        self.journal.close()
        self.begin_life()
        self.runner.resume()

    def close(self) -> None:
        self.told.close()
        self.journal.close()

    def online(self, *names: str, **said: Any) -> None:
        """Have devices publish that they are ready."""
        for name in names:
            state = DeviceState.model_validate(
                {"status": "ready", "boot_id": "b", "tasks": ["digits"], **said}
            )
            event = self.presence.apply_state(name, state)
            if event is not None:
                self.runner.handle_presence(event, state)

    def said(self, kind: type[Message]) -> list[Any]:
        return [message for _, message, _ in self.sent.messages if isinstance(message, kind)]
