"""A broker that is not to be trusted brings forged orders, documents and receipts to a real agent.

It cannot be kept from dropping what it carries; what it makes up must not be believed.
"""

from __future__ import annotations

import pytest

from broker.wire.messages import (
    Decline,
    DeviceState,
    Order,
    Receipt,
    Result,
    RunDocument,
    ServerState,
    decode,
)
from broker.wire.topics import parse
from runtime.errors import TransportError
from tests.attacks.ground import GATED_TASK, Agent, Ground
from tests.attacks.intruders import Forger, Inject, Intruder, pause
from tests.integration.broker_fixtures import eventually
from tests.messages import SAMPLES

NAME = "anna"


@pytest.fixture
def anna(ground: Ground) -> Agent:
    return ground.agent(NAME)


def an_order(epoch: int, run_id: str, task: str = "gated_digits") -> Order:
    order = SAMPLES["order"]
    assert isinstance(order, Order)
    changes = {"epoch": epoch, "task": task, "run_id": run_id, "round": 1, "attempt": 1}
    return order.model_copy(update=changes)


def test_forged_orders_start_nothing(ground: Ground, anna: Agent, mallory: Intruder) -> None:
    topic, elsewhere = (ground.topics.device(name, "task") for name in (NAME, "mallory"))
    # an agent is silent to orders of an earlier server, and a test before this one may kill it
    epoch = ground.epoch
    server, order = Forger("server", ground.server.secret_key), an_order(epoch, "forged")
    own_key = Forger("server", ground.device(NAME).secret_key)
    forged = [
        mallory.write(topic, order, "server"),
        own_key.write(topic, order),
        bytes(64) + server.write(topic, order)[64:],
        server.write(elsewhere, order),
        server.write(topic, order)[:-1] + b"\x7f",
    ]
    before, processes = anna.refusals(topic, "signature"), anna.training_processes
    with ground.unharmed(), ground.eyes(NAME) as eyes, ground.untrusted_broker() as inject:
        for payload in forged:
            mallory.publish(topic, payload)
        for payload in forged:
            inject(topic, payload)
        eventually(lambda: anna.refusals(topic, "signature") == before + len(forged))
        # a genuine one, of a task that is not here, shows that the others would have been heard
        inject(topic, server.write(topic, an_order(epoch, "genuine", "no-such-task")))
        acks = ground.topics.device(NAME, "ack")
        eventually(lambda: bool(eyes.on(acks)))
        pause()
        assert eyes.on(topic).count(forged[0]) == 1, "the broker drops what mallory sends herself"
        (answer,) = (decode(each, parse(acks), None)[1] for each in eyes.on(acks))
        assert isinstance(answer, Decline)
        assert answer.run_id == "genuine"
        assert statuses(eyes.on(ground.topics.device(NAME, "state"))) <= {"ready"}
    assert anna.stages == []
    assert anna.training_processes == processes


def statuses(states: list[bytes]) -> set[str]:
    topic = parse("rengo/v1/main/dev/anna/state")
    found = [decode(each, topic, None)[1] for each in states]
    return {each.status for each in found if isinstance(each, DeviceState)}


def test_nothing_forged_moves_an_agent_at_work(
    ground: Ground, anna: Agent, mallory: Intruder
) -> None:
    topics = ground.topics
    task, results = topics.device(NAME, "task"), topics.device(NAME, "result")
    ground.hold(NAME)
    with ground.unharmed(), ground.eyes(NAME) as eyes, ground.untrusted_broker() as inject:
        run_id = ground.submit(GATED_TASK, 1, rounds=2)
        ground.wait_held(NAME)
        (order,) = eyes.on(task)
        _forged_documents(ground, anna, mallory, run_id, inject)
        _replayed(anna, order, task, inject)
        assert anna.stages == []
        with ground.stopped(ground.pids[2]):
            ground.release(NAME)
            eventually(lambda: anna.stages == ["reporting"], 30)
            _forged_receipts(ground, anna, mallory, run_id, inject)
            assert anna.stages == ["reporting"], "the result is kept until the server's own receipt"
        report = ground.finish(run_id)
        assert [row["included"] for row in report["history"]] == [[NAME], [NAME]]
        told = [decode(each, parse(results), None)[1] for each in set(eyes.on(results))]
        rounds = sorted(each.round for each in told if isinstance(each, Result))
        assert rounds == [1, 2], "each was trained once"
        _replayed(anna, order, task, inject)
        eventually(lambda: anna.stages == [])


def _forged_documents(
    ground: Ground, anna: Agent, mallory: Intruder, run_id: str, inject: Inject
) -> None:
    state, run = ground.topics.server_state, ground.topics.run(run_id, "state")
    document = SAMPLES["run_document"]
    assert isinstance(document, RunDocument)
    changes = {"run_id": run_id, "status": "stopped", "phase": "ended", "epoch": 9, "round": 9}
    forged = [
        (run, mallory.write(run, document.model_copy(update=changes), "server")),
        (state, mallory.write(state, ServerState(status="online", epoch=1_000_000), "server")),
    ]
    for topic, payload in forged:
        mallory.publish(topic, payload, retain=True)
    with ground.site.connect() as operator:
        for topic, payload in forged:
            before = anna.refusals(topic, "signature")
            inject(topic, payload)
            eventually(
                lambda topic=topic, before=before: anna.refusals(topic, "signature") > before
            )
            assert anna.refusals(topic, "signature") == before + 1, "not by mallory herself"
            # nor does an operator's command line show it
            with pytest.raises(TransportError, match="is not from this site's server"):
                operator.call("server_info")


def _replayed(anna: Agent, order: bytes, task: str, inject: Inject) -> None:
    before = anna.refusals(task, "came before")
    inject(task, order)
    inject(task, order)
    eventually(lambda: anna.refusals(task, "came before") == before + 2)


def _forged_receipts(
    ground: Ground, anna: Agent, mallory: Intruder, run_id: str, inject: Inject
) -> None:
    topic = ground.topics.device(NAME, "receipt")
    server = Forger("server", ground.server.secret_key)
    before = anna.refusals(topic, "signature")
    forged = []
    for status in ("accepted", "late", "refused", "unknown"):
        receipt = Receipt.model_validate(
            {"action": "train", "run_id": run_id, "round": 1, "attempt": 1, "status": status}
        )
        forged.append(mallory.write(topic, receipt, "server"))
        forged.append(bytes(64) + server.write(topic, receipt)[64:])
        forged.append(server.write(ground.topics.device("mallory", "receipt"), receipt))
    for payload in forged:
        mallory.publish(topic, payload)
        inject(topic, payload)
    eventually(lambda: anna.refusals(topic, "signature") == before + len(forged))
