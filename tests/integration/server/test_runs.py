"""A server on a real broker and store: runs, their documents, restarts and outages."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from broker.session.publication import Publication
from broker.wire.messages import (
    Decline,
    DeviceState,
    Message,
    Order,
    Receipt,
    Request,
    Result,
    RunDocument,
    ServerState,
    UpdateRef,
)
from broker.wire.topics import parse
from fl_server.dataplane.workers import Done, JobDone, TaskDone
from fl_server.persistence.database import JournalError
from fl_server.rounds.events import UpdateVerified
from fl_server.rounds.facts import Fact
from storage.store.s3 import S3Store
from storage.updates.stream import write_update
from storage.versions.keys import RunKeys
from storage.weights import Weights
from tests.integration.broker_fixtures import Owner, eventually
from tests.integration.server.site import (
    BASE,
    HTTP,
    TOPICS,
    Place,
    Site,
    message_of,
    model,
    put,
    received,
    result,
    said,
)
from tests.messages import SAMPLES
from tests.objects import beside_in
from tests.updates import info_of

# --- documents and restarts -------------------------------------------------------------------


def documents(owner: Owner) -> dict[str, RunDocument]:
    found: dict[str, RunDocument] = {}
    for delivery in owner.deliveries:
        run_id = parse(delivery.topic).id
        found.pop(run_id, None)
        if delivery.payload:
            message = message_of(delivery)
            assert isinstance(message, RunDocument)
            found[run_id] = message
    return found


def retained(site: Site, expected: set[str]) -> dict[str, RunDocument]:
    """Return the documents that a newcomer finds, which are those of the expected runs."""
    _, owner = site.peer("anyone", f"{BASE}/run/+/state")
    owner.wait(lambda: documents(owner).keys() == expected)
    return documents(owner)


def test_documents_beyond_the_kept_ones_are_cleared(site: Site) -> None:
    first = site.submit()
    ended = []
    for _ in range(22):
        ended.append(site.submit())
        site.call("runs_stop", run_id=ended[-1])
    kept = {first, *ended[-20:]}
    retained(site, kept)
    site.restart()
    found = retained(site, kept)
    assert found[first].status == "waiting"
    assert found[ended[-1]].status == "stopped"
    assert len(site.call("runs_ls")["runs"]) == 23


def server_state(site: Site) -> ServerState:
    _, owner = site.peer("anyone", TOPICS.server_state)
    owner.wait(lambda: bool(received(owner, ServerState)))
    state: ServerState = received(owner, ServerState)[-1]
    return state


def test_a_restart_has_a_larger_epoch_and_all_runs(site: Site) -> None:
    run_id = site.submit()
    prepared = site.prepare(model())
    before = site.call("server_info")
    assert server_state(site) == ServerState(status="online", epoch=before["epoch"])
    site.stop()
    assert server_state(site) == ServerState(status="offline", epoch=before["epoch"])
    site.start()
    after = site.call("server_info")
    assert after["epoch"] == before["epoch"] + 1
    assert server_state(site) == ServerState(status="online", epoch=after["epoch"])
    assert [row["run_id"] for row in site.call("runs_ls")["runs"]] == [run_id]
    assert retained(site, {run_id})[run_id].epoch == after["epoch"]
    put(prepared["url"], model())
    site.submit_prepared(prepared, model())


class Device:
    """A device that answers orders as it is told, on the wire."""

    def __init__(self, site: Site, name: str = "d-1") -> None:
        self.name = name
        site.admit(name)
        self.session, self.owner = site.peer(
            "anyone", TOPICS.device(name, "task"), TOPICS.device(name, "receipt")
        )

    def say(self, leaf: str, message: Message, *, retain: bool = False) -> None:
        topic = TOPICS.device(self.name, leaf)
        self.session.publish(Publication(topic, said(topic, message, self.name), retain))

    def join(self, boot_id: str = "b-1") -> None:
        state = DeviceState(status="ready", boot_id=boot_id, tasks=["digits"])
        self.say("state", state, retain=True)

    def orders(self) -> list[Order]:
        return received(self.owner, Order)

    def order(self, round_number: int, beyond_epoch: int = 0) -> Order:
        """Return the order of that round, of a later epoch than the given one."""

        def found() -> list[Order]:
            orders = [each for each in self.orders() if each.round == round_number]
            return [each for each in orders if each.epoch > beyond_epoch]

        self.owner.wait(lambda: bool(found()))
        return found()[-1]

    def train(self, order: Order, value: float = 0.5) -> Result:
        assert order.upload is not None
        base = HTTP.request("GET", order.model.url).data
        assert hashlib.sha256(base).hexdigest() == order.model.sha256
        weights = Weights.from_arrays({"0.weight": np.zeros((4, 3), np.float32)})
        info = info_of(order, self.name, weights.layout, 5)
        out = io.BytesIO()
        written = write_update(out, info, np.full(12, value, np.float32))
        put(order.upload.url, out.getvalue())
        reference = UpdateRef(
            key=order.upload.key,
            size_bytes=written.size_bytes,
            header_sha256=written.header_sha256,
        )
        return result(order.run_id, round=order.round, attempt=order.attempt, update=reference)

    def receipt(self, number: int) -> Receipt:
        """Return the last of so many receipts."""
        self.owner.wait(lambda: len(received(self.owner, Receipt)) == number)
        receipt: Receipt = received(self.owner, Receipt)[-1]
        return receipt


def test_a_run_from_its_first_order_to_its_model(site: Site) -> None:
    device = Device(site)
    device.join()
    data = model()
    run_id = site.submit(data, definition=DEFINITION | {"evaluation": {"on": "none"}})
    for number in (1, 2):
        order = device.order(number)
        assert (order.action, order.run_id, order.attempt) == ("train", run_id, 1)
        assert order.epoch == site.call("server_info")["epoch"]
        sent = device.train(order)
        device.say("result", sent)
        assert device.receipt(number).status == "accepted"
    eventually(lambda: site.call("runs_show", run_id=run_id)["status"] == "completed")
    reference = site.call("models_url", name=run_id)
    final = HTTP.request("GET", reference["url"]).data
    assert hashlib.sha256(final).hexdigest() == reference["sha256"]
    first = np.frombuffer(data[-48:], np.float32)
    assert np.allclose(np.frombuffer(final[-48:], np.float32), first + 1.0)
    device.say("result", sent)
    assert device.receipt(3).status == "accepted", "what was counted stays so"
    keys = RunKeys(site.server.settings.project, run_id)
    store = S3Store(site.place.store.settings)
    eventually(lambda: beside_in(store, keys, {0, 1, 2}) == "")


def test_updates_that_are_verified_together_share_one_write(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, written = site.server, list[list[str]]()
    post, append = server.data._post, server.journal.append
    verified: list[Done] = []

    def hold(done: Done) -> None:
        """Post the three verified updates at one moment, while the owner's thread waits."""
        if not isinstance(done, JobDone) or not isinstance(done.event, UpdateVerified):
            post(done)
            return
        verified.append(done)
        if len(verified) == 3:
            gate = threading.Event()
            post(TaskDone(lambda: opened(gate)))
            for each in verified:
                post(each)
            gate.set()

    def note(run_id: str, facts: Sequence[Fact]) -> None:
        written.append([type(fact).__name__ for fact in facts])
        append(run_id, facts)

    monkeypatch.setattr(server.data, "_post", hold)
    monkeypatch.setattr(server.journal, "append", note)
    devices = [Device(site, name) for name in ("d-1", "d-2", "d-3")]
    for device in devices:
        device.join()
    definition = DEFINITION | {"rounds": 1, "evaluation": {"on": "none"}, "cohort": {"size": 3}}
    run_id = site.submit(model(), definition=definition)
    for device in devices:
        device.say("result", device.train(device.order(1)))
    assert [device.receipt(1).status for device in devices] == 3 * ["accepted"]
    eventually(lambda: site.call("runs_show", run_id=run_id)["status"] == "completed")
    assert [facts for facts in written if "UpdateAccepted" in facts] == [
        [*3 * ["UpdateAccepted"], "RoundClosed"]
    ]


def opened(gate: threading.Event) -> None:
    assert gate.wait(20)


DEFINITION: dict[str, Any] = {"task": "digits", "rounds": 2, "cohort": {"size": 1}}


def test_an_update_that_is_not_what_it_says_is_refused_with_its_reason(site: Site) -> None:
    device = Device(site)
    device.join()
    run_id = site.submit()
    order = device.order(1)
    sent = device.train(order)
    assert order.upload is not None
    put(order.upload.url, b"something else")
    device.say("result", sent)
    receipt = device.receipt(1)
    assert receipt.status == "refused"
    assert "does not begin as an update" in receipt.reason
    history = site.call("runs_show", run_id=run_id)["history"]
    assert history[0]["refused"] == {"d-1": receipt.reason}


def test_an_order_is_asked_for_again_and_declined(site: Site) -> None:
    device = Device(site)
    device.join()
    run_id = site.submit()
    order = device.order(1)
    device.say("request", Request(action="train", run_id=run_id, round=1, attempt=1))
    device.owner.wait(lambda: len(device.orders()) == 2)
    assert device.orders()[1].model.sha256 == order.model.sha256
    device.say(
        "ack",
        Decline(action="train", run_id=run_id, round=1, attempt=1, reason="too hot"),
    )

    def told() -> bool:
        history = site.call("runs_show", run_id=run_id)["history"]
        return bool(history[0]["refused"] == {"d-1": "too hot"})

    eventually(told)


def test_orders_come_again_after_a_restart(site: Site) -> None:
    device = Device(site)
    device.join()
    run_id = site.submit()
    old = device.order(1)
    site.restart()
    device.join("b-2")  # as agents do once the server says that it is online
    new = device.order(1, beyond_epoch=old.epoch)
    assert (new.run_id, new.round, new.attempt) == (run_id, 1, 1)


# --- troubles of its own ----------------------------------------------------------------------


def test_a_server_that_cannot_journal_falls_rather_than_forgets(site: Site) -> None:
    run_id = site.submit()
    engine = sa.create_engine(site.journal_url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE rengo_facts"))
    engine.dispose()
    session, _ = site.peer()
    request = {"request_id": "q", "operation": "runs_pause", "arguments": {"run_id": run_id}}
    asked = SAMPLES["operator_request"].model_copy(update=request)
    topic = TOPICS.operator("operator", "request")
    session.publish(Publication(topic, said(topic, asked, "operator")))
    site.thread.join(20)
    assert [type(error) for error in site.fell] == [JournalError]
    assert "rengo_facts" in str(site.fell[0])
    assert server_state(site).status == "offline"


def test_a_server_stops_at_once_while_its_store_is_away(place: Place, tmp_path: Path) -> None:
    site = Site(place, tmp_path)
    site.start()
    try:
        run_id = site.submit()
        place.store.kill()
        site.call("runs_stop", run_id=run_id)  # its sweep waits for the store
        began = time.monotonic()
        site.stop()
        assert time.monotonic() - began < 20
    finally:
        place.store.start()
        site.forget_retained()
