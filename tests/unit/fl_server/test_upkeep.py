"""A journal that is older than it was is refused, and what is too old in it is removed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from fl_server.dataplane.epoch import StoredEpoch
from fl_server.members.rules import AuditEvent
from fl_server.members.store import AuditAltered, MemberRegistry
from fl_server.persistence.database import JournalUnusable
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.persistence.mark import Mark, MarkFile
from fl_server.settings import JournalRetention
from fl_server.shell.upkeep import JournalUpkeep
from runtime.errors import ConfigError, Unavailable
from storage.store.memory import MemoryStore
from storage.versions.keys import epoch_key
from tests.versions import KEY

ACT = AuditEvent("operator", "device admitted", "d-1")


@dataclass
class Life:
    """One life of a server, as far as its journal goes."""

    folder: Path
    retention: JournalRetention = field(default_factory=JournalRetention)

    def __post_init__(self) -> None:
        path = self.folder / "journal.sqlite"
        self.journal = Journal(f"sqlite:///{path}")
        self.registry = MemberRegistry(self.journal.database, KEY)
        self.mark = path.with_name("journal.sqlite.mark")
        history = RunHistory(self.journal.database)
        self.upkeep = JournalUpkeep(
            self.journal, self.registry, history, self.retention, MarkFile(self.mark)
        )

    def begin(self) -> Life:
        self.upkeep.require_latest()
        self.epoch = self.journal.next_epoch()
        self.upkeep.begin()
        return self

    def act(self, subject: str = "d-1") -> None:
        self.registry.write([AuditEvent("operator", "device admitted", subject)])

    def kill(self) -> None:
        """End it without a word; what SQLite has on the disk stays as it is."""
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            shutil.copy(self.folder / name, self.folder / f"kept-{name}")
        self.journal.close()
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            (self.folder / f"kept-{name}").replace(self.folder / name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [time.monotonic()]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    return now_s


def refused(folder: Path) -> str:
    with pytest.raises(JournalUnusable) as caught:
        Life(folder).begin()
    assert isinstance(caught.value, ConfigError), "exit code 2"
    return str(caught.value)


def test_what_was_reached_is_marked_within_a_second(tmp_path: Path, clock: list[float]) -> None:
    life = Life(tmp_path).begin()
    assert MarkFile(life.mark).read() == Mark(1, 0, "")
    for _ in range(3):
        life.act()
    digest = life.registry.audit(limit=1)[0].digest
    assert life.upkeep.due_s() <= clock[0] + 1.0
    clock[0] += 1.0
    life.upkeep.handle_due()
    assert MarkFile(life.mark).read() == Mark(1, 3, digest)
    assert life.mark.stat().st_mode & 0o777 == 0o600
    life.upkeep.handle_due()
    assert life.upkeep.due_s() > clock[0] + 200, "nothing wakes an idle server"
    life.journal.close()


def test_a_journal_that_was_only_read_is_not_marked_again(
    tmp_path: Path, clock: list[float]
) -> None:
    life = Life(tmp_path).begin()
    before = life.mark.stat().st_ino
    for _ in range(3):
        life.registry.audit()
        clock[0] += 1.0
        life.upkeep.due_s()
        life.upkeep.handle_due()
    assert life.mark.stat().st_ino == before
    life.journal.close()


def test_an_older_copy_is_refused_until_its_mark_is_removed(tmp_path: Path) -> None:
    life = Life(tmp_path).begin()
    life.journal.close()
    shutil.copy(tmp_path / "journal.sqlite", tmp_path / "backup")
    again = Life(tmp_path).begin()
    again.journal.close()
    shutil.copy(tmp_path / "backup", tmp_path / "journal.sqlite")
    said = refused(tmp_path)
    assert "is older than it was: its server has started 1 times, and 2 are marked" in said
    assert f"remove {life.mark}" in said
    life.mark.unlink()
    Life(tmp_path).begin().journal.close()


def test_a_journal_that_is_gone_is_not_begun_anew_in_silence(tmp_path: Path) -> None:
    Life(tmp_path).begin().journal.close()
    (tmp_path / "journal.sqlite").unlink()
    assert "has started 0 times, and 1 are marked" in refused(tmp_path)


def test_another_audit_log_is_refused(tmp_path: Path) -> None:
    life = Life(tmp_path).begin()
    life.act("d-1")
    life.act("d-2")
    life.upkeep.end()
    life.journal.close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("UPDATE rengo_audit SET digest = 'x' WHERE number = 2")
    db.close()
    assert "entry 2 of its audit log is another" in refused(tmp_path)
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("DELETE FROM rengo_audit")
    db.close()
    assert "entry 2 of its audit log is missing" in refused(tmp_path)


def test_no_flipped_bit_of_the_log_gives_an_older_journal_in_silence(tmp_path: Path) -> None:
    """All stands in the log, as in a small site that was killed in its first minutes."""
    made = tmp_path / "made"
    made.mkdir()
    life = Life(made)
    life.upkeep.require_latest()
    life.journal.next_epoch()
    for number in range(4):
        life.act(f"d-{number}")
    life.upkeep.end()
    life.kill()
    log = (made / "journal.sqlite-wal").read_bytes()
    assert len(log) > 3000
    told = []
    for place in [*range(0, 64, 3), 3000, *range(5, len(log), len(log) // 60)]:
        folder = tmp_path / str(place)
        shutil.copytree(made, folder)
        flipped = log[:place] + bytes([log[place] ^ 1]) + log[place + 1 :]
        (folder / "journal.sqlite-wal").write_bytes(flipped)
        try:
            again = Life(folder)
            again.upkeep.require_latest()
        except JournalUnusable as error:
            told.append((place, str(error)))
            continue
        assert again.registry.verify_audit() == 4, place
        again.journal.close()
    assert 3000 in dict(told)
    assert "its log journal.sqlite-wal is damaged" in dict(told)[3000]
    assert len(told) > 50


def test_a_start_leaves_nothing_in_the_log_alone(tmp_path: Path, clock: list[float]) -> None:
    life = Life(tmp_path).begin()
    log = tmp_path / "journal.sqlite-wal"
    assert log.stat().st_size == 0
    life.act()
    assert log.stat().st_size > 0
    life.upkeep.due_s()
    clock[0] += 301
    life.upkeep.handle_due()
    assert log.stat().st_size == 0
    copied = tmp_path / "copy"
    copied.mkdir()
    shutil.copy(tmp_path / "journal.sqlite", copied)
    assert Life(copied).registry.verify_audit() == 1, "a copy of the file alone is a backup"
    life.journal.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": 9, "check": "0"}', "null"])
def test_a_damaged_mark_is_written_anew(text: str, tmp_path: Path) -> None:
    life = Life(tmp_path).begin()
    life.journal.close()
    life.mark.write_text(text)
    Life(tmp_path).begin().journal.close()
    assert MarkFile(life.mark).read().epoch == 2


def test_every_flipped_bit_of_a_mark_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    MarkFile(path).write(Mark(7, 3, "a" * 64))
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert MarkFile(path).read() in {Mark(), Mark(7, 3, "a" * 64)}


# --- retention ------------------------------------------------------------------------------------


def test_old_entries_of_the_audit_log_go_and_the_rest_is_verified(tmp_path: Path) -> None:
    life = Life(tmp_path, JournalRetention(audit_days=1)).begin()
    for number in range(5):
        life.act(f"d-{number}")
    fourth = life.registry.audit()[1]
    assert life.registry.remove_audit(fourth.at) == 3
    assert [entry.number for entry in life.registry.audit()] == [5, 4]
    assert life.registry.verify_audit() == 5
    life.act("d-5")
    assert life.registry.verify_audit() == 6
    with life.journal.database.begin() as connection:
        connection.execute(sa.text("DELETE FROM rengo_audit WHERE number = 4"))
    with pytest.raises(AuditAltered, match="entry 4"):
        life.registry.verify_audit()
    life.journal.close()


def test_the_latest_entry_stays_however_old(tmp_path: Path) -> None:
    life = Life(tmp_path).begin()
    assert life.registry.remove_audit(time.time() + 10) == 0
    life.act()
    assert life.registry.remove_audit(time.time() + 10) == 0
    life.act()
    assert life.registry.remove_audit(time.time() + 10) == 1
    assert life.registry.remove_audit(time.time() + 10) == 0
    assert life.registry.verify_audit() == 2
    life.journal.close()


def test_the_defaults_of_the_retention() -> None:
    assert JournalRetention() == JournalRetention(facts_days=30, audit_days=730)


# --- the epoch in the store -----------------------------------------------------------------------


def test_a_lost_journal_begins_above_the_epoch_that_the_store_has_seen(tmp_path: Path) -> None:
    stored = StoredEpoch(MemoryStore(), "default")
    assert stored.read() == 0
    stored.write(41)
    journal = Journal(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    assert journal.next_epoch(above=stored.read()) == 42
    assert journal.next_epoch(above=stored.read()) == 43
    journal.close()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"[" * 1024, b"7", b'{"epoch": "x"}', b'{"epoch": -3}'),
        # no message holds the one after it
        *(b'{"epoch": 9007199254740991}', b'{"epoch": 1e400}', b'{"epoch": %s}' % (b"9" * 900)),
    ],
)
def test_a_damaged_epoch_in_the_store_stops_no_server(content: bytes) -> None:
    store = MemoryStore()
    store.put(epoch_key("default"), content)
    stored = StoredEpoch(store, "default")
    assert stored.read() == 0
    stored.write(3)
    assert json.loads(b"".join(_read(store))) == {"epoch": 3}


def _read(store: MemoryStore) -> Iterator[bytes]:
    with store.open(epoch_key("default")) as stream:
        yield stream.read(100)


def test_a_store_that_refuses_one_key_stops_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()

    def fails(*_: object) -> None:
        raise Unavailable("the store answered 500")

    monkeypatch.setattr(store, "open", fails)
    monkeypatch.setattr(store, "put", fails)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    stored = StoredEpoch(store, "default")
    assert stored.read() == 0
    stored.write(3)
