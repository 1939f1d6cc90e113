"""The operations of a server without its network, and a process that ends at any step of its work.

``Disk`` is what outlives a process: the database and the object store. ``Life`` is one process on
it. ``Mortal`` counts the steps that leave something on the disk (transactions, objects written and
removed) and ends the life before or after one of them, as ``kill -9`` does: what was not committed
is gone, and no thread does anything more.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest import mock

from broker.brokers.access_control import ManualAccess
from broker.session.endpoint import Endpoint
from broker.wire.messages import DeviceState
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.uploads import Uploads
from fl_server.deployment.canaries import Canaries
from fl_server.flows.commands import StartTask
from fl_server.kinds.base import FlowKind
from fl_server.kinds.listing import FLOW_KINDS
from fl_server.members.labels import LabelRegistry
from fl_server.members.membership import Membership, SiteInfo
from fl_server.members.presence import PresenceTable
from fl_server.members.rules import DeviceRecord
from fl_server.members.store import MemberRegistry
from fl_server.members.traits import TraitsTable
from fl_server.observers.base import ObserverList
from fl_server.observers.traffic import LinkTraffic
from fl_server.operations.call import Answer, Caller, Outcome
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.ended_runs import EndedRunReports
from fl_server.operations.submission import Operations
from fl_server.persistence.database import Transaction
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.rounds.model import Model
from fl_server.runs.record import RunRecord
from fl_server.shell.connection import ServerConnection
from fl_server.shell.runner import FlowRunner, RunnerParts
from runtime.errors import RengoError
from runtime.security.identity import new_identity
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo
from storage.versions.keys import RunKeys
from tests.flows import Sent
from tests.versions import KEY, PROJECT

OPERATOR = Caller("operator", "operator")
OPERATORS = [
    new_identity("operator", "home", name, "127.0.0.1", 1) for name in ("operator", "o", "other")
]


class Killed(BaseException):
    """The process has ended here."""


class Mortal:
    """Ends the process at one step; with ``at`` None it lives on, and only counts."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.steps = 0
        self.dead = False

    def step(self) -> None:
        """Count a step; does not return where it is the last."""
        if self.dead:
            raise Killed
        if self.steps == self.at:
            self.dead = True
            raise Killed
        self.steps += 1

    @contextmanager
    def around(self) -> Iterator[None]:
        """Count a step before and one after what is done within."""
        self.step()
        yield
        self.step()


class MortalStore(MemoryStore):
    """A store that outlives the process which writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.mortal = Mortal()

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        with self.mortal.around():
            return super().put(key, source, size)

    def delete(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            with self.mortal.around():
                super().delete([key])


class OpenAccess(ManualAccess):
    """A broker whose users the server makes."""

    manages_users = True


class QuietMembership(Membership):
    """Members of a broker that holds no sessions."""

    def cut_off(self, device: DeviceRecord) -> None:
        self.update_broker()


class Plane:
    """A data plane whose tasks are done one after the other, when :meth:`run` is called.

    The jobs of flows are not done: what an operation leaves is looked at before they end.
    """

    def __init__(self, store: MortalStore, registry: ModelRegistry) -> None:
        self.store = store
        self.uploads = Uploads(store)
        self.registry = registry
        self._tasks: list[Callable[[], None]] = []

    def keys(self, run_id: str) -> RunKeys:
        return RunKeys(PROJECT, run_id)

    def check_initial(self, run_id: str, model: Model) -> None:
        """Find every version 0 good."""

    def adopt_version(self, source: Model, run_id: str) -> Model:
        key = self.keys(run_id).version(0)
        with self.store.open(source.key) as stream:
            self.store.put(key, stream.read(source.size_bytes))
        return replace(source, version=0, key=key)

    def open_run(self, record: RunRecord[Any]) -> None:
        """Hold nothing for a run."""

    def waiting(self, run_id: str) -> None:
        return None

    def start_job(self, run_id: str, task: StartTask) -> None:
        """Leave the job undone."""

    def close_run(self, run_id: str) -> None:
        """Hold nothing for a run."""

    def forget_copies(self, run_id: str) -> None:
        """Hold no copies of a run's models."""

    def discard_prepared(self, _: object) -> None:
        raise AssertionError("nothing here is old")

    def start_task(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[RengoError], None],
        *,
        in_order: bool = False,
        run_id: str = "",
    ) -> None:
        def task() -> None:
            try:
                value = work()
            except RengoError as error:
                failed(error)
            else:
                then(value)

        self._tasks.append(task)

    def run(self) -> None:
        while self._tasks:
            self._tasks.pop(0)()


class Disk:
    """What outlives a process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.url = f"sqlite:///{folder / 'journal.sqlite'}"
        self.store = MortalStore()
        self.identity = new_identity("server", "home", "server", "127.0.0.1", 1, key=KEY)

    def copy(self, folder: Path) -> Disk:
        """Return another disk with the same content; no process is at work on this one."""
        other = Disk(folder)
        shutil.copy(self.folder / "journal.sqlite", folder)
        for info in self.store.list(""):
            with self.store.open(info.key) as stream:
                other.store.put(info.key, stream.read())
        return other


class Life:
    """One process with its operations.

    Args:
        mortal: counts its steps from when its parts are made.
        settled: whether it does first what it resumes.
        kinds: the kinds of flows that the server has.
    """

    def __init__(
        self,
        disk: Disk,
        mortal: Mortal | None = None,
        *,
        settled: bool = True,
        kinds: Mapping[str, FlowKind] = FLOW_KINDS,
    ) -> None:
        self.disk = disk
        self.kinds = kinds
        self.disk.store.mortal = Mortal()
        self.journal = Journal(disk.url)
        self.registry = ModelRegistry(disk.store, PROJECT, KEY, now_ms=lambda: 1)
        self.plane = Plane(disk.store, self.registry)
        self.audit = MemberRegistry(self.journal.database, KEY)
        self.presence = PresenceTable()
        state = DeviceState(
            status="ready", boot_id="b", role="evaluator", tasks=["digits", "faces"]
        )
        self.presence.apply_state("e-1", state)
        self.moved: list[str] = []
        self.offered: list[str] = []
        self.members = QuietMembership(
            self.audit,
            disk.identity,
            OPERATORS,
            SiteInfo("mqtt://127.0.0.1:1"),
            OpenAccess(),
            Endpoint.of(disk.identity),
            lambda *_: None,
        )
        self.traffic = LinkTraffic()
        self.labels = LabelRegistry(self.journal.database)
        self.traits = TraitsTable(self.presence, self.members, self.labels)
        self.runner = self._runner()
        self.canaries = Canaries(self.runner.services, self.runner.begin, self.runner.timers.left_s)
        self.operations = Operations(self._context())
        self.mortal = Mortal() if mortal is None else mortal
        with self.alive():
            self.plane.start_task(self.registry.rebuild, lambda _: None, _raise, in_order=True)
            self.runner.restore()
            self.runner.resume()
            self.operations.resume()
            if settled:
                self.plane.run()

    def _context(self) -> OperationsContext:
        return OperationsContext(
            domain="home",
            secret=KEY,
            journal=self.journal,
            store=self.disk.store,
            data=cast(DataPlane, self.plane),
            models=self.registry,
            bundles=SiteBundles(self.disk.store, PROJECT, self.disk.folder / "bundles"),
            members=self.members,
            audit=self.audit,
            presence=self.presence,
            canaries=self.canaries,
            runs=self.runner,
            refused_messages=Counter[str],
            production_changed=self.moved.append,
            offer_password=self.offered.append,
            forget_device=self.members.note_cut_off,
            labels=self.labels,
            traits=self.traits.of,
            traits_changed=self.runner.handle_traits,
            traffic=self.traffic,
        )

    def _runner(self) -> FlowRunner:
        parts = RunnerParts(
            self.journal,
            RunHistory(self.journal.database),
            EndedRunReports(self.presence, 1),
            cast(DataPlane, self.plane),
            SiteBundles(self.disk.store, PROJECT, self.disk.folder / "bundles"),
            self.presence,
            cast(ServerConnection, Sent()),
            ObserverList(()),
            self.moved.append,
            self.members.note,
            traits=self.traits.of,
        )
        return FlowRunner(self.kinds, parts, 1)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Count the steps of what is done within."""
        self.disk.store.mortal = self.mortal
        ends = Transaction.__exit__

        def ended(transaction: Transaction, kind: Any, error: Any, trace: Any) -> None:
            try:
                self.mortal.step()
            except Killed as death:
                ends(transaction, Killed, death, None)
                raise
            ends(transaction, kind, error, trace)
            self.mortal.step()

        with mock.patch.object(Transaction, "__exit__", ended):
            yield

    def submit(
        self,
        operation: str,
        arguments: Mapping[str, Any] | None = None,
        request_id: str = "",
        caller: Caller = OPERATOR,
    ) -> Outcome:
        """Have one operation done to its end; return what came of it."""
        with self.alive():
            answer = self.operations.submit(operation, arguments or {}, caller, request_id)
            self.plane.run()
        assert answer.outcome is not None
        return answer.outcome

    def begin(self, operation: str, arguments: Mapping[str, Any], request_id: str) -> Answer:
        """Submit one operation, whose tasks wait."""
        return self.operations.submit(operation, arguments, OPERATOR, request_id)

    def do(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Return the document of an operation that must succeed."""
        outcome = self.submit(operation, arguments)
        assert outcome.result is not None, outcome.error
        return outcome.result.document()

    def end(self) -> None:
        """Close what the process holds open."""
        self.journal.close()


def _raise(error: RengoError) -> None:
    raise error
