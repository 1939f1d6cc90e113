"""An agent with an in-memory session, worker and transfers: no broker, no store, no process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.session.endpoint import Endpoint
from broker.session.inbox import Connected
from broker.session.outbox import Outbox
from broker.session.publication import Delivery, Publication
from broker.wire.messages import (
    Decline,
    DeviceState,
    Message,
    Order,
    Receipt,
    Result,
    RunDocument,
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
from fl_client.session.events import Job, JobFailed, JobKey, ModelFetched, Outcome, UpdateUploaded
from fl_client.session.events import WorkFinished as Finished
from fl_client.settings import AgentSettings
from fl_client.training.child import ChildProgressed
from runtime.security.identity import new_identity
from runtime.security.signing import SecretKey
from tests.messages import EXCHANGE, SAMPLES

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

    child_pid: int | None = None

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.jobs: list[Job] = []
        self.ended: list[str] = []
        self.gives: Outcome | str = Outcome(10, {"loss": 0.5}, header_sha256="a" * 64, size_bytes=7)

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

    def run(self, *messages: Message) -> list[Message]:
        """Give messages of the server to the agent; return what it published."""
        before = len(self.session.published)
        for message in messages:
            self.parts.inbox.put(self._delivery(message))
        self.agent.run_until_idle()
        return self.session.published[before:]

    def _delivery(self, message: Message) -> Delivery:
        self._seq += 1
        topic = {
            "order": TOPICS.device("d-1", "task"),
            "receipt": TOPICS.device("d-1", "receipt"),
            "run_document": TOPICS.run(getattr(message, "run_id", "r"), "state"),
        }[message.kind]
        payload = encode(
            message, parse(topic), SERVER, sender="server", boot_id="b", seq=self._seq, sent_ms=1
        )
        return Delivery(topic, payload, False, self._seq, 1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.agent.start()
    made.parts.inbox.put(Connected(False, 1))
    made.run()
    yield made
    made.agent.close()
    assert not made.session.running


def order(**changes: Any) -> Order:
    found = SAMPLES["order"]
    assert isinstance(found, Order)
    return found.model_copy(update=changes)


def receipt_of(result: Message, **changes: Any) -> Receipt:
    assert isinstance(result, Result)
    names = ("action", "run_id", "round", "attempt", "phase", "seq")
    same = {name: getattr(result, name) for name in names}
    return Receipt(**{**same, "status": "accepted", **changes})


def statuses(messages: list[Message]) -> list[str]:
    return [message.status for message in messages if isinstance(message, DeviceState)]


def test_a_training_goes_from_its_order_to_its_receipt(bench: Bench) -> None:
    asked = order()
    published = bench.run(asked)
    key = JobKey.of(asked)
    assert statuses(published) == ["training"], "ready is said after a while"
    assert [job.key for job in bench.worker.jobs] == [key]
    (result,) = bench.session.waiting()
    assert isinstance(result, Result)
    assert result.update is not None
    assert (result.num_examples, result.update.size_bytes) == (10, 7)
    assert (result.usage.bytes_down, result.usage.bytes_up) == (10, 20)
    assert [job.stage for job in bench.parts.journal.jobs()] == ["reporting"]
    assert bench.transfers.calls == [("fetch", key), ("upload", key)]
    bench.run(receipt_of(result))
    assert bench.session.waiting() == []
    assert bench.parts.journal.jobs() == []
    assert bench.transfers.calls[-1] == ("forget", key)


def test_an_exchange_is_answered_with_its_phase_and_no_transfer(bench: Bench) -> None:
    bench.worker.gives = Outcome(0, {}, payload=b"answer", keeps_state=True)
    bench.run(EXCHANGE, EXCHANGE.model_copy(update={"seq": 1}))
    (job,) = bench.worker.jobs
    assert (job.key.phase, job.key.seq, job.order.payload) == (
        "share-keys",
        EXCHANGE.seq,
        EXCHANGE.payload,
    )
    (result,) = bench.session.waiting()
    assert isinstance(result, Result)
    assert (result.phase, result.payload, result.num_examples) == ("share-keys", b"answer", 0)
    # the second one begins with the state of the first: it waits for the receipt
    bench.parts.folder.next_state(job.key).write_bytes(b"after the first")
    bench.run(receipt_of(result))
    assert len(bench.worker.jobs) == 2
    assert bench.parts.folder.state(job.key).read_bytes() == b"after the first"
    assert bench.transfers.calls == [("forget", job.key)]


def test_what_the_worker_cannot_do_is_declined_with_its_reason(bench: Bench) -> None:
    bench.worker.gives = "task digits takes part in no exchange"
    (decline,) = [each for each in bench.run(EXCHANGE) if isinstance(each, Decline)]
    assert (decline.action, decline.phase, decline.seq) == ("exchange", "share-keys", EXCHANGE.seq)
    assert decline.reason == "task digits takes part in no exchange"
    assert bench.session.waiting() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "nosuch"}, "is not installed here"),
        ({"upload": None}, "an order to train needs an upload"),
        ({"action": "evaluate"}, "an order to evaluate has none"),
    ],
)
def test_an_order_that_does_not_fit_is_declined(
    changes: dict[str, Any], reason: str, bench: Bench
) -> None:
    (decline,) = bench.run(order(**changes))
    assert isinstance(decline, Decline)
    assert reason in decline.reason
    assert bench.worker.jobs == []


def test_an_order_of_a_replayed_message_is_dropped_and_acknowledged(bench: Bench) -> None:
    bench.run(order())
    (first,) = bench.session.acked
    bench.parts.inbox.put(first)
    assert bench.run() == []
    assert bench.session.acked == [first, first]
    assert len(bench.worker.jobs) == 1


def test_the_end_of_a_run_takes_its_files_and_its_process(bench: Bench) -> None:
    document = SAMPLES["run_document"]
    assert isinstance(document, RunDocument)
    state = bench.parts.folder.state(JobKey(document.run_id, "train", 1, 1))
    state.write_bytes(b"what the algorithm keeps")
    bench.run(document.model_copy(update={"status": "completed"}))
    assert not state.exists()
    assert bench.worker.ended == [document.run_id]
    assert ("remove_models", document.run_id) in bench.transfers.calls


def test_a_killed_agent_sends_what_it_had_done(tmp_path: Path) -> None:
    """The next process has the files alone."""
    killed = Bench(tmp_path)
    killed.worker.gives = Outcome(0, {}, payload=b"answer")
    killed.run(EXCHANGE)
    killed.parts.outbox.close()
    killed.parts.journal.close()
    again = Bench(tmp_path)
    again.agent.start()
    again.run()
    assert again.worker.jobs == []
    (result,) = again.session.waiting()
    assert isinstance(result, Result)
    assert result.payload == b"answer"
    again.run(receipt_of(result))
    assert again.parts.journal.jobs() == []
    again.agent.close()
