"""A device's databases after any damage: opened, or set aside and begun anew, never refused."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.session.outbox import Outbox, OutboxDamaged
from fl_client.jobs.journal import JobJournal, JobJournalDamaged
from runtime.errors import ConfigError
from runtime.sqlite import opened_or_begun_anew
from tests.unit.fl_client.test_job_journal import job

SEED, CASES = 11, 60


def open_outbox(path: Path) -> Outbox:
    return opened_or_begun_anew(Outbox, path, OutboxDamaged, "nothing")


def open_journal(path: Path) -> JobJournal:
    return opened_or_begun_anew(JobJournal, path, JobJournalDamaged, "nothing")


def fill_outbox(path: Path) -> None:
    outbox = Outbox(path)
    for number in range(30):
        outbox.put(f"result/r/train/{number}/1", "t", bytes(900), until="confirm")
    outbox.close()
    outbox = Outbox(path)
    outbox.confirm("result/r/train/7/1")
    keep_beside(path)
    outbox.close()


def fill_journal(path: Path) -> None:
    journal = JobJournal(path)
    for number in range(1, 12):
        journal.store(job(number))
    journal.close()
    journal = JobJournal(path)
    journal.remove(job(3).key)
    keep_beside(path)
    journal.close()


def keep_beside(path: Path) -> None:
    """Keep the files as a kill leaves them: what was written last is in the log."""
    for name in (path.name, f"{path.name}-wal"):
        shutil.copyfile(path.with_name(name), path.with_name(f"kept-{name}"))


def use_outbox(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.put("new", "t", b"x", until="confirm")
    assert [row.key for row in outbox.pending()][-1] == "new"
    outbox.close()


def use_journal(path: Path) -> None:
    journal = open_journal(path)
    journal.store(job(50))
    assert journal.jobs()[-1].key.round == 50
    journal.close()


def damaged(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + bytes(len(data) - start)
        case 2:
            length = min(4096, len(data) - start)
            return data[:start] + rng.randbytes(length) + data[start + length :]
        case _:
            return bytes(len(data))


@pytest.mark.parametrize(("fill", "use"), [(fill_outbox, use_outbox), (fill_journal, use_journal)])
def test_no_damage_keeps_an_agent_from_starting(
    fill: Callable[[Path], None], use: Callable[[Path], None], tmp_path: Path
) -> None:
    path, rng = tmp_path / "a.sqlite", random.Random(SEED)
    fill(path)
    for _ in range(CASES):
        for name in (path.name, f"{path.name}-wal"):
            shutil.copyfile(path.with_name(f"kept-{name}"), path.with_name(name))
        hit = path.with_name(rng.choice([path.name, f"{path.name}-wal"]))
        hit.write_bytes(damaged(hit.read_bytes(), rng))
        use(path)
    left = {each.name for each in tmp_path.iterdir() if not each.name.startswith("kept-")}
    known = {path.name, f"{path.name}.damaged"}
    assert left <= known | {f"{name}-wal" for name in known}
    assert f"{path.name}.damaged" in left


def test_the_damaged_file_stays_as_it_was_and_the_log_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.sqlite"
    for content in (b"no database" * 100, b"another one" * 100):
        path.write_bytes(content)
        opened_or_begun_anew(Outbox, path, OutboxDamaged, "the results").close()
        assert path.with_name("a.sqlite.damaged").read_bytes() == content
    assert "a.sqlite.damaged now and a new one is begun: the results" in caplog.text
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_file_does_not_find_the_log_of_the_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    fill_outbox(path)
    shutil.copyfile(path.with_name("kept-a.sqlite-wal"), path.with_name("a.sqlite-wal"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    outbox = open_outbox(path)
    assert len(outbox) == 0
    outbox.close()


def test_what_a_newer_version_wrote_is_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    for opens in (open_outbox, open_journal):
        with pytest.raises(ConfigError, match=r"version|newer"):
            opens(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.sqlite"]
