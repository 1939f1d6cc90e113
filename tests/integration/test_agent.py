"""The real agent on a real broker: what it does with receipts and hostile messages."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.session.outbox import Outbox
from broker.session.publication import Publication
from broker.wire.messages import Message, Order, Receipt, Result, RunDocument
from broker.wire.topics import Topics, parse
from fl_client.agent.agent import Agent
from fl_client.agent.build import build_agent
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.journal import JobJournal
from fl_client.session.events import Job, JobKey, JobOutcome
from fl_client.settings import AgentSettings
from runtime.security.identity import Identity
from tests.integration.broker_fixtures import DOMAIN, Owner, Site, eventually, site
from tests.messages import SAMPLES, content, signed

__all__ = ["site"]
TOPICS = Topics(DOMAIN)
NAME = "dev-a"


@pytest.fixture
def settings(tmp_path: Path) -> AgentSettings:
    return AgentSettings(identity=tmp_path / "unused", data_dir=tmp_path / "data", engine="numpy")


@pytest.fixture
def identity(site: Site) -> Identity:
    return site.identity(NAME)


class Running:
    """An agent on a thread that makes it and owns it."""

    def __init__(self, settings: AgentSettings, identity: Identity) -> None:
        self._made: queue.SimpleQueue[Agent] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(settings, identity))
        self._thread.start()
        self.agent = self._made.get(timeout=20)
        self.outbox: Outbox = self.agent.parts.outbox

    def _run(self, settings: AgentSettings, identity: Identity) -> None:
        agent = build_agent(settings, identity)
        self._made.put(agent)
        agent.run_forever()

    def stop(self) -> None:
        self.agent.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def running_after(settings: AgentSettings, identity: Identity) -> Iterator[Callable[[], Running]]:
    """Start an agent whose outbox holds a result."""
    result = SAMPLES["result"]
    assert isinstance(result, Result)
    key = f"result/{result.run_id}/{result.action}/{result.round}/{result.attempt}"
    outbox = Outbox(settings.data_dir / "outbox.sqlite")
    topic = TOPICS.device(NAME, "result")
    outbox.put(key, topic, said(topic, result, NAME), until="confirm")
    outbox.close()
    started: list[Running] = []

    def start() -> Running:
        started.append(Running(settings, identity))
        return started[-1]

    yield start
    for agent in started:
        agent.stop()


@pytest.fixture
def running(running_after: Callable[[], Running]) -> Running:
    return running_after()


def said(topic: str, message: Message, sender: str) -> bytes:
    return signed(content(message, sender), parse(topic))


def receipt() -> Receipt:
    result = SAMPLES["result"]
    assert isinstance(result, Result)
    return Receipt(
        action=result.action,
        run_id=result.run_id,
        round=result.round,
        attempt=result.attempt,
        status="accepted",
    )


def say(site: Site, leaf: str, message: Message) -> None:
    topic = TOPICS.device(NAME, leaf)
    site.publisher().publish(Publication(topic, said(topic, message, "server")))


def test_a_receipt_ends_a_result_whose_job_was_lost(site: Site, running: Running) -> None:
    """A power cut may cost the job's row and not the result's: it must not be sent for ever."""
    server = Owner()
    site.session(server, TOPICS.device(NAME, "result"))
    server.wait(lambda: bool(server.deliveries))
    assert len(running.outbox) == 1
    say(site, "receipt", receipt())
    eventually(lambda: len(running.outbox) == 0)


def left_by(answer: Receipt, settings: AgentSettings) -> tuple[DeviceFolder, JobKey]:
    """Leave the algorithm's state of a job that waits for its receipt."""
    key = JobKey(answer.run_id, answer.action, answer.round, answer.attempt)
    folder = DeviceFolder(settings.data_dir)
    folder.next_state(key).write_bytes(b"what the algorithm keeps")
    return folder, key


def heard(site: Site, running_after: Callable[[], Running]) -> Running:
    """Start the agent; its result comes after it has begun to listen."""
    server = Owner()
    site.session(server, TOPICS.device(NAME, "result"))
    running = running_after()
    server.wait(lambda: bool(server.deliveries))
    return running


@pytest.mark.parametrize("row", ["older", "gone"])
def test_a_state_whose_result_waits_outlives_an_older_journal(
    site: Site, settings: AgentSettings, running_after: Callable[[], Running], row: str
) -> None:
    """A power cut may bring the journal back to before the result; the update itself has gone."""
    answer = receipt()
    folder, key = left_by(answer, settings)
    if row == "older":
        same = {name: getattr(answer, name) for name in ("run_id", "action", "round", "attempt")}
        order = SAMPLES["order"].model_copy(update=same)
        assert isinstance(order, Order)
        journal = JobJournal(settings.data_dir / "jobs.sqlite")
        journal.store(Job(key, order, "uploading", JobOutcome(10, {}, header_sha256="a" * 64)))
        assert len(journal.jobs()) == 1
        journal.close()
    running = heard(site, running_after)
    say(site, "receipt", answer)
    eventually(lambda: len(running.outbox) == 0)
    assert folder.state(key).read_bytes() == b"what the algorithm keeps"
    assert not folder.next_state(key).exists()


def test_the_state_of_a_lost_job_is_kept_before_its_result_goes(
    site: Site,
    settings: AgentSettings,
    running_after: Callable[[], Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A power cut between the two would leave a state that no result asks for: it is swept."""
    answer = receipt()
    folder, key = left_by(answer, settings)
    kept: list[bool] = []
    confirm = Outbox.confirm

    def confirmed(outbox: Outbox, name: str) -> bool:
        kept.append(folder.state(key).exists())
        return confirm(outbox, name)

    monkeypatch.setattr(Outbox, "confirm", confirmed)
    running = heard(site, running_after)
    say(site, "receipt", answer)
    eventually(lambda: len(running.outbox) == 0)
    assert kept == [True]


def test_a_run_s_end_takes_its_state_away(
    site: Site, settings: AgentSettings, running_after: Callable[[], Running]
) -> None:
    document = SAMPLES["run_document"].model_copy(update={"status": "completed"})
    assert isinstance(document, RunDocument)
    folder = DeviceFolder(settings.data_dir)
    state = folder.state(JobKey(document.run_id, "train", 1, 1))
    state.write_bytes(b"what the algorithm keeps")
    heard(site, running_after)
    topic = TOPICS.run(document.run_id, "state")
    site.publisher().publish(Publication(topic, said(topic, document, "server"), retain=True))
    eventually(lambda: not state.exists())


def test_a_receipt_of_another_round_ends_nothing(
    site: Site, running_after: Callable[[], Running]
) -> None:
    running = heard(site, running_after)
    server = Owner()
    site.session(server, TOPICS.device(NAME, "ack"))
    say(site, "receipt", receipt().model_copy(update={"round": 9}))
    order = SAMPLES["order"].model_copy(update={"task": "nosuch"})
    say(site, "task", order)
    server.wait(lambda: bool(server.deliveries))
    assert len(running.outbox) == 1


def test_hostile_messages_do_not_end_the_agent(
    site: Site, running_after: Callable[[], Running]
) -> None:
    heard(site, running_after)
    server = Owner()
    site.session(server, TOPICS.device(NAME, "ack"))
    publisher = site.publisher()
    for payload in (b"", b"\xc1", b"\x91" * 5000, content(SAMPLES["decline"]), bytes(200_000)):
        for leaf in ("task", "receipt"):
            topic = TOPICS.device(NAME, leaf)
            publisher.publish(Publication(topic, payload))
            publisher.publish(Publication(topic, signed(payload, parse(topic))))
    publisher.publish(Publication(TOPICS.server_state, b"\xc1", retain=True))
    publisher.publish(Publication(TOPICS.run("r", "state"), b"\xc1", retain=True))
    say(site, "task", SAMPLES["order"].model_copy(update={"task": "nosuch"}))
    server.wait(lambda: bool(server.deliveries))
    assert b"is not installed here" in server.payloads[0]
