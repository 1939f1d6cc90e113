"""The device's journal: what is kept survives a kill; what is damaged is named."""

from __future__ import annotations

import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.wire.messages import Order
from fl_client.jobs.journal import JobJournal, JobJournalDamaged, JobJournalError
from fl_client.session.events import Job, JobKey, Outcome
from runtime.errors import ConfigError
from tests.messages import SAMPLES

OUTCOME = Outcome(40, {"loss": 0.5}, 1.5, 1 << 20, "a" * 64, 1000)


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
def worklog(path: Path) -> Iterator[JobJournal]:
    made = JobJournal(path)
    yield made
    made.close()


def test_what_is_kept_comes_back_whole(worklog: JobJournal, path: Path) -> None:
    jobs = [job(1), job(2, stage="reporting"), job(2, "evaluate", "reporting")]
    for each in jobs:
        worklog.keep(each)
    worklog.close()
    again = JobJournal(path)
    assert sorted(again.jobs(), key=lambda each: each.key) == sorted(
        jobs, key=lambda each: each.key
    )
    again.close()


def test_a_later_stage_replaces(worklog: JobJournal) -> None:
    worklog.keep(job())
    worklog.keep(replace(job(), stage="reporting"))
    assert [each.stage for each in worklog.jobs()] == ["reporting"]


def test_a_job_that_is_forgotten_is_gone(worklog: JobJournal) -> None:
    worklog.keep(job(1))
    worklog.keep(job(2))
    worklog.forget(job(1).key)
    worklog.forget(job(1).key)
    assert [each.key.round for each in worklog.jobs()] == [2]


def test_a_keep_survives_a_kill(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fl_client.jobs.journal import JobJournal; from tests.unit.test_worklog import job\n"
        "log = JobJournal(Path(sys.argv[1]))\n"
        "for number in range(1, 6): log.keep(job(number))\n"
        "log.forget(job(3).key); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    worklog = JobJournal(path)
    assert [each.key.round for each in worklog.jobs()] == [1, 2, 4, 5]
    worklog.close()


def test_it_outlives_its_process_spares_the_card_and_is_private(
    worklog: JobJournal, path: Path
) -> None:
    (mode,) = worklog._db.execute("PRAGMA journal_mode").fetchone()
    (level,) = worklog._db.execute("PRAGMA synchronous").fetchone()
    assert (mode, level) == ("wal", 1)
    worklog.keep(job())
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each


@pytest.mark.parametrize("version", [2, 99, -1])
def test_a_file_of_another_version_is_left_alone(version: int, path: Path) -> None:
    JobJournal(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={version}")
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
    ],
)
def test_a_damaged_row_is_named_and_removed_and_the_others_stay(
    column: str, value: str, worklog: JobJournal, caplog: pytest.LogCaptureFixture
) -> None:
    worklog.keep(job(7))
    worklog.keep(job(8))
    worklog._db.execute(f"UPDATE jobs SET {column} = ? WHERE round = 7", (value,))
    assert [each.key.round for each in worklog.jobs()] == [8]
    assert "jobs.sqlite: the row of digits-1" in caplog.text
    caplog.clear()
    assert [each.key.round for each in worklog.jobs()] == [8]
    assert not caplog.text


def test_a_table_of_other_columns_is_named(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE jobs (a, b)")
    db.close()
    worklog = JobJournal(path)
    with pytest.raises(JobJournalError, match=r"jobs\.sqlite"):
        worklog.keep(job())
    worklog.close()


def test_a_closed_journal_is_a_named_error(worklog: JobJournal) -> None:
    worklog.close()
    with pytest.raises(JobJournalError, match="closed"):
        worklog.keep(job())


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
