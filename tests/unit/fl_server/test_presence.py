"""Presence: births, wills, late wills of older connections, and silence about nothing new."""

from __future__ import annotations

from typing import Literal

from broker.wire.messages import Decline, DeviceInfo, DeviceState
from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft
from fl_server.members.presence import LATE_S, OFFLINE_S, PresenceTable
from tests.messages import SAMPLES

Status = Literal["ready", "training", "draining", "offline", "lost"]


def state(status: Status, boot_id: str = "b-1", tasks: list[str] | None = None) -> DeviceState:
    return DeviceState(status=status, boot_id=boot_id, tasks=tasks or ["digits"])


def presence_after(*states: DeviceState) -> PresenceTable:
    presence = PresenceTable()
    for each in states:
        presence.apply_state("d-1", each)
    return presence


def test_ready_is_a_join() -> None:
    presence = PresenceTable()
    assert presence.apply_state("d-1", state("ready")) == DeviceJoined("d-1", "trainer")
    assert [device.id for device in presence.online("digits")] == ["d-1"]
    assert presence.online("other") == []


def test_an_evaluator_joins_as_one() -> None:
    evaluator = DeviceState(status="ready", boot_id="b", role="evaluator", tasks=["digits"])
    assert PresenceTable().apply_state("e", evaluator) == DeviceJoined("e", "evaluator")


def test_draining_is_online_and_takes_no_order() -> None:
    presence = PresenceTable()
    event = presence.apply_state("d-1", state("draining"))
    assert event == DeviceJoined("d-1", "trainer", accepting=False)
    assert presence.online("digits")


def test_lost_and_offline_are_leaving() -> None:
    presence = presence_after(state("ready"))
    assert presence.apply_state("d-1", state("lost")) == DeviceLeft("d-1")
    assert presence.online("digits") == []
    presence = presence_after(state("training"))
    assert presence.apply_state("d-1", state("offline")) == DeviceLeft("d-1")


def test_a_late_will_of_an_older_life_means_nothing() -> None:
    presence = presence_after(state("ready", "b-1"), state("ready", "b-2"))
    for late in ("lost", "offline"):
        assert presence.apply_state("d-1", state(late, "b-1")) is None
    assert presence.devices["d-1"].state.boot_id == "b-2"
    assert presence.online("digits")


def test_the_will_of_the_living_connection_counts_while_training() -> None:
    presence = presence_after(state("ready", "b-2"), state("training", "b-2"))
    assert presence.apply_state("d-1", state("lost", "b-2")) == DeviceLeft("d-1")


def test_a_device_that_is_back_after_its_will_joins_again() -> None:
    presence = presence_after(state("ready", "b-1"), state("lost", "b-1"))
    assert presence.apply_state("d-1", state("ready", "b-2")) == DeviceJoined("d-1", "trainer")


def test_the_same_life_that_is_back_after_its_will_joins_again() -> None:
    """A network that went and came: the will was sent, the process lives on."""
    presence = presence_after(state("training", "b-1"), state("lost", "b-1"))
    again = presence.apply_state("d-1", state("training", "b-1"))
    assert isinstance(again, DeviceJoined)


def test_training_says_nothing_new_of_a_device_that_was_heard() -> None:
    presence = presence_after(state("ready"))
    assert presence.apply_state("d-1", state("training")) == DeviceBusy("d-1")
    assert presence.devices["d-1"].state.status == "training"
    assert presence.apply_state("d-1", state("ready")) == DeviceJoined("d-1", "trainer")


def test_training_of_a_new_life_is_news() -> None:
    presence = presence_after(state("ready", "b-1"))
    assert isinstance(presence.apply_state("d-1", state("training", "b-2")), DeviceJoined)


def test_after_a_gap_everything_is_news() -> None:
    presence = presence_after(state("ready"), state("training"))
    presence.reconnected()
    assert isinstance(presence.apply_state("d-1", state("training")), DeviceJoined)
    assert presence.apply_state("d-1", state("training")) == DeviceBusy("d-1")


def test_info_is_kept_whichever_comes_first() -> None:
    info = SAMPLES["device_info"]
    assert isinstance(info, DeviceInfo)
    before = PresenceTable()
    before.store_info("d-1", info)
    before.apply_state("d-1", state("ready"))
    after = presence_after(state("ready"))
    after.store_info("d-1", info)
    assert before.devices["d-1"].info == after.devices["d-1"].info == info
    after.apply_state("d-1", state("lost"))
    assert after.devices["d-1"].info == info, "what a lost device is stays known"


def test_the_last_order_that_was_declined_is_known_until_the_device_is_forgotten() -> None:
    presence, decline = presence_after(state("ready")), SAMPLES["decline"]
    assert isinstance(decline, Decline)
    assert presence.last_decline("d-1") is None
    presence.store_decline("d-1", decline, 1.0)
    later = decline.model_copy(update={"reason": "too hot"})
    presence.store_decline("d-1", later, 2.0)
    presence.apply_state("d-1", state("lost"))
    assert presence.last_decline("d-1") == (later, 2.0)
    presence.forget("d-1")
    assert presence.last_decline("d-1") is None


def test_the_online_are_in_the_order_of_their_ids() -> None:
    presence = PresenceTable()
    for name in ("d-3", "d-1", "d-2"):
        presence.apply_state(name, state("ready"))
    assert [device.id for device in presence.online("digits")] == ["d-1", "d-2", "d-3"]


# --- what is retained from before a gap -----------------------------------------------------------


def test_what_is_retained_is_no_join_until_the_device_answers() -> None:
    presence = PresenceTable()
    presence.reconnected(100.0)
    assert presence.apply_state("d-1", state("ready"), retained=True, now_s=100.0) is None
    assert presence.online("digits") == []
    assert presence.apply_state("d-1", state("ready")) == DeviceJoined("d-1", "trainer")
    assert presence.online("digits")
    assert presence.due_s() is None, "nobody is asked any more"


def test_a_device_of_an_earlier_release_is_believed_since_it_answers_nothing() -> None:
    presence = PresenceTable()
    presence.reconnected(100.0, ["d-1"])
    old = state("ready", "0123456789abcdef")
    assert presence.apply_state("d-1", old, retained=True) == DeviceJoined("d-1", "trainer")
    assert presence.silent(100.0 + OFFLINE_S) == ([], False)
    assert presence.online("digits")


def test_who_does_not_answer_is_late_then_offline_and_has_left() -> None:
    presence = PresenceTable()
    presence.reconnected(100.0, ["d-1", "d-2"])
    presence.apply_state("d-1", state("ready"), retained=True, now_s=100.0)
    seen = []
    for now_s in (100.1, 100.0 + LATE_S, 100.0 + OFFLINE_S - 0.1, 100.0 + OFFLINE_S):
        left, again = presence.silent(now_s)
        seen.append((presence.devices["d-1"].status, [each.device_id for each in left], again))
    assert seen == [
        ("ready", [], False),
        ("late", [], True),
        ("late", [], True),
        ("offline", ["d-1", "d-2"], False),
    ]
    assert "d-2" not in presence.devices, "never seen"
    assert presence.due_s() is None
    assert presence.apply_state("d-1", state("ready", "b-2")) == DeviceJoined("d-1", "trainer")
    assert presence.devices["d-1"].status == "ready"


def test_a_retained_presence_does_not_replace_an_answer() -> None:
    presence = PresenceTable()
    presence.reconnected(100.0)
    presence.apply_state("d-1", state("ready", "b-2"))
    assert presence.apply_state("d-1", state("ready", "b-1"), retained=True, now_s=100.0) is None
    assert presence.devices["d-1"].state.boot_id == "b-2"
    assert presence.online("digits")


def test_after_a_gap_who_was_online_is_asked_again() -> None:
    presence = presence_after(state("ready"))
    presence.reconnected(100.0)
    assert presence.online("digits") == []
    assert [each.device_id for each in presence.silent(100.0 + OFFLINE_S)[0]] == ["d-1"]


def test_a_will_that_is_retained_counts_at_once() -> None:
    presence = PresenceTable()
    presence.reconnected(100.0, ["d-1"])
    assert presence.apply_state("d-1", state("lost"), retained=True) == DeviceLeft("d-1")
    assert presence.due_s() is None
