"""An agent in memory: its session, worker and transfers need no broker, store or process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.session.endpoint import Endpoint
from broker.session.outbox import Outbox
from broker.session.publication import Delivery, Publication
from broker.wire.messages import (
    Message,
    Order,
    Receipt,
    Result,
    decode,
    encode,
)
from broker.wire.topics import Topics, parse
from fl_client.agent.agent import Agent
from fl_client.agent.build import build_parts
from fl_client.agent.parts import AgentParts, Inbox
from fl_client.agent.resource_policy import Unbounded
from fl_client.agent.status.server import StatusServer
from fl_client.jobs.transfer import TransferCost
from fl_client.session.events import (
    Job,
    JobFailed,
    JobKey,
    JobOutcome,
    ModelFetched,
    UpdateUploaded,
)
from fl_client.session.events import WorkFinished as Finished
from fl_client.settings import AgentSettings
from fl_client.training.child import ChildProgressed
from runtime.security.identity import new_identity
from runtime.security.signing import SecretKey
from tests.messages import SAMPLES

SERVER = SecretKey("5e" * 32)
IDENTITY = new_identity("device", "home", "d-1", "127.0.0.1", 1, server_key=SERVER.public)
TOPICS = Topics("home")


class MemorySession:
    """Keeps what is published; a durable message stays until it is confirmed."""

    def __init__(self, outbox: Outbox) -> None:
        self.endpoint = Endpoint.of(IDENTITY)
        self.published: list[Message] = []
        self.acked: list[Delivery] = []
        self.running = False
        self._outbox = outbox

    def set_endpoint(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def start(self) -> None:
        self.running = True

    def stop(self, farewell: Publication | None = None) -> None:
        if farewell is not None:
            self.publish(farewell)
        self.running = False

    def publish(self, publication: Publication) -> bool:
        self.published.append(self._read(publication.topic, publication.payload))
        return True

    def publish_durably(self, key: str, topic: str, payload: bytes, *, until: Any) -> None:
        self._outbox.put(key, topic, payload, until=until)

    def confirm(self, key: str) -> bool:
        return self._outbox.confirm(key)

    def ack(self, delivery: Delivery) -> None:
        self.acked.append(delivery)

    def waiting(self) -> list[Message]:
        return [self._read(row.topic, row.payload) for row in self._outbox.pending()]

    @staticmethod
    def _read(topic: str, payload: bytes) -> Message:
        return decode(payload, parse(topic), IDENTITY.secret_key.public)[1]


class MemoryTransfers:
    """Everything is there at once."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.calls: list[tuple[str, object]] = []

    def fetch(self, job: Job) -> None:
        self.calls.append(("fetch", job.key))
        self._inbox.put(ModelFetched(job.key))

    def upload(self, job: Job) -> None:
        self.calls.append(("upload", job.key))
        self._inbox.put(UpdateUploaded(job.key))

    def renew(self, job: Job) -> None:
        self.calls.append(("renew", job.key))

    def cancel(self, key: JobKey) -> None:
        self.calls.append(("cancel", key))

    def cost(self, key: JobKey) -> TransferCost | None:
        return TransferCost(10, 20, 0.5)

    def forget(self, key: JobKey) -> None:
        self.calls.append(("forget", key))

    def remove_models(self, run_id: str) -> None:
        self.calls.append(("remove_models", run_id))

    def cancel_all(self) -> None:
        self.calls.append(("cancel_all", None))

    def stop(self) -> None:
        self.calls.append(("stop", None))


class MemoryWorker:
    """Gives what it is told to give, and says what it was given."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.jobs: list[Job] = []
        self.ended: list[str] = []
        self.child_pids: list[int] = []
        self.gives: JobOutcome | str = JobOutcome(
            10, {"loss": 0.5}, header_sha256="a" * 64, size_bytes=7
        )

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        if isinstance(self.gives, str):
            self._inbox.put(JobFailed(job.key, self.gives))
        else:
            self._inbox.put(Finished(job.key, self.gives))

    def cancel(self) -> None:
        self.ended.append("cancelled")

    def end_run(self, run_id: str) -> None:
        self.ended.append(run_id)

    def close(self, why: str) -> None:
        self.ended.append(why)

    def end_idle(self) -> None:
        self.ended.append("idle")

    def idle_left_s(self) -> float | None:
        return None

    def translate(self, event: object) -> Any:
        """Progress is an event of its own, as a real worker has some."""
        return event if isinstance(event, ChildProgressed) else None


class Bench:
    """An agent on this thread, which runs until it has nothing left to do."""

    def __init__(self, folder: Path, task: str = "digits", *, real_worker: bool = False) -> None:
        settings = AgentSettings(
            identity=folder / "id", data_dir=folder / "data", engine="numpy", tasks=[task]
        )
        real = build_parts(settings, IDENTITY, StatusServer(), Unbounded())
        self.session = MemorySession(real.outbox)
        self.worker = MemoryWorker(real.inbox)
        self.transfers = MemoryTransfers(real.inbox)
        self.parts: AgentParts = replace(
            real,
            session=self.session,
            worker=real.worker if real_worker else self.worker,
            transfers=self.transfers,
        )
        self.agent = Agent(self.parts)
        self._seq = 0

    def run(self, *messages: Message, retained: bool = False) -> list[Message]:
        """Give messages of the server to the agent; return what it published."""
        before = len(self.session.published)
        for message in messages:
            self.parts.inbox.put(self._delivery(message, retained=retained))
        self.agent.run_until_idle()
        return self.session.published[before:]

    def _delivery(self, message: Message, *, retained: bool) -> Delivery:
        self._seq += 1
        topic = {
            "order": TOPICS.device("d-1", "task"),
            "receipt": TOPICS.device("d-1", "receipt"),
            "server_state": TOPICS.server_state,
            "identity_notice": TOPICS.device("d-1", "task"),
            "run_document": TOPICS.run(getattr(message, "run_id", "r"), "state"),
        }[message.kind]
        payload = encode(
            message, parse(topic), SERVER, sender="server", boot_id="b", seq=self._seq, sent_ms=1
        )
        return Delivery(topic, payload, retained, self._seq, 1)


def order(**changes: Any) -> Order:
    found = SAMPLES["order"]
    assert isinstance(found, Order)
    return found.model_copy(update=changes)


def receipt_of(result: Message, **changes: Any) -> Receipt:
    assert isinstance(result, Result)
    names = ("action", "run_id", "round", "attempt", "phase", "seq")
    same = {name: getattr(result, name) for name in names}
    return Receipt(**{**same, "status": "accepted", **changes})
