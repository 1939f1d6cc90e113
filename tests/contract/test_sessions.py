"""What a broker keeps for clients that are away: it is listed, and ended by whoever may end it."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.brokers.mosquitto_sessions import lasting_sessions
from broker.session.end_session import end_session
from runtime.errors import TransportError
from tests.contract.broker_places import Place, kind, place
from tests.integration.broker_fixtures import BASE, USERS, Owner, eventually

__all__ = ["kind", "place"]

TASK_A = f"{BASE}/dev/dev-a/task"
RUNS = f"{BASE}/run/+/state"


def test_lasting_sessions_are_listed_until_they_are_ended(place: Place) -> None:
    place.session(Owner(), TASK_A, endpoint=place.endpoint("dev-a", "own-of-a"))
    names = {f"more-{number}" for number in range(20)}
    for name in names:
        place.session(Owner(), TASK_A, RUNS, endpoint=place.endpoint("dev-a", name)).stop()
    short = place.endpoint("dev-b", "short", persistent=False)
    place.session(Owner(), RUNS, endpoint=short)
    access = place.access()
    eventually(lambda: set(access.lasting_sessions()) == {"own-of-a", *names})
    for name in names:
        end_session(place.endpoint("server"), name)
    eventually(lambda: access.lasting_sessions() == ["own-of-a"])


def test_no_session_is_listed_where_there_was_none_or_no_broker_runs(place: Place) -> None:
    access = place.access()
    assert access.lasting_sessions() == []
    place.broker.stop()
    assert access.lasting_sessions() == []


def test_what_a_reload_does_not_change_is_still_listed(place: Place) -> None:
    place.session(Owner(), TASK_A, endpoint=place.endpoint("dev-a", "own-of-a"))
    access = place.access()
    eventually(lambda: access.lasting_sessions() == ["own-of-a"])
    access.apply(USERS)
    assert access.lasting_sessions() == ["own-of-a"]


def test_a_state_of_another_version_of_mosquitto_is_told(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    for data in (b"", b"\x00\xb5\x00mosquitto db" + bytes(4) + b"\0\0\0\x07", b"SQLite format 3\0"):
        state.write_bytes(data)
        with pytest.raises(TransportError, match="cannot be read"):
            lasting_sessions(state)
    assert lasting_sessions(tmp_path / "none") == []
