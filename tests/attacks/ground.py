"""A whole site under attack: its agents, and what the server, the operator and the victims see.

Nobody here has a right that the product does not give: the eyes are those of the server, of the
operator and of the victims themselves, and the untrusted broker speaks by the server's own user.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import urllib3

from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.topics import Topics
from rengo.operator.runs import submit
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.site import Site
from runtime.processes.child import Child
from runtime.security.identity import Identity, read_identity
from storage.store.s3 import S3Store
from storage.weights import Vector
from tests.attacks.intruders import LEAVES, PATIENCE_S, Inject, Intruder, Kind, pause, weights_of
from tests.chaos.gated import reached
from tests.integration.broker_fixtures import Owner, eventually
from tests.support import hold_still

GATED_TASK = f"{Path(__file__).parents[1] / 'chaos' / 'gated.py'}:GatedDigits"


class Eyes:
    """Hears all that its endpoints may hear; nothing is taken away from anybody."""

    def __init__(self, *views: tuple[Identity, Sequence[str]]) -> None:
        self._owners: list[Owner] = []
        self._sessions: list[MqttSession] = []
        for identity, filters in views:
            owner = Owner()
            endpoint = replace(
                Endpoint.of(identity), client_id=f"eyes-{os.urandom(6).hex()}", persistent=False
            )
            owner.session = MqttSession(endpoint, filters, owner)
            self._owners.append(owner)
            self._sessions.append(owner.session)

    def __enter__(self) -> Self:
        for session in self._sessions:
            session.start()
        for session in self._sessions:
            session.wait_connected(10)
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.stop()

    @property
    def deliveries(self) -> list[Delivery]:
        return [each for owner in self._owners for each in owner.deliveries]

    def on(self, topic: str) -> list[bytes]:
        """Return what came on a topic, clearings left out."""
        return [each.payload for each in self.deliveries if each.topic == topic and each.payload]

    @property
    def payloads(self) -> set[bytes]:
        return {each.payload for each in self.deliveries}

    def wait(self, payload: bytes) -> None:
        eventually(lambda: payload in self.payloads)


@dataclass
class Agent:
    """The real agent of a device, as a process of its own that nobody restarts but the test."""

    child: Child
    identity: Path
    folder: Path

    @property
    def log(self) -> str:
        return self.child.log.read_text("utf-8", "replace") if self.child.log.exists() else ""

    def refusals(self, topic: str, why: str) -> int:
        """Return how many messages on a topic the agent has refused for a reason."""
        return sum(
            f"refused a message on {topic}" in line and why in line for line in self.log.split("\n")
        )

    @property
    def stages(self) -> list[str]:
        """The stages of the jobs that it keeps on disk."""
        path = self.folder / "jobs.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return [stage for (stage,) in journal.execute("SELECT stage FROM jobs")]

    @property
    def training_processes(self) -> int:
        """How many training processes it has started."""
        return len(re.findall(r"training process \d+ is ready", self.log))


@dataclass
class Ground:
    """A running site and everything that a test asks of it."""

    kind: Kind
    site: Site
    gates: Path
    agents: dict[str, Agent] = field(default_factory=dict)

    # --- who there is -------------------------------------------------------------------------

    @property
    def topics(self) -> Topics:
        return Topics(self.site.record.domain)

    @property
    def server(self) -> Identity:
        return read_identity(self.site.folder.identity_path("server"))

    def device(self, name: str) -> Identity:
        """Return the identity of an admitted device, admitted now if it was not."""
        folder = self.site.folder
        known = folder.identity_path(name).exists()
        identity = folder.ensure_identity("device", name, self.site.at)
        if not known:
            self.site.admit([identity])
        return identity

    def intruder(self, name: str = "mallory", **options: Any) -> Intruder:
        return Intruder(self.kind, self.device(name), **options)

    @property
    def author(self) -> MessageSigner:
        """The server's own hand, for what a test has it say."""
        return MessageSigner("server", self.server.secret_key)

    @contextlib.contextmanager
    def untrusted_broker(self) -> Iterator[Inject]:
        """What an untrusted broker can do: bring any bytes to the topics of the server's user."""
        identity = self.server
        endpoint = replace(
            Endpoint.of(identity), client_id=f"broker-{os.urandom(6).hex()}", persistent=False
        )
        session = MqttSession(endpoint, (), lambda _: True)
        session.start()
        session.wait_connected(10)

        def inject(topic: str, payload: bytes, *, retain: bool = False) -> None:
            assert session.publish(Publication(topic, payload, retain=retain))
            assert session.flush(10)

        try:
            yield inject
        finally:
            session.stop()

    def eyes(self, *victims: str) -> Eyes:
        """Return the eyes of the server, the operator and the victims together."""
        topics, server = self.topics, self.server
        device = [topics.device("+", leaf) for leaf in LEAVES]
        views: list[tuple[Identity, Sequence[str]]] = [
            (
                server,
                [
                    *device,
                    topics.server_state,
                    topics.run("+", "state"),
                    topics.operator("+", "request"),
                    topics.enroll("+"),
                ],
            ),
            (
                self.site.operator,
                [topics.run("+", "events"), topics.operator("operator", "reply")],
            ),
        ]
        for name in victims:
            own = [topics.device(name, leaf) for leaf in ("task", "receipt")]
            views.append((self.device(name), own))
        return Eyes(*views)

    # --- what the server knows ----------------------------------------------------------------

    def call(self, operation: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        with self.site.connect() as client:
            return client.call(operation, arguments, timeout_s=PATIENCE_S)

    @property
    def refused(self) -> Counter[str]:
        return Counter(self.call("server_info")["refused_messages"])

    @property
    def epoch(self) -> int:
        """Grows with each start of the server, whose counts begin anew with it."""
        return int(self.call("server_info")["epoch"])

    @contextlib.contextmanager
    def counting(self, **expected: int) -> Iterator[None]:
        """See that the server refuses exactly so many messages more, by reason.

        Refused connections are told some seconds later, so that they are left out.
        """
        # what an attack before this one has left to refuse is not this one's
        before, epoch, wanted = self.settle(), self.epoch, Counter(expected)

        def more() -> Counter[str]:
            found = self.refused - before
            del found["connection"]
            return found

        yield
        with contextlib.suppress(AssertionError):
            eventually(lambda: more() == wanted, 15)
        found = more()
        assert self.epoch == epoch, "the server was started again in between, and counts anew"
        assert found == wanted, f"refused {found} instead of {wanted}"

    def settle(self) -> Counter[str]:
        """Return what the server has refused, when it has refused what there was to refuse."""
        before = self.refused
        while True:
            pause(0.5)
            if (now := self.refused) == before:
                return now
            before = now

    def row(self, device_id: str) -> dict[str, Any]:
        """Return the server's row of a device."""
        with self.site.connect() as client:
            return next(row.document() for row in client.devices() if row.id == device_id)

    def audit(self, **wanted: str) -> list[dict[str, Any]]:
        """Return the entries that have these values, the latest first."""
        entries = self.call("audit_ls")["entries"]
        return [each for each in entries if wanted.items() <= each.items()]

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """See that the broker, the store and the server are the same processes and answer."""
        before = self.pids
        yield
        assert self.call("server_info")["domain"] == self.site.record.domain
        assert self.pids == before

    @property
    def pids(self) -> tuple[int, int, int]:
        site = self.site
        return site.broker.pid, site.store.pid, site.children["server"].pid

    @contextlib.contextmanager
    def stopped(self, *pids: int) -> Iterator[None]:
        """Hold processes still within the block."""
        for pid in pids:
            hold_still(pid)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    @property
    def store(self) -> S3Store:
        return S3Store(self.site.store.settings)

    # --- agents and runs ----------------------------------------------------------------------

    def agent(self, name: str, task: str = GATED_TASK) -> Agent:
        """Return the only agent that runs, started now if it does not."""
        self.device(name)
        for other, running in self.agents.items():
            if other != name and running.child.running:
                running.child.stop()
                self.wait_status(other, "offline")
        if name not in self.agents:
            root = self.site.folder.root
            identity, folder = self.site.folder.identity_path(name), root / "devices" / name
            child = device_process(
                DeviceSpec(name, engine="numpy"), identity, folder, task, root / f"{name}.log"
            )
            self.agents[name] = Agent(child, identity, folder)
        agent = self.agents[name]
        if not agent.child.running:
            agent.child.start()
            self.wait_status(name, "ready")
        return agent

    def wait_status(self, name: str, *status: str) -> None:
        eventually(lambda: self.row(name)["status"] in status, PATIENCE_S)

    def submit(self, task: str, size: int, *, rounds: int = 1, quorum: int = 0) -> str:
        values = {
            "rounds": rounds,
            "cohort": {
                "size": size,
                "quorum": quorum or size,
                "deadline_s": 120.0,
                "gather_s": 60.0,
            },
            "evaluation": {"on": "none"},
        }
        with self.site.connect() as client:
            return submit(client, task, values)

    def final(self, run_id: str) -> Vector:
        """Return the model of a run that has ended."""
        self.finish(run_id)
        url = self.call("models_url", {"name": run_id})["url"]
        with urllib3.PoolManager(retries=False) as pool:
            return weights_of(pool.request("GET", url).data).vector

    def finish(self, run_id: str, status: str = "completed") -> dict[str, Any]:
        """Return the run's report when it has ended so."""

        def ended() -> bool:
            return self.call("runs_show", {"run_id": run_id})["status"] not in {
                *("waiting", "running", "paused"),
            }

        eventually(ended, PATIENCE_S)
        report = self.call("runs_show", {"run_id": run_id})
        assert report["status"] == status, report["reason"]
        return report

    def hold(self, name: str) -> None:
        """Let a device wait, once it has trained, for :meth:`release`."""
        (self.gates / name).touch()

    def wait_held(self, name: str) -> None:
        eventually(reached(self.gates / name).exists, PATIENCE_S)

    def release(self, name: str) -> None:
        (self.gates / name).unlink()
        reached(self.gates / name).unlink(missing_ok=True)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.child.stop()


def secrets_of(path: Path) -> dict[str, Any]:
    """Return an identity file as it stands."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document
