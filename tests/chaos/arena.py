"""A site of real processes for tests that break them, and the looks at what it left behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import TypeAdapter

from fl_server.rounds.facts import (
    FACTS,
    Fact,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunStopped,
    UpdateAccepted,
)
from rengo.demo import fleet
from rengo.operator.client import OperatorClient
from rengo.operator.runs import submit, wait_for_devices
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from rengo.site.supervisor import Supervisor
from runtime.processes.child import Child
from runtime.security.identity import Identity
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys
from tests.chaos.gated import reached
from tests.chaos.moments import Moment, read_plan, write_plan
from tests.objects import beside_in
from tests.support import family, hold_still

F = TypeVar("F", bound=Fact)
REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 90.0
KEPT_VERSIONS = 3
TRAINERS = {"edge-1", "edge-2", "edge-3", "edge-4", "gpu-1", "pi-1"}
GATED_TASK = f"{REPOSITORY / 'tests' / 'chaos' / 'gated.py'}:GatedDigits"
_POLL_S = 0.02
_ADAPTERS = {name: TypeAdapter(kind) for name, kind in FACTS.items()}


class ChaosSite(Site):
    """A site that starts again at once what was killed, with a server that may be mortal.

    ``server`` is the module that runs in place of ``rengo server``, given its settings and a plan.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        mortal: bool,
        devices: int = 0,
        server: str = "",
        options: SiteOptions | None = None,
    ) -> None:
        super().__init__(data_dir, devices=devices, options=options or SiteOptions())
        # a test kills more often than any accident, and has nothing to learn from long pauses
        self._supervisor = Supervisor(longest_pause_s=0.4, probe_every_s=1.0)
        self._server = server or ("tests.chaos.mortal_server" if mortal else "")
        self.plan = data_dir / "server.plan"

    def _add_child(self, name: str, child: Child, folder: Path) -> None:
        if name == "server" and self._server:
            config = self.folder.root / "server" / "server.toml"
            argv = [sys.executable, "-m", self._server, str(config), str(self.plan)]
            child = Child("the server", argv, self._log(name), cwd=REPOSITORY)
        super()._add_child(name, child, folder)

    def member(self, name: str, index: int = 0, count: int = 1) -> Identity:
        """Return a device's identity, admitted."""
        identity = self.folder.ensure_identity("device", name, self.at, index=index, count=count)
        self.admit([identity])
        return identity

    def restarts(self, name: str) -> int:
        return self._supervisor.restarts()[name]


@dataclass
class Arena:
    """A running site with its operator, and what a test asks of it."""

    site: ChaosSite
    client: OperatorClient
    task: str
    runs: list[str] = field(default_factory=list)
    own: dict[str, Child] = field(default_factory=dict)
    _specs: dict[str, DeviceSpec] = field(default_factory=dict)

    # --- devices --------------------------------------------------------------------------------

    def start_fleet(self, specs: Sequence[DeviceSpec]) -> None:
        """Start supervised devices and return when all are ready."""
        self.site.start_devices(specs, self.task)
        self.wait_ready([spec.name for spec in specs])

    def start_own(self, specs: Sequence[DeviceSpec]) -> None:
        """Start devices that nobody restarts but the test; return when all are ready."""
        for spec in specs:
            self.prepare(spec).start()
        self.wait_ready([spec.name for spec in specs])

    def prepare(self, spec: DeviceSpec) -> Child:
        """Return the process of a device with an identity, not yet started."""
        folder = self.site.folder
        self.site.member(spec.name, spec.index, spec.count)
        child = device_process(
            spec,
            folder.identity_path(spec.name),
            folder.root / "devices" / spec.name,
            self.task,
            folder.root / "logs" / f"{spec.name}.log",
        )
        self.own[spec.name] = child
        self._specs[spec.name] = spec
        return child

    def wait_ready(self, names: Sequence[str]) -> None:
        with self.site.connect() as fresh:  # sees the retained states, not only news
            wait_for_devices(fresh, names, PATIENCE_S)

    def online(self) -> set[str]:
        """Return the devices that the server holds to be there."""
        rows = self.client.call("devices_ls", timeout_s=PATIENCE_S)["devices"]
        away = {"late", "lost", "offline", "enrolled", "revoked"}
        return {row["id"] for row in rows if row["status"] not in away}

    def wait_online(self, names: set[str]) -> None:
        wait_for(lambda: names <= self.online(), f"{names} are there", self.story)

    # --- processes ------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """Return the process id of the broker, the store, the server or a device."""
        services: dict[str, Any] = {
            "broker": self.site.broker,
            "store": self.site.store,
            **self.site.children,
            **self.own,
        }
        pid: int = services[name].pid
        return pid

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal; a process that is to be still is so on return."""
        if number == signal.SIGSTOP:
            hold_still(self.pid(name))
        else:
            os.kill(self.pid(name), number)

    def kill(self, name: str) -> None:
        """End a process by SIGKILL; return when the supervisor has it running again."""
        before = self.site.restarts(name)
        self.signal(name, signal.SIGKILL)
        wait_for(lambda: self.site.restarts(name) > before, f"{name} was started again")

    def training_child(self, name: str) -> psutil.Process | None:
        """Return the training process of a device, None when it has none."""
        for child in psutil.Process(self.pid(name)).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "fl_client.training" in child.cmdline():
                    return child
        return None

    def training_processes(self, names: Iterable[str]) -> int:
        """Return how many training processes these devices have started so far."""
        ready = re.compile(r"training process \d+ is ready")
        return sum(len(ready.findall(self.log(name))) for name in names)

    def kept_stages(self, name: str) -> set[str]:
        """Return the stages of the jobs that a device keeps on disk."""
        path = self.site.folder.root / "devices" / name / "jobs.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return {stage for (stage,) in journal.execute("SELECT stage FROM jobs")}

    def log(self, name: str) -> str:
        path = self.site.folder.root / "logs" / f"{name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # --- runs -----------------------------------------------------------------------------------

    def submit(self, values: dict[str, Any]) -> str:
        run_id = submit(self.client, self.task, values)
        self.runs.append(run_id)
        return run_id

    def facts(self, run_id: str) -> list[Fact]:
        """Return the run's facts as they stand on disk, whether the server lives or not."""
        path = self.site.folder.root / "server" / "journal.sqlite"
        query = "SELECT kind, body FROM rengo_facts WHERE run_id = ? ORDER BY number"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            rows = journal.execute(query, (run_id,)).fetchall()
        return [_ADAPTERS[kind].validate_json(body) for kind, body in rows]

    def of(self, run_id: str, kind: type[F], round_number: int | None = None) -> list[F]:
        """Return the facts of a kind, of one round where it is given."""
        found = [fact for fact in self.facts(run_id) if isinstance(fact, kind)]
        if round_number is None:
            return found
        return [fact for fact in found if getattr(fact, "round", None) == round_number]

    def wait_fact(
        self,
        run_id: str,
        kind: type[F],
        round_number: int | None = None,
        such: Callable[[F], bool] = lambda _: True,
    ) -> F:
        """Return the first fact of a kind, once it is journalled."""

        def look() -> F | None:
            facts = self.of(run_id, kind, round_number)
            return next((fact for fact in facts if such(fact)), None)

        return wait_for(look, f"{kind.__name__} of round {round_number} in {run_id}", self.story)

    def wait_accepted(self, run_id: str, names: set[str], round_number: int = 1) -> None:
        """Return when the round has counted the updates of all these."""

        def look() -> bool:
            accepted = self.of(run_id, UpdateAccepted, round_number)
            return names <= {fact.device_id for fact in accepted}

        wait_for(look, f"the updates of {names}", self.story)

    def finish(self, run_id: str, status: str = "completed") -> dict[str, Any]:
        """Return the run's report once it has ended so, and see that it left nothing behind."""

        def ended() -> bool:
            last = self.facts(run_id)[-1:]
            return bool(last) and isinstance(last[0], RunCompleted | RunStopped | RunFailed)

        # a run of many kills takes its time
        wait_for(ended, f"the end of {run_id}", self.story, 2.5 * PATIENCE_S)
        report = self.client.call("runs_show", {"run_id": run_id}, timeout_s=PATIENCE_S)
        assert report["status"] == status, report["reason"]
        self.assert_nothing_left(run_id)
        self.assert_model_is_stored(run_id, report)
        return report

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """Submit a run and return its report when it has ended."""
        return self.finish(self.submit(values))

    def included(self, run_id: str) -> dict[int, tuple[str, ...]]:
        """Return whom the committed attempt of each round included."""
        closed = {
            (fact.round, fact.attempt): fact.included for fact in self.of(run_id, RoundClosed)
        }
        committed = self.of(run_id, RoundCommitted)
        return {fact.round: closed[fact.round, fact.attempt] for fact in committed}

    def story(self) -> str:
        """Return what a person needs to understand a failure."""
        lines = [
            f"{run_id}: {fact!s:.150}"
            for run_id in self.runs[-1:]
            for fact in self.facts(run_id)[-20:]
        ]
        root = self.site.folder.root
        for log in [*sorted((root / "logs").glob("*.log")), root / "store" / "server.log"]:
            if log.exists():
                tail = log.read_text("utf-8", "replace").splitlines()[-6:]
                lines += [f"--- {log.name}", *(line[:300] for line in tail)]
        return "\n".join(lines)

    # --- moments of a mortal server ---------------------------------------------------------------

    def plan(self, moments: Sequence[Moment]) -> None:
        write_plan(self.site.plan, moments)

    def moments_left(self) -> list[Moment]:
        return read_plan(self.site.plan)

    # --- what is left behind ----------------------------------------------------------------------

    @property
    def store(self) -> S3Store:
        return S3Store(self.site.store.settings)

    def assert_model_is_stored(self, run_id: str, report: dict[str, Any]) -> None:
        digest = hashlib.sha256()
        with self.store.open(report["model_key"]) as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
        assert digest.hexdigest() == report["model_sha256"]

    def assert_nothing_left(self, run_id: str) -> None:
        """See that the bucket, the server and the devices keep nothing of a run but its versions.

        The sweeps and the last receipts come after the run's end, so this waits for them.
        """
        version = max((fact.model.version for fact in self.of(run_id, RoundCommitted)), default=0)
        keys = RunKeys("default", run_id)
        first = max(0, version - KEPT_VERSIONS + 1)
        retained = range(first, version + 1)
        store = self.store
        wait_for(
            lambda: not beside_in(store, keys, retained),
            f"{run_id} has only {list(retained)}",
            lambda: beside_in(store, keys, retained),
        )
        # the server removes the objects first
        wait_for(
            lambda: not list(store.uploads(keys.prefix)),
            f"{run_id} leaves no upload unfinished",
            lambda: f"there are {list(store.uploads(keys.prefix))}",
        )
        root = self.site.folder.root
        wait_for(
            lambda: not list(leftovers(root)),
            "no file is left of the run's work",
            lambda: f"there are {list(leftovers(root))}",
        )


def numpy_fleet() -> list[DeviceSpec]:
    """Return the demo's fleet with the numpy engine on every device: it starts faster."""
    return [replace(spec, engine="numpy") for spec in fleet(len(TRAINERS))]


def leftovers(root: Path) -> Iterator[Path]:
    """Yield files that a run's work makes and its end removes."""
    patterns = (
        "devices/*/updates/*",
        "devices/*/models/*.part",
        "devices/*/state/*.next",
        "devices/*/checkpoints/*",
        "server/work/*/*",
        "**/*.tmp",
    )
    for pattern in patterns:
        yield from root.glob(pattern)


T = TypeVar("T")


def wait_for(
    look: Callable[[], T | None],
    what: str,
    story: Callable[[], str] = lambda: "",
    patience_s: float = PATIENCE_S,
) -> T:
    """Return what ``look`` sees, once it is true; processes have no event that one could await."""
    deadline = time.monotonic() + patience_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}\n{story()}"
        time.sleep(_POLL_S)
    return found


@dataclass
class Gates:
    """Where devices that have trained wait for the test."""

    folder: Path

    def hold(self, *names: str) -> None:
        for name in names:
            (self.folder / name).touch()

    def release(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()
            reached(self.folder / name).unlink(missing_ok=True)

    def wait_reached(self, name: str) -> None:
        wait_for(reached(self.folder / name).exists, f"{name} has trained")

    def forget_reached(self, name: str) -> None:
        reached(self.folder / name).unlink()

    def open_all(self) -> None:
        for left in self.folder.iterdir():
            left.unlink()


class Opened:
    """Opens an arena and, when it closes, sees that no process, port or temporary file is left."""

    def __init__(
        self,
        folder: Path,
        task: str,
        *,
        mortal: bool = False,
        devices: int = 0,
        server: str = "",
        options: SiteOptions | None = None,
    ) -> None:
        self._folder = folder
        self._task = task
        self._site = ChaosSite(
            folder / "site", mortal=mortal, devices=devices, server=server, options=options
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Arena:
        site = self._stack.enter_context(self._site)
        client = self._stack.enter_context(site.connect())
        self.arena = Arena(site, client, self._task)
        return self.arena

    def __exit__(self, *_: object) -> None:
        for child in self.arena.own.values():
            child.signal(signal.SIGCONT)
            child.stop()
        children = family()
        record = self._site.record
        self._stack.close()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, f"still running: {alive}"
        for port in (record.broker_port, record.store_port):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still answers"
        left = list(leftovers(self._folder / "site"))
        assert not left, f"files left: {left}"


def honest_rounds(arena: Arena, run_id: str, cohort: set[str]) -> None:
    """See that every round was started, closed and committed once, in order, by whole cohorts."""
    committed = [fact.round for fact in arena.of(run_id, RoundCommitted)]
    assert committed == list(range(1, len(committed) + 1))
    for number in committed:
        assert len(arena.of(run_id, RoundStarted, number)) == 1
        assert len(arena.of(run_id, RoundClosed, number)) == 1
        accepted = [fact.device_id for fact in arena.of(run_id, UpdateAccepted, number)]
        assert sorted(accepted) == sorted(cohort), "each update counts once"
