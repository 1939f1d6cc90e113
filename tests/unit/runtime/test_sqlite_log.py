"""A write-ahead log that lost what was on the disk is told from one that a power cut left."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from runtime.sqlite_log import lost_changes

CHANGES = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database all of whose changes stand in its log, as a killed process leaves it."""
    folder = tmp_path_factory.mktemp("log")
    db = sqlite3.connect(folder / "a.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t (n INTEGER, text TEXT)")
    for number in range(CHANGES):
        db.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 900))
    for name in ("a.sqlite", "a.sqlite-wal"):
        shutil.copy(folder / name, folder / f"kept-{name}")
    db.close()
    return folder


def copy(written: Path, folder: Path) -> Path:
    for name in ("a.sqlite", "a.sqlite-wal"):
        shutil.copy(written / f"kept-{name}", folder / name)
    return folder / "a.sqlite-wal"


def rows(log: Path) -> int:
    db = sqlite3.connect(str(log).removesuffix("-wal"))
    try:
        (found,) = db.execute("SELECT count(*) FROM t").fetchone()
    except sqlite3.OperationalError:
        return 0  # not even the table
    finally:
        db.close()
    return int(found)


def test_a_log_as_it_was_written_has_lost_nothing(written: Path, tmp_path: Path) -> None:
    log = copy(written, tmp_path)
    assert not lost_changes(log)
    assert rows(log) == CHANGES


def test_every_flipped_bit_that_loses_a_change_but_the_last_is_found(
    written: Path, tmp_path: Path
) -> None:
    """Of the last change, a damaged frame is what a power cut leaves too."""
    log = copy(written, tmp_path)
    whole = log.read_bytes()
    silent = {}
    for place in [*range(0, 200), *range(200, len(whole), 61)]:
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if not lost_changes(log):
            silent[place] = None
    for place in silent:
        log = copy(written, tmp_path)
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert rows(log) >= CHANGES - 1, place
    assert len(silent) < 200


@pytest.mark.parametrize("cut", [0, 10, 31, 32, 40, 5000, -1, -4096, -4120, -5000])
def test_what_a_power_cut_leaves_has_lost_nothing(cut: int, written: Path, tmp_path: Path) -> None:
    log = copy(written, tmp_path)
    log.write_bytes(log.read_bytes()[:cut])
    assert not lost_changes(log)


def test_a_torn_last_change_before_frames_of_an_earlier_use_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (n INTEGER, text TEXT)")
    for number in range(20):
        db.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 900))
    db.execute("PRAGMA wal_checkpoint(RESTART)")  # the next change begins at the file's start
    db.execute("INSERT INTO t VALUES (99, 'y')")
    log = tmp_path / "kept-wal"
    whole = (tmp_path / "a.sqlite-wal").read_bytes()
    db.close()
    for place in (32, 60, 2000):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not lost_changes(log)


def test_no_log_has_lost_nothing(tmp_path: Path) -> None:
    assert not lost_changes(tmp_path / "none-wal")
