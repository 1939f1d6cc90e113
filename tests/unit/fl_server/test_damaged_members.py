"""A member whose row in the database is damaged: seen, admitted nowhere, and admitted anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.wire.topics import Topics, parse
from fl_server.persistence.database import sa
from runtime.errors import PeerError
from tests.operations import Disk, Life
from tests.unit.fl_server.test_enrolment import OTHER_KEY, TOKEN, claim, enrolled
from tests.unit.fl_server.test_operations import device


def statuses(life: Life) -> dict[str, str]:
    rows = life.do("devices_ls")["devices"]
    return {row["id"]: row["status"] for row in rows if row["id"] != "e-1"}


@pytest.fixture
def life(tmp_path: Path) -> Any:
    """A server that is started again after a bit of one of its two devices has flipped."""
    disk = Disk(tmp_path)
    before = Life(disk)
    before.do("devices_admit", devices=[device("d-1"), device("d-2")])
    with before.journal.database.begin() as connection:
        change = "UPDATE rengo_devices SET client_id = 'd-1-3' WHERE id = 'd-1'"
        assert connection.execute(sa.text(change)).rowcount == 1
    before.end()
    again = Life(disk)
    yield again
    again.end()


def test_it_is_named_and_the_broker_and_the_server_do_not_know_it(life: Life) -> None:
    assert statuses(life) == {"d-1": "damaged", "d-2": "enrolled"}
    assert "device damaged" in [each["act"] for each in life.do("audit_ls")["entries"]]
    topics = Topics("home")
    with pytest.raises(PeerError, match="nobody is known") as caught:
        life.members.key_of(parse(topics.device("d-1", "state")))
    assert caught.value.reason == "unknown_dev", "so it is told to enrol again"
    life.members.key_of(parse(topics.device("d-2", "state")))
    assert len(life.members.client_ids()) == 1 + len(life.members.operators) + 1


def test_the_operator_admits_it_again_as_it_was(life: Life) -> None:
    assert life.do("devices_admit", devices=[device("d-1")])["revoked"] == []
    assert statuses(life) == {"d-1": "enrolled", "d-2": "enrolled"}
    later = Life(life.disk)
    assert statuses(later) == {"d-1": "enrolled", "d-2": "enrolled"}
    later.end()


def test_it_can_be_revoked(life: Life) -> None:
    life.do("devices_revoke", device_id="d-1")
    assert statuses(life) == {"d-1": "revoked", "d-2": "enrolled"}
    assert life.do("devices_admit", devices=[device("d-1")])["revoked"] == ["d-1"]
    later = Life(life.disk)
    assert statuses(later) == {"d-1": "revoked", "d-2": "enrolled"}
    later.end()


def test_it_enrols_again_by_a_new_token_with_its_name_and_its_key() -> None:
    member, _ = enrolled()
    damaged = replace(member, status="damaged", password="")
    token = replace(TOKEN, id="join-2")
    again = claim(token, (damaged,), name=member.id)
    assert (again.refusal, again.device) == (
        "",
        replace(member, token_id="join-2", client_id="device-1f-secret"),
    )
    # one of another name, which has its key
    elsewhere = replace(damaged, id="device-1g")
    assert claim(token, (elsewhere,), name=member.id).refusal == ""
    assert claim(token, (damaged,), key=OTHER_KEY, name=member.id).refusal == ""
