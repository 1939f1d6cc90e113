"""Trees of real processes: sites that are domains of each other, with devices below them."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from broker.wire.messages import DeviceInfo
from fl_client.identity.enrolment import enroll
from fl_client.tasks.digits import Digits
from fl_server.operations.catalogue import DEVICES_INVITE
from fl_server.rounds.facts import FACTS, Fact, RoundClosed, RoundCommitted
from rengo.operator.client import OperatorClient
from rengo.operator.progress import DeviceTable
from rengo.operator.runs import submit
from rengo.site.device_process import DeviceSpec
from rengo.site.preparation import SiteOptions
from runtime.broker_url import BrokerPlace, parse_url
from runtime.security.join_token import JoinToken
from tests.chaos.arena import PATIENCE_S, ChaosSite, wait_for
from tests.in_process import InProcessRun
from tests.proxy import Fault, Proxy

_ADAPTERS = {name: TypeAdapter(kind) for name, kind in FACTS.items()}
_QUERY = "SELECT kind, body FROM rengo_facts WHERE run_id = ? ORDER BY number"
QUICK = {"deadline_s": 60.0, "gather_s": 3.0}


@dataclass
class Node:
    """A site of the tree: the platform, or a domain."""

    name: str
    site: ChaosSite
    client: OperatorClient
    edges: list[str] = field(default_factory=list)

    def online(self) -> dict[str, str]:
        """Return the devices that are there, with what they say."""
        rows = self.client.call("devices_ls", timeout_s=PATIENCE_S)["devices"]
        away = {"late", "lost", "offline", "enrolled", "revoked"}
        return {row["id"]: row["status"] for row in rows if row["status"] not in away}

    def facts(self, run_id: str) -> list[Fact]:
        """Return the run's facts as they stand on this site's disk."""
        path = self.site.folder.root / "server" / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            rows = journal.execute(_QUERY, (run_id,)).fetchall()
        return [_ADAPTERS[kind].validate_json(body) for kind, body in rows]

    def has(self, run_id: str, kind: type[Any], **fields: Any) -> bool:
        """Whether a fact with such fields is journalled here."""
        return any(
            isinstance(fact, kind) and fields.items() <= vars(fact).items()
            for fact in self.facts(run_id)
        )

    def log(self, name: str) -> str:
        path = self.site.folder.root / "logs" / f"{name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def kill(self, name: str = "server") -> None:
        """End a process by SIGKILL; return when the supervisor has it running again."""
        before = self.site.restarts(name)
        services: dict[str, Any] = {"broker": self.site.broker, "store": self.site.store}
        pid = (services | self.site.children)[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.site.restarts(name) > before, f"{name} was started again")


class RunningTree:
    """Use as a context manager: the platform is up, domains and devices are added."""

    def __init__(self, folder: Path, task: str = "digits") -> None:
        self.folder, self.task = folder, task
        self._stack = ExitStack()
        self.nodes: dict[str, Node] = {}
        self.devices = 0

    def __enter__(self) -> Self:
        self._stack.__enter__()
        self.platform = self._start("platform", SiteOptions(domain="platform"))
        return self

    def __exit__(self, *about: object) -> None:
        self._stack.__exit__(*about)  # type: ignore[arg-type]

    def _start(self, name: str, options: SiteOptions) -> Node:
        site = ChaosSite(self.folder / name, mortal=False, options=options)
        self._stack.enter_context(site)
        client = self._stack.enter_context(site.connect())
        self.nodes[name] = Node(name, site, client)
        return self.nodes[name]

    def add_domain(
        self,
        name: str,
        parent: Node,
        place: Callable[[BrokerPlace], BrokerPlace] = lambda place: place,
        **section: Any,
    ) -> Node:
        """Enrol a domain and start it.

        Args:
            place: how it reaches its parent's broker.
            section: further settings of what it is below its parent.
        """
        wanted = {"group": "", "project": "default", "uses": 1, "lifetime_s": 300.0}
        made = parent.client.request(DEVICES_INVITE, wanted)
        home = self.folder / name / "parent"
        home.mkdir(parents=True, mode=0o700)
        home.parent.chmod(0o700)
        at = place(parse_url(made.url))
        path = enroll(at, JoinToken.parse(made.token), home, name).path
        section = {
            "identity": str(path),
            "data_dir": str(home / "agent"),
            "cohort": {"gather_s": 3.0},
            **section,
        }
        return self._start(name, SiteOptions(domain=name, parent=section))

    def add_edges(self, node: Node, indices: Sequence[int], count: int) -> None:
        """Start devices, named as those of ``expected``, and wait until they are there."""
        specs = [
            DeviceSpec(f"d-{index}", engine="numpy", index=index, count=count) for index in indices
        ]
        node.site.start_devices(specs, self.task)
        node.edges += [spec.name for spec in specs]
        names = {spec.name for spec in specs}
        wait_for(lambda: names <= node.online().keys(), f"{names} are there", self.story)

    def wait_ready(self, node: Node, *names: str) -> None:
        """Return when devices or domains take orders of a site."""

        def ready() -> bool:
            online = node.online()
            return all(online.get(name) == "ready" for name in names)

        wait_for(ready, f"{names} are ready at {node.name}", self.story)

    def submit(self, cohort: int | dict[str, Any], rounds: int, **values: Any) -> str:
        if isinstance(cohort, int):
            cohort = {"size": cohort, "quorum": cohort, **QUICK}
        definition = {
            "rounds": rounds,
            "cohort": cohort,
            "evaluation": {"on": "devices"},
            **values,
        }
        return submit(self.platform.client, self.task, definition)

    def finished(self, run_id: str, status: str = "completed") -> dict[str, Any]:
        """Return the run's report when it has ended."""

        def shown() -> dict[str, Any]:
            return self.platform.client.call("runs_show", {"run_id": run_id}, timeout_s=PATIENCE_S)

        ends = {"completed", "stopped", "failed"}
        wait_for(lambda: shown()["status"] in ends, f"the end of {run_id}", self.story, 150.0)
        found = shown()
        assert found["status"] == status, (found["reason"], self.story())
        return found

    def story(self) -> str:
        """Return what a person needs to understand a failure."""
        lines = []
        for node in self.nodes.values():
            for name in ("server", *node.edges):
                tail = node.log(name).splitlines()[-8:]
                lines += [f"--- {node.name}/{name}", *(line[:300] for line in tail)]
        return "\n".join(lines)


def expected(
    folder: Path, devices: int, rounds: int, algorithm: str = "fedavg", **settings: Any
) -> list[str]:
    """Return the sha256 of each version of a flat run with the same devices."""
    folder.mkdir(exist_ok=True)
    run = InProcessRun(folder, Digits(), algorithm, settings, engines=("numpy",) * devices)
    for _ in range(rounds):
        run.round()
    return [model.sha256 for model in run.models]


def took_part(tree: RunningTree, node: Node, run_id: str, number: int) -> list[int]:
    """Return the devices whose updates are in a round of a site, by its journal and those below."""
    closed = {
        (fact.round, fact.attempt): fact.included
        for fact in node.facts(run_id)
        if isinstance(fact, RoundClosed)
    }
    committed = [
        fact
        for fact in node.facts(run_id)
        if isinstance(fact, RoundCommitted) and fact.round == number
    ]
    found: list[int] = []
    for name in closed[number, committed[-1].attempt]:
        if name in tree.nodes:
            found += took_part(tree, tree.nodes[name], run_id, number)
        else:
            found.append(int(name.removeprefix("d-")))
    return sorted(found)


def assert_as_flat(
    tree: RunningTree, run_id: str, folder: Path, devices: int, rounds: int
) -> list[list[int]]:
    """See that the model is that of a flat run whose rounds had the same devices; return them."""
    folder.mkdir(exist_ok=True)
    run = InProcessRun(folder, Digits(), "fedavg", engines=("numpy",) * devices)
    parts = [took_part(tree, tree.platform, run_id, number + 1) for number in range(rounds)]
    for each in parts:
        run.round(each)
    shown = tree.platform.client.call("runs_show", {"run_id": run_id}, timeout_s=PATIENCE_S)
    assert shown["model_sha256"] == run.models[-1].sha256, parts
    return parts


class Link:
    """A way to a broker that can be cut and mended; use it as a context manager."""

    def __init__(self, place: BrokerPlace) -> None:
        self._proxy = Proxy(f"http://{place.host}:{place.port}")

    def __enter__(self) -> Self:
        self._proxy.__enter__()
        self.place = BrokerPlace("127.0.0.1", urlsplit(self._proxy.url).port or 0, tls=False)
        return self

    def __exit__(self, *about: object) -> None:
        self._proxy.__exit__(*about)

    def cut(self) -> None:
        """Break all connections, and every new one at once."""
        self._proxy.always = Fault(cut_up=0, cut_down=0)
        self._proxy.reset_all()

    def mend(self) -> None:
        """Let new connections through."""
        self._proxy.always = Fault()


def info_of(node: Node, device_id: str) -> DeviceInfo | None:
    """Return what a device of a site says of itself, None where it has said nothing yet."""
    table = DeviceTable()
    with node.site.connect() as client:  # a new connection gets what is retained
        for news in client.news(2.0):
            table.apply(news)
            if device_id in table.infos:
                return table.infos[device_id]
    return None
