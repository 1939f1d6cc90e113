"""Sessions at the broker that are no member's own are ended; those of members never."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

import fl_server.shell.devices
from fl_server.dataplane.workers import Workers
from fl_server.members.gate import MessageGate
from fl_server.members.rules import DeviceRecord
from fl_server.shell.connection import ServerConnection
from fl_server.shell.devices import DeviceAdmission
from runtime.errors import TransportError
from tests.members import MEMBER, SERVER, Access, Rows, Tasks, membership


class Ground:
    """A server whose clock a test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(fl_server.shell.devices.time, "monotonic", lambda: self.now_s)
        self.access, self.rows, self.tasks = Access(), Rows(), Tasks()
        self.members = membership(self.rows, self.access)
        self.admission = DeviceAdmission(
            self.members,
            cast(MessageGate, None),
            cast(Workers, self.tasks),
            cast(ServerConnection, None),
            lambda _: None,
        )

    def pass_time(self, seconds: float) -> None:
        """Poll the broker every 5 s, and do all that follows."""
        for _ in range(int(seconds / 5)):
            self.now_s += 5.0
            self.admission.poll_broker()
            self.tasks.run_all()

    def ended(self) -> list[int]:
        return [act.detail["count"] for act in self.rows.acts if act.act == "sessions ended"]


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Ground:
    return Ground(monkeypatch)


def test_foreign_sessions_are_ended_within_a_minute_and_own_ones_stay(ground: Ground) -> None:
    own = [MEMBER.client_id, SERVER.client_id]
    ground.access.sessions = [*own, *(f"more-{n}" for n in range(300))]
    ground.pass_time(5)
    assert ground.access.sessions == own
    ground.access.sessions += ["again", "and-again"]
    ground.pass_time(60)
    assert ground.access.sessions == own
    assert ground.ended() == [300, 2]


def test_a_revoked_device_has_no_own_session(ground: Ground) -> None:
    ground.members.devices["d"] = replace(MEMBER, status="revoked")
    ground.access.sessions = [MEMBER.client_id, SERVER.client_id]
    ground.pass_time(5)
    assert ground.access.sessions == [SERVER.client_id]


def test_a_device_that_joins_while_the_sessions_are_listed_keeps_its_own(ground: Ground) -> None:
    joining = DeviceRecord("e", "0" * 64, "e-1", "password-of-e")
    listed: Callable[[], list[str]] = ground.access.lasting_sessions

    def join_meanwhile() -> list[str]:
        ground.members.devices["e"] = joining
        ground.access.sessions.append("e-1")
        return listed()

    ground.access.lasting_sessions = join_meanwhile  # type: ignore[method-assign]
    ground.pass_time(5)
    assert ground.access.sessions == ["e-1"]
    assert ground.ended() == []


def test_a_broker_that_does_not_tell_is_asked_again(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    listed = ground.access.lasting_sessions
    ground.access.sessions = ["more"]

    def fail() -> list[str]:
        raise TransportError("no answer")

    ground.access.lasting_sessions = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        ground.pass_time(5)
    assert "no answer" in caplog.text
    ground.access.lasting_sessions = listed  # type: ignore[method-assign]
    ground.pass_time(60)
    assert ground.access.sessions == []
