"""The device's journal: what is kept survives a kill; what is damaged is named."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from broker.wire.messages import Order
from fl_client.jobs.journal import JobJournal, JobJournalDamaged, JobJournalError
from fl_client.session.events import Job, JobKey, JobOutcome
from runtime.errors import ConfigError
from runtime.sqlite import set_schema_version
from tests.messages import EXCHANGE, SAMPLES

OUTCOME = JobOutcome(40, {"loss": 0.5}, 1.5, 1 << 20, "a" * 64, 1000)


def job(number: int = 1, action: str = "train", stage: str = "uploading") -> Job:
    order = SAMPLES["order"]
    assert isinstance(order, Order)
    key = JobKey(order.run_id, action, number, 1)  # type: ignore[arg-type]
    order = order.model_copy(update={"round": number, "action": action})
    return Job(key, order, stage, OUTCOME)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "jobs.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[JobJournal]:
    made = JobJournal(path)
    yield made
    made.close()


def test_what_is_kept_comes_back_whole(journal: JobJournal, path: Path) -> None:
    jobs = [job(1), job(2, stage="reporting"), job(2, "evaluate", "reporting")]
    for each in jobs:
        journal.store(each)
    journal.close()
    again = JobJournal(path)
    assert sorted(again.jobs(), key=lambda each: each.key) == sorted(
        jobs, key=lambda each: each.key
    )
    again.close()


def exchange(phase: str = "share", seq: int = 0) -> Job:
    order = EXCHANGE.model_copy(update={"phase": phase, "seq": seq})
    outcome = JobOutcome(0, {"norm": 1.0}, 0.5, payload=b"\x00\xff\xfe", keeps_state=True)
    return Job(JobKey.of(order), order, "reporting", outcome)


def test_the_exchanges_of_a_round_are_told_apart_and_their_answers_come_back(
    journal: JobJournal, path: Path
) -> None:
    jobs = [exchange(), exchange(seq=1), exchange("reveal"), job()]
    for each in jobs:
        journal.store(each)
    journal.remove(jobs[1].key)
    journal.close()
    again = JobJournal(path)
    found = {each.key: each for each in again.jobs()}
    again.close()
    assert found.keys() == {jobs[0].key, jobs[2].key, jobs[3].key}
    assert found[jobs[0].key].outcome == jobs[0].outcome
    # what the flow had said was used up: it is not written to the card
    assert found[jobs[0].key].order == jobs[0].order.model_copy(update={"payload": b""})


VERSION_1 = """
CREATE TABLE jobs (
    run_id TEXT, action TEXT, round INTEGER, attempt INTEGER,
    stage TEXT NOT NULL, wire_order TEXT NOT NULL, outcome TEXT NOT NULL,
    PRIMARY KEY (run_id, action, round, attempt)
)
"""


VERSION_2 = """
CREATE TABLE jobs (
    run_id TEXT, action TEXT, round INTEGER, attempt INTEGER, phase TEXT, seq INTEGER,
    stage TEXT NOT NULL, wire_order TEXT NOT NULL, outcome TEXT NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (run_id, action, round, attempt, phase, seq)
)
"""


def of_version_1(path: Path, *jobs: Job) -> None:
    """Write a file as Rengo did before there were exchanges."""
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(VERSION_1)
    db.execute("PRAGMA user_version=1")
    for each in jobs:
        assert each.outcome is not None
        outcome = asdict(each.outcome)
        del outcome["payload"]
        key = (each.key.run_id, each.key.action, each.key.round, each.key.attempt)
        row = (*key, each.stage, each.order.model_dump_json(), json.dumps(outcome))
        db.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()


def test_a_file_of_version_1_goes_on(path: Path) -> None:
    jobs = [job(1), job(2, stage="reporting"), job(2, "evaluate", "reporting")]
    of_version_1(path, *jobs)
    journal = JobJournal(path)
    journal.store(exchange())
    journal.remove(job(1).key)
    journal.close()
    again = JobJournal(path)
    assert {each.key for each in again.jobs()} == {each.key for each in [*jobs[1:], exchange()]}
    assert jobs[1] in again.jobs()
    assert again._db.execute("PRAGMA user_version").fetchone() == (3,)
    assert again._db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall() == [
        ("jobs",)
    ]
    again.close()


def test_a_file_of_version_2_goes_on(path: Path) -> None:
    journal = JobJournal(path)
    for each in (job(1), exchange()):
        journal.store(each)
    journal.close()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE old AS SELECT * FROM jobs")
    db.execute("DROP TABLE jobs")
    db.execute(VERSION_2)
    columns = "run_id, action, round, attempt, phase, seq, stage, wire_order, outcome, payload"
    db.execute(f"INSERT INTO jobs SELECT {columns} FROM old")
    db.execute("DROP TABLE old")
    db.execute("PRAGMA user_version=2")
    db.execute("PRAGMA application_id=0")
    db.commit()
    db.close()
    again = JobJournal(path)
    assert {each.key for each in again.jobs()} == {job(1).key, exchange().key}
    again.close()


@pytest.mark.parametrize("statement", range(8))
def test_a_kill_within_the_move_from_version_1_leaves_version_1(statement: int, path: Path) -> None:
    of_version_1(path, job(1), job(2))
    code = (
        "import os, signal, sqlite3, sys; from pathlib import Path\n"
        "from fl_client.jobs import journal\n"
        "class Mortal(sqlite3.Connection):\n"
        "    left = None\n"
        "    def execute(self, statement, *values):\n"
        "        if statement == 'BEGIN IMMEDIATE': self.left = int(sys.argv[2])\n"
        "        if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        if self.left is not None: self.left -= 1\n"
        "        return super().execute(statement, *values)\n"
        "connect = sqlite3.connect\n"
        "sqlite3.connect = lambda *a, **k: connect(*a, factory=Mortal, **k)\n"
        "journal.JobJournal(Path(sys.argv[1]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path), str(statement)], check=False)
    assert ended.returncode == -signal.SIGKILL
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
    journal = JobJournal(path)
    assert [each.key.round for each in journal.jobs()] == [1, 2]
    journal.close()


def test_a_later_stage_replaces(journal: JobJournal) -> None:
    journal.store(job())
    journal.store(replace(job(), stage="reporting"))
    assert [each.stage for each in journal.jobs()] == ["reporting"]


def test_a_job_that_is_forgotten_is_gone(journal: JobJournal) -> None:
    journal.store(job(1))
    journal.store(job(2))
    journal.remove(job(1).key)
    journal.remove(job(1).key)
    assert [each.key.round for each in journal.jobs()] == [2]


def test_a_keep_survives_a_kill(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fl_client.jobs.journal import JobJournal\n"
        "from tests.unit.fl_client.test_job_journal import job\n"
        "log = JobJournal(Path(sys.argv[1]))\n"
        "for number in range(1, 6): log.store(job(number))\n"
        "log.remove(job(3).key); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    journal = JobJournal(path)
    assert [each.key.round for each in journal.jobs()] == [1, 2, 4, 5]
    journal.close()


def test_it_outlives_its_process_spares_the_card_and_is_private(
    journal: JobJournal, path: Path
) -> None:
    (mode,) = journal._db.execute("PRAGMA journal_mode").fetchone()
    (level,) = journal._db.execute("PRAGMA synchronous").fetchone()
    assert (mode, level) == ("wal", 1)
    journal.store(job())
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each


@pytest.mark.parametrize("version", [4, 99])
def test_a_file_of_another_version_is_left_alone(version: int, path: Path) -> None:
    JobJournal(path).close()
    db = sqlite3.connect(path)
    set_schema_version(db, version)
    db.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"jobs\.sqlite was written by another.*{version}"):
        JobJournal(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(JobJournalDamaged, match=r"jobs\.sqlite.*not a database"):
        JobJournal(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("wire_order", "{"),
        ("wire_order", "{}"),
        ("wire_order", '{"epoch": 1}'),
        ("outcome", "["),
        ("outcome", "{}"),
        ("outcome", '{"num_examples": "many", "metrics": {}}'),
        ("outcome", '{"num_examples": 1, "metrics": {"loss": "x"}}'),
        ("stage", "dancing"),
        ("action", "delete"),
        ("round", "x"),
        ("phase", "PHASE"),
        ("seq", 3),
        ("payload", "text"),
    ],
)
def test_a_damaged_row_is_named_and_removed_and_the_others_stay(
    column: str, value: str, journal: JobJournal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.store(job(7))
    journal.store(job(8))
    journal._db.execute(f"UPDATE jobs SET {column} = ? WHERE round = 7", (value,))
    assert [each.key.round for each in journal.jobs()] == [8]
    assert "jobs.sqlite: the row of digits-1" in caplog.text
    caplog.clear()
    assert [each.key.round for each in journal.jobs()] == [8]
    assert not caplog.text


def test_a_table_of_other_columns_is_named(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE jobs (a, b)")
    db.close()
    with pytest.raises(JobJournalDamaged, match=r"jobs\.sqlite: table jobs already exists"):
        JobJournal(path)


def test_a_closed_journal_is_a_named_error(journal: JobJournal) -> None:
    journal.close()
    with pytest.raises(JobJournalError, match="closed"):
        journal.store(job())


def test_a_place_that_cannot_be_written_is_named(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"jobs\.sqlite"):
        JobJournal(path)


def test_a_full_disk_is_no_damage(path: Path) -> None:
    """Nobody must be told to remove a file that is in order."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(JobJournalError, match="is the disk full") as caught:
            JobJournal(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(caught.value, ConfigError)
    assert "remove" not in str(caught.value)
    JobJournal(path).close()
