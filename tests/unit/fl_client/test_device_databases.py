"""A device's databases after any damage: opened, or set aside and begun anew, never refused."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.session.outbox import Outbox, OutboxDamaged
from fl_client.datasets.sample import Sample
from fl_client.datasets.settings import SampleStoreSettings
from fl_client.datasets.store import SampleStore, SampleStoreDamaged, stored_samples
from fl_client.jobs.journal import JobJournal, JobJournalDamaged
from runtime.errors import ConfigError
from runtime.sqlite import opened_or_begun_anew, set_schema_version
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
    set_schema_version(db, 99)
    db.close()
    for opens in (open_outbox, open_journal):
        with pytest.raises(ConfigError, match=r"version|newer"):
            opens(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.sqlite"]


# --- single flipped bits --------------------------------------------------------------------------


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a thing: nothing here is about the disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


def outbox_rows(path: Path) -> list[Any]:
    outbox = Outbox(path)
    found = [(row.key, row.topic, row.payload, row.until) for row in outbox.pending()]
    outbox.close()
    return found


def journal_rows(path: Path) -> list[Any]:
    journal = JobJournal(path)
    found = journal.jobs()
    journal.close()
    return found


def small_outbox(path: Path) -> None:
    outbox = Outbox(path)
    for number in range(3):
        outbox.put(f"result/{number}", "t/u", bytes([number]) * 60, until="confirm")
    outbox.close()


def small_journal(path: Path) -> None:
    journal = JobJournal(path)
    for number in range(1, 3):
        journal.store(job(number))
    journal.close()


def small_samples(path: Path) -> None:
    store = SampleStore(path, SampleStoreSettings())
    samples = [Sample(bytes([n]) * 8, "g", float(n), array("f", [n, n + 1])) for n in range(3)]
    store.add(samples, 1e9, 0.0)
    store.close()


def sample_rows(path: Path) -> list[Any]:
    SampleStore(path, SampleStoreSettings()).close()
    return list(stored_samples(path, 10))


@pytest.mark.parametrize(
    ("fill", "rows", "damage"),
    [
        (small_outbox, outbox_rows, OutboxDamaged),
        (small_journal, journal_rows, JobJournalDamaged),
        (small_samples, sample_rows, SampleStoreDamaged),
    ],
)
def test_a_flipped_bit_gives_the_rows_that_are_whole_or_a_damaged_file(
    fill: Callable[[Path], None],
    rows: Callable[[Path], list[Any]],
    damage: type[Exception],
    memory_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = memory_folder / "a.sqlite"
    fill(path)
    whole, expected = path.read_bytes(), rows(path)
    ends: Counter[str] = Counter()
    every = 1 if len(whole) < 10_000 else 5
    for place in [*range(100), *range(100, len(whole), every)]:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place * 5 % 8]) + whole[place + 1 :]
        )
        caplog.clear()
        try:
            found = rows(path)
        except damage:
            ends["damaged"] += 1
        else:
            assert [each for each in found if each not in expected] == [], place
            assert found == expected or caplog.text, f"{place}: a row is lost without a word"
            ends["whole" if found == expected else "a row set aside"] += 1
        for name in ("-wal", "-shm", "-journal"):
            path.with_name(f"a.sqlite{name}").unlink(missing_ok=True)
    assert ends["damaged"] > 100
    assert ends["a row set aside"] > 100 or rows is sample_rows
    assert ends["whole"] > 100


@pytest.mark.parametrize("offset", [18, 19, 47, 59, 60, 61, 62, 63, 68, 71])
@pytest.mark.parametrize(
    ("fill", "rows", "damage"),
    [
        (small_outbox, outbox_rows, OutboxDamaged),
        (small_journal, journal_rows, JobJournalDamaged),
        (small_samples, sample_rows, SampleStoreDamaged),
    ],
)
def test_a_damaged_header_is_no_newer_version_and_no_file_that_cannot_be_written(
    fill: Callable[[Path], None],
    rows: Callable[[Path], list[Any]],
    damage: type[Exception],
    offset: int,
    memory_folder: Path,
) -> None:
    path = memory_folder / "a.sqlite"
    fill(path)
    whole, expected = path.read_bytes(), rows(path)
    for bit in range(8):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << bit]) + whole[offset + 1 :])
        try:
            assert rows(path) == expected
        except damage:
            pass
        for name in ("-wal", "-shm", "-journal"):
            path.with_name(f"a.sqlite{name}").unlink(missing_ok=True)
