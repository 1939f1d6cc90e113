"""The registry: what was written is there after a restart, and a changed past shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_server.members.rules import AuditEvent, DeviceRecord, TokenRecord
from fl_server.members.store import AuditAltered, MemberRegistry
from fl_server.persistence.database import Database, JournalError, JournalUnusable, sa
from runtime.security.signing import SecretKey
from tests.integration.postgres import Cluster, running_cluster
from tests.versions import KEY

DEVICE = DeviceRecord("d-1", "0a" * 32, "d-1-x", "password", group="lab", admitted_at=1.5)
TOKEN = TokenRecord("join-1", "0b" * 32, "p", "", "default", 3, 0, 10.0, "operator", 1.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'r.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster").url
    database = Database(url)
    yield database
    with database.begin() as connection:
        for table in (
            *("rengo_devices", "rengo_tokens", "rengo_audit", "rengo_removed_audit"),
            "rengo_meta",
        ):
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    database.close()


def test_what_was_written_is_read(database: Database) -> None:
    registry = MemberRegistry(database, KEY)
    registry.write(
        [AuditEvent("operator", "token made", "join-1")], devices=[DEVICE], tokens=[TOKEN]
    )
    registry.write([], devices=[replace(DEVICE, status="revoked")], tokens=[replace(TOKEN, used=1)])
    again = MemberRegistry(database, KEY)
    assert again.devices() == [replace(DEVICE, status="revoked")]
    assert again.tokens() == [replace(TOKEN, used=1)]
    registry.write([], forget=["join-1"])
    assert again.tokens() == []


def stored(database: Database) -> list[tuple[str, str, str]]:
    query = "SELECT password, next_password, broker_password FROM rengo_devices, rengo_tokens"
    with database.begin() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query)).all()]


def test_no_password_stands_in_the_database(database: Database, tmp_path: Path) -> None:
    registry = MemberRegistry(database, KEY)
    device = replace(DEVICE, password="old-password-1", next_password="")
    token = replace(TOKEN, broker_password="token-password-3")
    registry.write([], devices=[device], tokens=[token])
    registry.write([], devices=[replace(device, next_password="new-password-2")])
    ((password, next_password, of_token),) = stored(database)
    assert all(each.startswith("hidden:") for each in (password, next_password, of_token))
    (found,) = MemberRegistry(database, KEY).devices()
    assert (found.password, found.next_password) == ("old-password-1", "new-password-2")
    assert MemberRegistry(database, KEY).tokens() == [token]
    registry.write([], devices=[replace(device, password="new-password-2")])
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"-password-" not in files
    with pytest.raises(JournalUnusable, match="password that this server's key does not open"):
        MemberRegistry(database, SecretKey.generate()).devices()


def test_passwords_of_before_are_hidden_once(database: Database, tmp_path: Path) -> None:
    MemberRegistry(database, KEY).write([], devices=[DEVICE], tokens=[TOKEN])
    with database.begin() as connection:
        change = "UPDATE rengo_devices SET password = 'clear-1', next_password = ''"
        connection.execute(sa.text(change))
        connection.execute(sa.text("UPDATE rengo_tokens SET broker_password = 'clear-2'"))
        version = "UPDATE rengo_meta SET value = 1 WHERE name = 'registry_version'"
        connection.execute(sa.text(version))
    for _ in range(2):
        again = MemberRegistry(database, KEY)
        assert again.devices() == [replace(DEVICE, password="clear-1", next_password="")]
        assert again.tokens() == [replace(TOKEN, broker_password="clear-2")]
    ((password, next_password, of_token),) = stored(database)
    assert (password[:7], next_password, of_token[:7]) == ("hidden:", "", "hidden:")
    database.checkpoint()
    assert b"clear-" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


# --- damaged rows -----------------------------------------------------------------------------

OTHER = replace(DEVICE, id="d-2", public_key="0c" * 32, client_id="d-2-x")
CHANGES = {
    "public_key": f"'{'1a' * 32}'",
    "client_id": "'d-1-y'",
    "password": "'hidden:00'",
    "next_password": "'p'",
    "rotation": "rotation + 1",
    "group": "'lac'",
    "project": "'eefault'",
    "index": "1",
    "count": "65537",
    "status": "'activd'",
    "token_id": "'t'",
    "admitted_by": "'x'",
    "admitted_at": "2.5",
    "digest": f"'{'00' * 32}'",
}


def change(database: Database, table: str, column: str, value: str, name: str) -> None:
    text = f"""UPDATE {table} SET "{column}" = {value} WHERE id = '{name}'"""
    with database.begin() as connection:
        assert connection.execute(sa.text(text)).rowcount == 1


def test_every_column_of_a_member_is_looked_at(database: Database) -> None:
    MemberRegistry(database, KEY)
    found = {each["name"] for each in columns(database, "rengo_devices")}
    assert found == {"id", *CHANGES}


def columns(database: Database, table: str) -> Any:
    with database.begin() as connection:
        return sa.inspect(connection).get_columns(table)


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_row_sets_its_member_aside_alone(
    database: Database, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    MemberRegistry(database, KEY).write([], devices=[DEVICE, OTHER], tokens=[TOKEN])
    change(database, "rengo_devices", column, CHANGES[column], "d-1")
    for _ in range(2):
        registry = MemberRegistry(database, KEY)
        damaged, sound = registry.devices()
        assert sound == OTHER
        assert (damaged.id, damaged.status, damaged.password) == ("d-1", "damaged", "")
        assert registry.tokens() == [TOKEN]
    (told,) = [each.getMessage() for each in caplog.records]
    assert "what the journal holds of device d-1 is damaged" in told
    assert [(each.act, each.subject) for each in registry.audit()] == [("device damaged", "d-1")]
    # it is admitted anew with the same name and key
    registry.write([], devices=[DEVICE])
    assert MemberRegistry(database, KEY).devices() == [DEVICE, OTHER]


def test_a_changed_name_does_not_stand_in_the_way_of_the_right_one(database: Database) -> None:
    MemberRegistry(database, KEY).write([], devices=[DEVICE, OTHER])
    change(database, "rengo_devices", "id", "'d-0'", "d-1")
    registry = MemberRegistry(database, KEY)
    assert [(each.id, each.status) for each in registry.devices()] == [
        ("d-0", "damaged"),
        ("d-2", "active"),
    ]
    registry.write([], devices=[DEVICE])
    assert MemberRegistry(database, KEY).devices() == [DEVICE, OTHER]


@pytest.mark.parametrize("status", ["revoking", "revoked"])
def test_what_reads_as_revoked_stays_revoked(database: Database, status: Any) -> None:
    MemberRegistry(database, KEY).write([], devices=[replace(DEVICE, status=status)])
    change(database, "rengo_devices", "rotation", "9", "d-1")
    (found,) = MemberRegistry(database, KEY).devices()
    assert found.status == "revoked"


def test_a_changed_token_is_good_for_nobody(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(TOKEN, id="join-2")
    MemberRegistry(database, KEY).write([], devices=[DEVICE], tokens=[TOKEN, other])
    change(database, "rengo_tokens", "uses", "1000", "join-1")
    registry = MemberRegistry(database, KEY)
    assert (registry.devices(), registry.tokens()) == ([DEVICE], [other])
    assert "token join-1 is damaged" in caplog.text
    assert [(each.act, each.subject) for each in registry.audit()] == [("token damaged", "join-1")]


def test_members_of_before_there_were_checksums_are_read(database: Database) -> None:
    MemberRegistry(database, KEY).write([], devices=[DEVICE, OTHER], tokens=[TOKEN])
    with database.begin() as connection:
        for table in ("rengo_devices", "rengo_tokens"):
            connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN digest"))
        version = "UPDATE rengo_meta SET value = 2 WHERE name = 'registry_version'"
        connection.execute(sa.text(version))
    for _ in range(2):
        again = MemberRegistry(database, KEY)
        assert (again.devices(), again.tokens()) == ([DEVICE, OTHER], [TOKEN])
    change(database, "rengo_devices", "group", "'x'", "d-1")
    assert MemberRegistry(database, KEY).devices()[0].status == "damaged"


def test_a_flipped_bit_on_the_disk_changes_no_member_in_silence(tmp_path: Path) -> None:
    """Each bit of one row of the file: its member is set aside, or the file is refused."""
    file, copy = tmp_path / "members.sqlite", tmp_path / "copy.sqlite"
    database = Database(file)
    third = replace(OTHER, id="d-3", public_key="0e" * 32, client_id="d-3-x")
    members = [DEVICE, OTHER, third]
    MemberRegistry(database, KEY).write([], devices=members)
    database.checkpoint()
    database.close()
    whole = file.read_bytes()
    (start,) = (at for at in [whole.find(b"d-2" + OTHER.public_key.encode())] if at > 0)
    end = whole.find(b"hidden:", start) + 400
    ends: Counter[str] = Counter()
    random = np.random.default_rng(7)
    for place in sorted(random.choice(np.arange(start - 24, end), 150, replace=False)):
        bit = 1 << int(random.integers(8))
        flipped = bytes([whole[place] ^ bit])
        copy.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        opened = Database(copy)
        try:
            registry = MemberRegistry(opened, KEY)
            found = registry.devices()
            registry.write([], devices=members)
            assert MemberRegistry(opened, KEY).devices() == members
        except JournalError:
            ends["refused"] += 1
            continue
        finally:
            opened.close()
            for each in tmp_path.glob("copy.sqlite*"):
                each.unlink()
        known = [each for each in found if each.status == "active"]
        assert [each for each in known if each not in members] == [], f"byte {place}, bit {bit}"
        ends["whole" if known == members else "set aside"] += 1
    assert ends["set aside"] > 50, ends


def test_a_change_and_its_entry_are_written_together_or_not_at_all(database: Database) -> None:
    registry = MemberRegistry(database, KEY)
    twin = replace(DEVICE, id="d-2")  # another id with the same key
    with pytest.raises(Exception, match=r"(?i)unique"):
        registry.write([AuditEvent("operator", "device admitted", "d-1")], devices=[DEVICE, twin])
    assert registry.devices() == []
    assert registry.audit() == []


def test_the_log_comes_page_by_page_the_latest_first(database: Database) -> None:
    registry = MemberRegistry(database, KEY)
    registry.write(
        [AuditEvent("operator", f"act {number}", detail={"n": number}) for number in range(5)]
    )
    assert [each.number for each in registry.audit(limit=2)] == [5, 4]
    assert [each.detail for each in registry.audit(before=3)] == [{"n": 1}, {"n": 0}]
    assert registry.verify_audit() == 5


@pytest.mark.parametrize(
    "meddling",
    [
        "UPDATE rengo_audit SET actor = 'somebody' WHERE number = 2",
        "UPDATE rengo_audit SET detail = '{}' WHERE number = 2",
        "UPDATE rengo_audit SET at = at + 1 WHERE number = 3",
        "DELETE FROM rengo_audit WHERE number = 1",
        "DELETE FROM rengo_audit WHERE number = 2",
        "UPDATE rengo_audit SET number = 9 WHERE number = 3",
        "INSERT INTO rengo_audit SELECT 4, at, actor, act, subject, detail, digest"
        " FROM rengo_audit WHERE number = 3",
    ],
)
def test_a_changed_past_shows(database: Database, meddling: str) -> None:
    registry = MemberRegistry(database, KEY)
    registry.write([AuditEvent("operator", "act", detail={"n": number}) for number in range(3)])
    assert registry.verify_audit() == 3
    with database.begin() as connection:
        connection.execute(sa.text(meddling))
    with pytest.raises(AuditAltered, match="was altered at entry"):
        registry.verify_audit()
