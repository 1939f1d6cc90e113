"""What a session sends and receives, once or again, over restarts of a real broker and its own."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter

import pytest

from broker.session.inbox import Connected, SessionEvent
from broker.session.publication import Publication
from runtime.processes.ports import free_port
from tests.integration.broker_fixtures import (
    BASE,
    TASK_A,
    Owner,
    Site,
    answer,
    eventually,
    process,
    quiet_for,
    site,
)

__all__ = ["site"]


def test_a_publish_while_offline_says_so_and_is_not_sent_later(site: Site) -> None:
    reader = Owner()
    site.session(reader, TASK_A)
    writer = site.publisher()
    site.broker.kill()
    eventually(lambda: not writer.connected)
    assert not any(writer.publish(Publication(TASK_A, b"lost")) for _ in range(5))
    site.start()
    eventually(lambda: writer.connected)
    assert writer.publish(Publication(TASK_A, b"now"))
    reader.wait(lambda: b"now" in reader.payloads)
    quiet_for(0.5, reader)
    assert reader.payloads == [b"now"]


def test_an_exception_in_the_callback_is_a_fault_and_the_message_comes_again(site: Site) -> None:
    owner = Owner()
    session = site.session(owner, TASK_A)
    owner.raising = ValueError("a bug of the owner")
    site.publisher().publish(Publication(TASK_A, b"one"))
    owner.wait(lambda: bool(owner.faults))
    assert str(owner.faults[0]) == "a bug of the owner"
    assert session.connected
    owner.raising = None
    owner.wait(lambda: owner.payloads == [b"one"])
    assert len(owner.connections) == 1, "the network thread must survive"


def test_messages_queue_for_a_client_that_is_away_and_come_after_its_restart(site: Site) -> None:
    site.session(Owner(), TASK_A).stop()
    writer = site.publisher()
    expected = [str(number).encode() for number in range(40)]
    for payload in expected:
        assert writer.publish(Publication(TASK_A, payload))
    assert writer.flush(10)
    owner = Owner()
    site.session(owner, TASK_A)
    owner.wait(lambda: len(owner.deliveries) >= 40)
    assert owner.payloads == expected
    assert owner.connections[0].session_present


def test_a_client_that_is_not_persistent_leaves_no_queue(site: Site) -> None:
    site.session(Owner(), TASK_A, endpoint=site.endpoint(persistent=False)).stop()
    writer = site.publisher()
    writer.publish(Publication(TASK_A, b"for nobody"))
    assert writer.flush(10)
    owner = Owner()
    site.session(owner, TASK_A)
    assert not owner.connections[0].session_present
    quiet_for(0.5, owner)


def test_a_killed_broker_keeps_session_queue_and_retained(site: Site) -> None:
    site.session(Owner(), TASK_A, f"{BASE}/server/state").stop()
    writer = site.publisher()
    writer.publish(Publication(f"{BASE}/server/state", b"document", retain=True))
    for number in range(10):
        writer.publish(Publication(TASK_A, str(number).encode()))
    assert writer.flush(10)
    site.restart_after_kill()
    owner = Owner()
    site.session(owner, TASK_A, f"{BASE}/server/state")
    owner.wait(lambda: len(set(owner.payloads)) == 11)
    assert owner.connections[0].session_present
    assert set(owner.payloads) == {b"document", *(str(n).encode() for n in range(10))}


def test_a_broker_that_lost_its_state_gets_the_subscriptions_again(site: Site) -> None:
    owner = Owner()
    site.session(owner, TASK_A)
    site.broker.kill()
    shutil.rmtree(site.broker.data_dir / "jetstream")
    site.start()
    owner.wait(lambda: len(owner.connections) == 2)
    assert not owner.connections[1].session_present
    site.publisher().publish(Publication(TASK_A, b"after"))
    owner.wait(lambda: owner.payloads == [b"after"])


def test_retained_documents_come_afresh_with_every_connection(site: Site) -> None:
    state = f"{BASE}/server/state"
    site.publisher().publish(Publication(state, b"document", retain=True))
    owner = Owner()
    site.session(owner, state)
    owner.wait(lambda: owner.payloads == [b"document"])
    site.restart_after_kill()
    owner.wait(lambda: owner.payloads == [b"document", b"document"])


def test_an_unacknowledged_message_comes_again_and_an_acknowledged_one_does_not(
    site: Site,
) -> None:
    owner = Owner(acks=False)
    session = site.session(owner, TASK_A)
    writer = site.publisher()
    writer.publish(Publication(TASK_A, b"journalled"))
    writer.publish(Publication(TASK_A, b"not yet"))
    owner.wait(lambda: len(owner.deliveries) == 2)
    session.ack(owner.deliveries[0])
    owner.wait(lambda: owner.payloads.count(b"not yet") == 2)
    session.ack(owner.deliveries[-1])
    quiet_for(2.0, owner)
    assert owner.payloads.count(b"journalled") == 1


def test_an_unacknowledged_message_survives_the_process(site: Site) -> None:
    owner = Owner(acks=False)
    session = site.session(owner, TASK_A)
    site.publisher().publish(Publication(TASK_A, b"work"))
    owner.wait(lambda: owner.payloads == [b"work"])
    session.stop()
    again = Owner()
    site.session(again, TASK_A)
    again.wait(lambda: again.payloads == [b"work"])


def test_an_acknowledgement_of_an_older_connection_is_dropped(site: Site) -> None:
    owner = Owner(acks=False)
    session = site.session(owner, TASK_A)
    writer = site.publisher()
    writer.publish(Publication(TASK_A, b"first"))
    owner.wait(lambda: owner.payloads == [b"first"])
    old = owner.deliveries[0]
    site.restart_after_kill()
    owner.wait(lambda: len(owner.deliveries) == 2)
    new = owner.deliveries[1]
    assert new.payload == b"first"
    assert new.generation > old.generation
    session.ack(old)  # the same message id may mean another message by now
    owner.wait(lambda: len(owner.deliveries) == 3)
    session.ack(owner.deliveries[-1])
    quiet_for(2.0, owner)


def test_a_killed_publisher_loses_nothing_that_it_stored(site: Site) -> None:
    owner = Owner()
    site.session(owner, TASK_A)
    port = site.broker.endpoint.port
    order = {"outbox": str(site.folder / "killed.db"), "client_id": "killed", "topic": TASK_A}
    with process(**order, port=free_port(), count=200) as first:
        assert answer(first) == {"pending": 200}
        first.send_signal(signal.SIGKILL)
        first.wait()
    with process(**order, port=port, connect=True) as second:
        assert answer(second) == {"flushed": True}
        assert answer(second) == {"pending": 0}
    owner.wait(lambda: len(owner.deliveries) >= 200)
    quiet_for(0.3, owner)
    assert owner.payloads == [str(number).encode() for number in range(200)]


def test_the_outbox_sends_each_message_once_over_a_broker_restart(site: Site) -> None:
    owner = Owner()
    site.session(owner, TASK_A)
    outbox = site.outbox()
    writer_owner = Owner()
    writer = site.session(writer_owner, endpoint=site.endpoint(client_id="writer"), outbox=outbox)
    site.broker.kill()
    eventually(lambda: not writer.connected)
    for number in range(60):
        writer.publish_durably(f"k{number}", TASK_A, str(number).encode(), until="puback")
        writer.publish_durably(
            f"k{number}", TASK_A, str(number).encode(), until="puback"
        )  # a naive retry
    assert not writer.flush(0.1)
    site.start()
    assert writer.flush(20)
    owner.wait(lambda: len(owner.deliveries) >= 60, 20)
    quiet_for(1.0, owner)
    assert Counter(owner.payloads) == Counter(str(number).encode() for number in range(60))
    assert len(outbox) == 0


def test_a_message_is_sent_again_until_it_is_confirmed(site: Site) -> None:
    owner = Owner()
    site.session(owner, TASK_A)
    outbox = site.outbox()
    writer = site.session(
        Owner(), endpoint=site.endpoint(client_id="writer"), outbox=outbox, resend_s=0.3
    )
    writer.publish_durably("result", TASK_A, b"result", until="confirm")
    owner.wait(lambda: len(owner.deliveries) >= 3)
    assert len(outbox) == 1
    assert writer.confirm("result")
    assert not writer.confirm("result")
    eventually(lambda: writer.flush(1))
    time.sleep(0.2)  # one that was under way
    quiet_for(1.0, owner)
    assert len(outbox) == 0


def test_an_unconfirmed_message_is_sent_again_after_a_reconnect(site: Site) -> None:
    owner = Owner()
    site.session(owner, TASK_A)
    writer_owner = Owner()
    writer = site.session(
        writer_owner, endpoint=site.endpoint(client_id="writer"), outbox=site.outbox(), resend_s=600
    )
    writer.publish_durably("result", TASK_A, b"result", until="confirm")
    owner.wait(lambda: owner.payloads == [b"result"])
    quiet_for(0.5, owner)
    site.restart_after_kill()
    owner.wait(lambda: owner.payloads == [b"result", b"result"])


@pytest.fixture
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session connects again a second after its inbox refused a message, not five."""
    monkeypatch.setattr("broker.session.session._REDELIVER_AFTER_S", 1.0)


def test_a_full_inbox_leaves_messages_with_the_broker(site: Site, soon_again: None) -> None:
    owner = Owner(limit=6)
    site.session(owner, TASK_A)
    writer = site.publisher()
    expected = {str(number).encode() for number in range(50)}
    for payload in expected:
        writer.publish(Publication(TASK_A, payload))
    assert writer.flush(10)
    eventually(lambda: len(owner.events) == 6, 15)
    quiet_for(0.5, owner)
    seen: set[bytes] = set()

    def room_again() -> bool:
        seen.update(each.payload for each in owner.take_all() if hasattr(each, "payload"))
        return seen == expected

    eventually(room_again, 60)


def test_a_retained_document_that_found_the_inbox_full_comes_again(
    site: Site, soon_again: None
) -> None:
    state = f"{BASE}/server/state"
    site.publisher().publish(Publication(state, b"document", retain=True))
    owner = Owner(limit=1)
    site.session(owner, state)
    quiet_for(0.3, owner)
    assert [type(each) for each in owner.events] == [Connected]
    owner.limit = None
    owner.wait(lambda: owner.payloads == [b"document"], 15)


def test_connected_comes_before_the_deliveries_even_from_a_full_inbox(site: Site) -> None:
    site.publisher().publish(Publication(f"{BASE}/server/state", b"document", retain=True))
    owner = Owner(limit=0)
    site.session(owner, f"{BASE}/server/state")
    owner.limit = None
    owner.wait(lambda: bool(owner.deliveries), 15)
    assert isinstance(owner.events[0], Connected)


def test_what_the_owner_publishes_on_connected_is_never_dropped(site: Site) -> None:
    reader = Owner()
    site.session(reader, TASK_A)
    said: list[bool] = []

    class Announcer(Owner):
        def __call__(self, event: SessionEvent) -> bool:
            if isinstance(event, Connected) and self.session is not None:
                state = b"state %d" % (len(said) + 1)
                said.append(self.session.publish(Publication(TASK_A, state)))
            return super().__call__(event)

    announcer = Announcer()
    site.session(announcer, endpoint=site.endpoint(client_id="announcer"))
    reader.wait(lambda: reader.payloads == [b"state 1"])
    site.restart_after_kill()
    announcer.wait(lambda: len(announcer.connections) == 2)
    # the kill may undo the acknowledgement of the first, which then comes again
    reader.wait(lambda: b"state 2" in reader.payloads)
    assert said == [True, True]


def test_a_burst_of_orders_is_neither_dropped_nor_slow(site: Site) -> None:
    reader = Owner()
    site.session(reader, TASK_A)
    writer = site.publisher()
    began = time.monotonic()
    bodies = [b"%1000d" % number for number in range(3000)]
    assert all(writer.publish(Publication(TASK_A, body)) for body in bodies)
    assert writer.flush(30)
    # one that was acknowledged late comes twice
    reader.wait(lambda: len(reader.deliveries) >= 3000 and len({*reader.payloads}) == 3000, 30)
    assert time.monotonic() - began < 20
