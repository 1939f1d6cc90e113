from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.session.outbox import Outbox, OutboxDamaged, OutboxError, OutboxFull, OutboxRow
from broker.session.resend import MAX_UNACKNOWLEDGED, ResendQueue
from broker.wire.limits import MAX_MESSAGE_BYTES, MessageTooLarge
from runtime.errors import ConfigError
from runtime.sqlite import set_schema_version


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "outbox.db", max_rows=100, max_bytes=1000)
    yield made
    made.close()


def test_a_put_is_there_after_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from broker.session.outbox import Outbox\n"
        "o = Outbox(Path(sys.argv[1])); o.put('k', 'a/b', b'payload', retain=True, until='confirm')"
        "\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    outbox = Outbox(path)
    assert [(r.key, r.topic, r.payload, r.retain, r.until) for r in outbox.pending()] == [
        ("k", "a/b", b"payload", True, "confirm")
    ]
    assert (len(outbox), outbox.size_bytes) == (1, 7)
    outbox.close()


def test_the_same_key_replaces_and_moves_to_the_end(outbox: Outbox) -> None:
    outbox.put("a", "t", b"1", until="puback")
    old = outbox.pending()[0].seq
    outbox.put("b", "t", b"2", until="puback")
    outbox.put("a", "t", b"33", until="puback")
    assert [(row.key, row.payload) for row in outbox.pending()] == [("b", b"2"), ("a", b"33")]
    assert (len(outbox), outbox.size_bytes) == (2, 3)
    assert outbox.discard([old]) == 0, "an answer to the old put must not remove the new one"
    assert outbox.get(old) is None


def test_confirm_says_whether_there_was_one(outbox: Outbox) -> None:
    outbox.put("a", "t", b"1", until="confirm")
    assert outbox.confirm("a")
    assert not outbox.confirm("a")
    assert (len(outbox), outbox.size_bytes, outbox.pending()) == (0, 0, [])


def test_a_sequence_number_is_never_used_again(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    outbox.put("a", "t", b"", until="puback")
    first = outbox.newest_seq
    outbox.confirm("a")
    outbox.close()
    outbox = Outbox(path)
    outbox.put("b", "t", b"", until="puback")
    assert outbox.newest_seq > first
    outbox.close()


def test_the_caps_are_named_and_store_nothing(outbox: Outbox) -> None:
    outbox.put("big", "t", bytes(900), until="puback")
    with pytest.raises(OutboxFull, match="900 of 1000 bytes"):
        outbox.put("more", "t", bytes(101), until="puback")
    outbox.put("big", "t", bytes(1000), until="puback")  # a replacement counts once
    outbox.confirm("big")
    for number in range(100):
        outbox.put(f"k{number}", "t", b"", until="puback")
    with pytest.raises(OutboxFull, match="100 of 100 messages"):
        outbox.put("one more", "t", b"", until="puback")
    assert len(outbox) == 100


def test_what_no_broker_takes_is_refused(outbox: Outbox) -> None:
    with pytest.raises(MessageTooLarge):
        outbox.put("k", "t", bytes(MAX_MESSAGE_BYTES + 1), until="puback")
    with pytest.raises(ConfigError):
        outbox.put("k", "a/#", b"", until="puback")
    assert len(outbox) == 0


def test_two_processes_cannot_share_a_file(outbox: Outbox) -> None:
    code = (
        "import sys; from pathlib import Path; from broker.session.outbox import Outbox\n"
        "from runtime.errors import ConfigError\n"
        "try: Outbox(Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(outbox.path)], capture_output=True, text=True, check=True
    )
    assert "in use by another process" in shown.stdout


def test_a_file_that_is_no_outbox_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(OutboxError, match=r"outbox\.db.*not a database"):
        Outbox(path)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    set_schema_version(db, 99)
    db.close()
    with pytest.raises(ConfigError, match="newer Rengo"):
        Outbox(path)


def test_a_number_that_no_version_wrote_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(OutboxDamaged, match="schema number 99 does not agree"):
        Outbox(path)


def test_a_file_of_version_1_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,"
        " topic TEXT NOT NULL, payload BLOB NOT NULL, retain INTEGER NOT NULL, until TEXT NOT NULL)"
    )
    row = (5, "k", "t", b"x", 1, "confirm")
    db.execute("INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?)", row)
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    for _ in range(2):
        outbox = Outbox(path)
        assert outbox.pending() == [OutboxRow(5, "k", "t", b"x", True, "confirm")]
        outbox.close()


def test_the_file_is_private(outbox: Outbox) -> None:
    outbox.put("k", "t", b"x", until="puback")
    for path in outbox.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_it_is_durable_by_its_settings(outbox: Outbox) -> None:
    (mode,) = outbox._db.execute("PRAGMA journal_mode").fetchone()
    (level,) = outbox._db.execute("PRAGMA synchronous").fetchone()
    assert (mode, level) == ("wal", 2)


def test_threads_may_put_and_confirm_together(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")

    def work(name: int) -> None:
        for number in range(20):
            outbox.put(f"{name}-{number}", "t", b"xy", until="confirm")
            if number % 2:
                outbox.confirm(f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(outbox), outbox.size_bytes) == (40, 80)
    assert len(outbox.pending()) == 40
    outbox.close()


class Wire:
    """Takes rows as a connection does, with message ids that count up."""

    def __init__(self) -> None:
        self.sent: list[OutboxRow] = []
        self.open = True

    def __call__(self, row: OutboxRow) -> int | None:
        if not self.open:
            return None
        self.sent.append(row)
        return len(self.sent)

    @property
    def keys(self) -> list[str]:
        return [row.key for row in self.sent]


def test_replay_sends_each_row_once_per_connection(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("a", "t", b"", until="puback")
    outbox.put("b", "t", b"", until="confirm")
    for now in (0.0, 1.0, 2.0):
        resend.send_due(wire, now)
    assert wire.keys == ["a", "b"]
    assert not resend.all_acknowledged
    resend.reset()
    resend.send_due(wire, 3.0)
    assert wire.keys == ["a", "b", "a", "b"]


def test_replay_removes_at_puback_only_what_waits_for_no_more(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("a", "t", b"", until="puback")
    outbox.put("b", "t", b"", until="confirm")
    resend.send_due(wire, 0.0)
    resend.handle_acknowledged([1, 2, 77], 1.0)
    assert [row.key for row in outbox.pending()] == ["b"]
    assert resend.all_acknowledged


def test_replay_sends_again_until_confirmed(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("b", "t", b"", until="confirm")
    resend.send_due(wire, 0.0)
    resend.handle_acknowledged([1], 1.0)
    assert resend.next_due_s() == 11.0
    resend.send_due(wire, 10.9)
    assert wire.keys == ["b"]
    resend.send_due(wire, 11.0)
    assert wire.keys == ["b", "b"]
    resend.handle_acknowledged([2], 11.0)
    outbox.confirm("b")
    resend.send_due(wire, 21.0)
    assert wire.keys == ["b", "b"]
    assert resend.next_due_s() is None


def test_replay_does_not_let_an_answer_to_the_old_remove_the_new(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("a", "t", b"old", until="puback")
    resend.send_due(wire, 0.0)
    outbox.put("a", "t", b"new", until="puback")
    resend.handle_acknowledged([1], 1.0)
    resend.send_due(wire, 1.0)
    assert [row.payload for row in wire.sent] == [b"old", b"new"]


def test_replay_keeps_a_window_and_goes_on_as_answers_come(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    for number in range(80):
        outbox.put(f"k{number}", "t", b"", until="puback")
    resend.send_due(wire, 0.0)
    assert len(wire.sent) == MAX_UNACKNOWLEDGED
    done = 0
    while done < len(wire.sent):
        resend.handle_acknowledged(list(range(done + 1, len(wire.sent) + 1)), 1.0)
        done = len(wire.sent)
        resend.send_due(wire, 1.0)
    assert wire.keys == [f"k{number}" for number in range(80)]
    assert resend.all_acknowledged
    assert len(outbox) == 0


def test_replay_goes_on_where_a_closed_connection_stopped_it(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("a", "t", b"", until="puback")
    wire.open = False
    resend.send_due(wire, 0.0)
    assert not resend.all_acknowledged
    wire.open = True
    resend.send_due(wire, 0.0)
    assert wire.keys == ["a"]


def test_replay_sends_again_what_the_broker_refused(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("a", "t", b"", until="puback")
    resend.send_due(wire, 0.0)
    resend.handle_refused(1, 0.0)
    assert len(outbox) == 1
    resend.send_due(wire, 10.0)
    assert wire.keys == ["a", "a"]
    resend.handle_acknowledged([2], 11.0)
    assert len(outbox) == 0


def test_replay_tells_a_broker_that_stopped_answering(outbox: Outbox) -> None:
    resend, wire = ResendQueue(outbox, 10.0), Wire()
    outbox.put("a", "t", b"", until="puback")
    resend.send_due(wire, 0.0)
    resend.send_due(wire, 29.0)
    assert not resend.stalled(29.0)
    assert wire.keys == ["a"], "a slow answer is no reason to send it twice"
    assert resend.stalled(30.1)
