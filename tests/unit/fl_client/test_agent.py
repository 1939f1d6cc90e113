"""An agent with an in-memory session, worker and transfers: no broker, no store, no process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.session.inbox import Connected
from broker.wire.messages import (
    Decline,
    DeviceState,
    IdentityNotice,
    Message,
    Result,
    RunDocument,
    ServerState,
)
from fl_client.agent.status.question_socket import Question
from fl_client.session.events import JobKey, JobOutcome
from tests.agent_bench import Bench, order, receipt_of
from tests.messages import EXCHANGE, SAMPLES


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.agent.start()
    made.parts.inbox.put(Connected(False, 1))
    made.run()
    yield made
    made.agent.close()
    assert not made.session.running


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
    bench.worker.gives = JobOutcome(0, {}, payload=b"answer", keeps_state=True)
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
    killed.worker.gives = JobOutcome(0, {}, payload=b"answer")
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


def test_the_status_names_the_phase_of_an_exchange(bench: Bench) -> None:
    bench.worker.gives = JobOutcome(0, {"norm": 1.0}, payload=b"answer")
    bench.run(EXCHANGE)
    answers: list[dict[str, Any]] = []
    bench.parts.inbox.put(Question("status", 1, answers.append))
    bench.run(receipt_of(*bench.session.waiting()))
    bench.parts.inbox.put(Question("restart", 1, answers.append))
    bench.run()
    busy, idle = answers
    assert busy["busy"] == (
        "the server has not yet confirmed phase 'share-keys' of round 2 of sum-1"
    )
    assert busy["reporting"][0]["seq"] == EXCHANGE.seq
    assert (idle["busy"], idle["restarting"]) == ("", True)
    (ended,) = idle["rounds"]
    assert (ended["action"], ended["phase"], ended["status"]) == (
        "exchange",
        "share-keys",
        "accepted",
    )
    assert ended["size_bytes"] == len(b"answer")


# --- what the server asks and knows ---------------------------------------------------------------


def online(epoch: int) -> ServerState:
    return ServerState(status="online", epoch=epoch)


def presence(messages: list[Message]) -> list[tuple[str, int]]:
    return [(each.status, each.epoch) for each in messages if isinstance(each, DeviceState)]


def trouble(bench: Bench) -> str:
    answers: list[dict[str, Any]] = []
    bench.parts.inbox.put(Question("status", 1, answers.append))
    bench.run()
    found: str = answers[0]["server_trouble"]
    return found


def test_a_server_that_says_it_is_online_is_answered(bench: Bench) -> None:
    assert presence(bench.run(online(3))) == [("ready", 0)]
    assert presence(bench.run(online(3))) == [("ready", 0)], "it asks again whom it did not hear"
    assert presence(bench.run(online(4), retained=True)) == [], "it was said before this connection"
    assert presence(bench.run(ServerState(status="offline", epoch=4))) == []


def test_a_device_at_work_answers_that_it_trains(bench: Bench) -> None:
    bench.worker.gives = JobOutcome(10, {}, header_sha256="a" * 64, size_bytes=7)
    bench.transfers.fetch = lambda job: None  # type: ignore[method-assign]
    bench.run(order())
    assert presence(bench.run(online(3))) == [("training", 0)]


@pytest.mark.parametrize("retained", [False, True])
def test_a_server_of_a_lower_epoch_is_told_which_was_obeyed(
    bench: Bench, retained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench.run(online(9))
    assert trouble(bench) == ""
    assert presence(bench.run(online(4), retained=retained)) == [("ready", 9)]
    assert "has obeyed epoch 9" in trouble(bench)
    bench.run(online(4))
    assert caplog.text.count("has obeyed epoch 9") == 1, "once"
    assert presence(bench.run(online(10))) == [("ready", 0)]
    assert trouble(bench) == ""


def test_the_epoch_of_a_run_counts_too(bench: Bench) -> None:
    document = SAMPLES["run_document"]
    assert isinstance(document, RunDocument)
    bench.run(document.model_copy(update={"epoch": 7}))
    assert presence(bench.run(online(4))) == [("ready", 7)]


@pytest.mark.parametrize("problem", ["shared", "unknown", "revoked"])
def test_what_is_wrong_with_the_identity_is_told_once_and_stays_in_the_status(
    bench: Bench, problem: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench.run(IdentityNotice(problem=problem), IdentityNotice(problem=problem))
    told = trouble(bench)
    assert "token" in told, "it says what to do"
    assert caplog.text.count(told) == 1
    bench.parts.inbox.put(Connected(False, 2))
    bench.run()
    assert trouble(bench) == "", "the next connection may be without it"
