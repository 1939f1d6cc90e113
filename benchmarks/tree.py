"""What a tree costs: the same devices below one server, and below domains that sum up for it.

    python -m benchmarks.tree [--domains 4] [--edges 25] [--rounds 3] [--json FILE]

Real sites: brokers, stores, servers and domains are processes of their own. Devices are scripted
within this process: they fetch the model, send an update of its size with values that follow from
their name and the round, and report; they train nothing, so that what is measured is the way of the
updates. Both runs have the same updates, and the models of both must be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import queue
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from benchmarks.processes import peak_rss_bytes
from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import DeviceState, Order, Result, UpdateRef, Usage, decode
from broker.wire.topics import Topics, parse
from fl_server.rounds.facts import UpdateAccepted
from rengo.operator.runs import submit
from runtime.security.identity import Identity, new_identity
from storage.updates.stream import write_update
from storage.weights import Layout, read_safetensors
from tests.chaos.arena import wait_for
from tests.chaos.trees import Node, RunningTree
from tests.updates import info_of

TASK = "mnist"
_WORKERS = 4
_SPREAD = 1e-3


@dataclass(frozen=True)
class Measured:
    """What one run cost. Times are medians of its rounds, sizes of update files and of processes.

    Attributes:
        root_bytes_per_round: of the updates that the platform took.
        round_s: of the platform's rounds.
        domain_s: of the domains' rounds, within the platform's; 0 where there are none.
        root_peak_bytes: the highest memory of the platform's server.
        domain_peak_bytes: that of the server of the domain that had most.
    """

    shape: str
    devices: int
    root_bytes_per_round: int
    round_s: float
    domain_s: float
    root_peak_bytes: int
    domain_peak_bytes: int
    model_sha256: str


class EdgeFleet:
    """Scripted devices that share a few threads for their transfers."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Edge, object] | None] = queue.SimpleQueue()
        self._http = urllib3.PoolManager(maxsize=2 * _WORKERS)
        self._layouts: dict[str, Layout] = {}
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(_WORKERS)]
        self._edges: list[Edge] = []
        for thread in self._threads:
            thread.start()

    def add(self, node: Node, names: list[str]) -> None:
        """Admit devices to a site and connect them."""
        at, operator = node.site.at, node.site.operator
        identities = [
            new_identity("device", at.domain, name, at.host, at.port, server_key=operator.believed)
            for name in names
        ]
        node.site.admit(identities)
        self._edges += [Edge(each, self._work) for each in identities]

    def close(self) -> None:
        """Disconnect every device and end the threads."""
        for edge in self._edges:
            edge.session.stop()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            edge, event = item
            if isinstance(event, Delivery):
                order = edge.take(event)
                if order is not None:
                    edge.answer(order, *self._carry_out(order, edge.identity.id))

    def _carry_out(self, order: Order, name: str) -> tuple[UpdateRef, Usage]:
        """Fetch the model and upload an update; return what is reported of it."""
        assert order.upload is not None
        assert order.model is not None
        model: bytes = self._http.request("GET", order.model.url).data
        layout = self._layout(order.model.sha256, model)
        rng = np.random.default_rng(list(f"{name}/{order.round}".encode()))
        vector = rng.normal(0, _SPREAD, layout.size).astype(np.float32)
        out = io.BytesIO()
        examples = _examples(name, order.round)
        written = write_update(out, info_of(order, name, layout, examples), vector)
        answer = self._http.request("PUT", order.upload.url, body=out.getvalue())
        if answer.status != 200:
            raise RuntimeError(f"{name}: the store answers {answer.status}")
        update = UpdateRef(
            key=order.upload.key,
            size_bytes=written.size_bytes,
            header_sha256=written.header_sha256,
        )
        return update, Usage(bytes_up=written.size_bytes, bytes_down=len(model))

    def _layout(self, sha256: str, model: bytes) -> Layout:
        with self._lock:
            if sha256 not in self._layouts:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "model"
                    path.write_bytes(model)
                    self._layouts[sha256] = read_safetensors(path).layout
            return self._layouts[sha256]


class Edge:
    """One device's connection."""

    def __init__(
        self, identity: Identity, work: queue.SimpleQueue[tuple[Edge, object] | None]
    ) -> None:
        self.identity = identity
        self._topics = Topics(identity.domain)
        self._author = MessageSigner(identity.id, identity.secret_key)
        # None while the answer is being made
        self._answered: dict[tuple[str, int, int], Result | None] = {}
        self._lock = threading.Lock()
        own = [self._topics.device(identity.id, leaf) for leaf in ("task", "receipt")]

        def offer(event: object) -> bool:
            work.put((self, event))
            return True

        self.session = MqttSession(Endpoint.of(identity), own, offer)
        self.session.start()
        self.session.wait_connected(60.0)
        state = {"status": "ready", "boot_id": "scripted", "tasks": [TASK]}
        topic = self._topics.device(identity.id, "state")
        message = DeviceState.model_validate(state)
        self.session.publish(self._author.sign(topic, message, retain=True))

    def take(self, delivery: Delivery) -> Order | None:
        """Return the order of a message that is one to train, once."""
        self.session.ack(delivery)
        _, message = decode(delivery.payload, parse(delivery.topic), self.identity.believed)
        if not isinstance(message, Order) or message.action != "train":
            return None
        key = (message.run_id, message.round, message.attempt)
        with self._lock:
            is_new = key not in self._answered
            known = self._answered.setdefault(key, None)
        if known is not None:
            self._say(known)
        return message if is_new else None

    def answer(self, order: Order, update: UpdateRef, usage: Usage) -> None:
        """Report what was uploaded."""
        result = Result(
            action="train",
            run_id=order.run_id,
            round=order.round,
            attempt=order.attempt,
            num_examples=_examples(self.identity.id, order.round),
            metrics={},
            update=update,
            usage=usage,
        )
        self._answered[(order.run_id, order.round, order.attempt)] = result
        self._say(result)

    def _say(self, result: Result) -> None:
        topic = self._topics.device(self.identity.id, "result")
        self.session.publish(self._author.sign(topic, result))


def _examples(name: str, number: int) -> int:
    return 1 + hashlib.sha256(f"{name}/{number}".encode()).digest()[0]


@contextmanager
def _shaped(folder: Path, domains: int, edges: int) -> Iterator[tuple[RunningTree, list[Node]]]:
    """Give a platform with all its devices, in domains or none, when all of them are ready."""
    with ExitStack() as stack:
        tree = stack.enter_context(RunningTree(folder, TASK))
        fleet = EdgeFleet()
        stack.callback(fleet.close)
        names = [f"d-{number:03}" for number in range(max(1, domains) * edges)]
        nodes = []
        for index in range(domains):
            node = tree.add_domain(f"domain-{index}", tree.platform)
            fleet.add(node, names[index * edges : (index + 1) * edges])
            nodes.append(node)
        if not domains:
            fleet.add(tree.platform, names)
        for node in nodes or [tree.platform]:
            _wait_for_devices(node, edges)
        tree.wait_ready(tree.platform, *(node.name for node in nodes))
        yield tree, nodes


def _wait_for_devices(node: Node, count: int) -> None:
    wait_for(lambda: len(node.online()) >= count, f"{node.name} has its devices")


def measure(folder: Path, domains: int, edges: int, rounds: int) -> Measured:
    """Return what a run cost with so many devices in each of so many domains; 0 is flat."""
    with _shaped(folder, domains, edges) as (tree, nodes):
        cohort = domains or edges
        section = {"size": cohort, "quorum": cohort, "deadline_s": 300.0, "gather_s": 30.0}
        definition = {"rounds": rounds, "cohort": section, "evaluation": {"on": "none"}}
        run_id = submit(tree.platform.client, TASK, definition)
        shown = tree.finished(run_id)
        sizes = [
            fact.update.size_bytes
            for fact in tree.platform.facts(run_id)
            if isinstance(fact, UpdateAccepted)
        ]
        below = [node.client.call("runs_show", {"run_id": run_id}) for node in nodes]
        return Measured(
            f"{domains} x {edges}" if domains else "flat",
            max(1, domains) * edges,
            sum(sizes) // rounds,
            statistics.median(shown["round_s"]),
            max((statistics.median(_seconds(each)) for each in below), default=0.0),
            _peak(tree.platform),
            max((_peak(node) for node in nodes), default=0),
            shown["model_sha256"],
        )


def _seconds(report: Mapping[str, Any]) -> list[float]:
    return [row["seconds"] for row in report["history"] if row["outcome"] == "committed"]


def _peak(node: Node) -> int:
    pid = node.site.children["server"].pid
    assert pid is not None
    return peak_rss_bytes(pid)


def table(flat: Measured, tree: Measured) -> list[str]:
    """Return the comparison in lines."""
    heads = ["", flat.shape, tree.shape]
    rows = [
        ("devices", str(flat.devices), str(tree.devices)),
        (
            "bytes into the root a round",
            _mb(flat.root_bytes_per_round),
            _mb(tree.root_bytes_per_round),
        ),
        ("a round at the root", f"{flat.round_s:.2f} s", f"{tree.round_s:.2f} s"),
        ("of it in the domains", "-", f"{tree.domain_s:.2f} s"),
        ("peak memory of the root's server", _mb(flat.root_peak_bytes), _mb(tree.root_peak_bytes)),
        ("peak memory of a domain's server", "-", _mb(tree.domain_peak_bytes)),
    ]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * 3, *rows)]


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def main() -> int:
    """Measure both and print them; 1 where the tree's model is not the flat one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--edges", type=int, default=25, help="devices in each domain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rengo-tree-") as folder:
        devices = options.domains * options.edges
        flat = measure(Path(folder) / "flat", 0, devices, options.rounds)
        tree = measure(Path(folder) / "tree", options.domains, options.edges, options.rounds)
    print("\n".join(table(flat, tree)))
    same = flat.model_sha256 == tree.model_sha256
    fewer = 1 - tree.root_bytes_per_round / flat.root_bytes_per_round
    verdict = "the same" if same else "NOT the same"
    print(f"{100 * fewer:.1f} % fewer bytes into the root; the models are {verdict}")
    if options.json:
        found = {"flat": asdict(flat), "tree": asdict(tree), "same_model": same}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
