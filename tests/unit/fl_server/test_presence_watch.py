"""The server asks who is there, goes above a higher epoch, and tells what is wrong."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

import fl_server.shell.presence
from broker.wire.messages import DeviceState, IdentityNotice, Message
from broker.wire.topics import Topics
from fl_server.flows.events import DeviceJoined, DeviceLeft
from fl_server.members.presence import OFFLINE_S, PresenceTable
from fl_server.shell.connection import ServerConnection
from fl_server.shell.presence import PresenceActions, PresenceWatch
from runtime.errors import PeerError
from tests.members import Access, Rows, membership


class Ground:
    """A server's watch, its connection, and a clock that a test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(fl_server.shell.presence.time, "monotonic", lambda: self.now_s)
        self.topics, self.epoch = Topics("home"), 4
        self.asked: list[float] = []
        self.sent: list[tuple[str, Message]] = []
        self.told: list[object] = []
        self.ready: list[str] = []
        self.raised: list[int] = []
        self.rows = Rows()
        self.table = PresenceTable()
        actions = PresenceActions(
            lambda event, _: self.told.append(event), self.ready.append, self.raise_epoch
        )
        members = membership(self.rows, Access())
        self.watch = PresenceWatch(self.table, members, cast(ServerConnection, self), actions)

    def publish_online(self) -> None:
        self.asked.append(self.now_s)

    def publish(self, topic: str, message: Message) -> None:
        self.sent.append((topic, message))

    def raise_epoch(self, obeyed: int) -> None:
        self.raised.append(obeyed)
        self.epoch = obeyed + 1

    def say(self, status: Any = "ready", boot: str = "a-1", **changes: Any) -> None:
        retained = changes.pop("retained", False)
        state = DeviceState(status=status, boot_id=boot, tasks=["digits"], **changes)
        self.watch.apply("d", state, retained=retained)

    def pass_time(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while (due_s := self.watch.due_s()) <= until_s:
            self.now_s = max(self.now_s, due_s)
            self.watch.handle_due()
        self.now_s = until_s

    def acts(self) -> list[str]:
        return [act.act for act in self.rows.acts]


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Ground:
    return Ground(monkeypatch)


def test_who_left_while_the_server_was_away_has_left(ground: Ground) -> None:
    ground.watch.reconnected()
    ground.say(retained=True)
    assert ground.told == []
    ground.pass_time(OFFLINE_S + 1)
    assert ground.told == [DeviceLeft("d")]
    assert [each - 1000.0 for each in ground.asked] == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert ground.watch.due_s() == float("inf")


def test_who_answers_has_joined_and_is_asked_no_more(ground: Ground) -> None:
    ground.watch.reconnected()
    ground.say(retained=True)
    ground.say()
    ground.pass_time(600)
    assert ground.told == [DeviceJoined("d", "trainer")]
    assert ground.asked == [1000.0]


def test_a_member_of_which_nothing_is_retained_has_left_too(ground: Ground) -> None:
    ground.watch.reconnected()
    ground.pass_time(OFFLINE_S)
    assert ground.told == [DeviceLeft("d")]
    assert ground.asked == [1000.0], "nobody who was there is asked for its sake"


def test_the_server_goes_above_an_epoch_that_was_obeyed(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.say(epoch=9)
    ground.say(epoch=9)
    assert ground.raised == [9]
    assert ground.acts() == ["epoch raised"]
    assert "restored from an older backup" in caplog.text


def test_an_epoch_that_no_server_can_have_had_is_refused(ground: Ground) -> None:
    with pytest.raises(PeerError, match="no server can have had epoch"):
        ground.say(epoch=1 << 52)
    assert ground.raised == []


def test_one_device_cannot_raise_the_epoch_again_and_again(ground: Ground) -> None:
    for number in range(1000):
        ground.say(epoch=ground.epoch + 1 + number)
    assert len(ground.raised) == 5


def test_two_processes_are_told_to_both_and_logged_once(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(6):
            ground.say(boot=f"{'ab'[number % 2]}-{number}")
            ground.now_s += 15.0
    notices = [message for _, message in ground.sent]
    assert notices == [IdentityNotice(problem="shared")] * 4
    assert {topic for topic, _ in ground.sent} == {ground.topics.device("d", "task")}
    assert caplog.text.count("two processes use the identity of device d") == 1
    assert ground.acts() == ["identity used twice"]


def test_a_broker_that_restarts_ten_times_is_no_second_process(ground: Ground) -> None:
    for number in range(10):
        ground.watch.reconnected()
        ground.say(boot=f"a-{number}", retained=True)
        ground.say(status="lost", boot=f"a-{number - 1}")
        ground.say(boot=f"a-{number}")
    assert ground.sent == []


@pytest.mark.parametrize(
    ("reason", "problem"), [("unknown_dev", "unknown"), ("revoked_device", "revoked")]
)
def test_a_stranger_is_told_now_and_then(ground: Ground, reason: str, problem: Any) -> None:
    for _ in range(100):
        ground.watch.tell_stranger("x", reason)
    assert ground.sent == [(ground.topics.device("x", "task"), IdentityNotice(problem=problem))] * 4
