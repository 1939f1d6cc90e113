"""A site as one file: taken while it runs, restored elsewhere under another name, and moved."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from fl_server.members.store import MemberRegistry
from fl_server.operations.catalogue import RUNS_LS
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.persistence.mark import Mark, MarkFile
from fl_server.settings import JournalRetention
from fl_server.shell.upkeep import JournalUpkeep
from rengo.export.loading import load_model
from rengo.operator.client import OperatorClient
from rengo.operator.models import load
from rengo.site import backup as backups
from rengo.site.backup import back_up, restore
from rengo.site.folder import SiteFolder
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.errors import ConfigError
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from tests.examples import pages
from tests.messages import KEY
from tests.paths import NASTIEST

_TASK = f"{pages.ROOT / 'examples' / 'my_task.py'}:MyTask"


def _runs(client: OperatorClient) -> list[str]:
    return [run.run_id for run in client.request(RUNS_LS).runs]


def test_a_site_is_backed_up_while_it_runs_restored_moved_and_copied(tmp_path: Path) -> None:
    first, file = tmp_path / "first", tmp_path / "site.tar"
    with Site(first) as site:
        done = site.run(_TASK, rounds=2, devices=1, output=tmp_path / "out")
        held = back_up(first, file)
        with site.connect() as client:
            assert _runs(client) == [done.run_id]
        later = site.run(_TASK, rounds=1, devices=1, output=tmp_path / "out")
    assert file.stat().st_mode & 0o777 == 0o600
    assert not [each for each in held.files if each.startswith(("broker/", "devices/", "logs/"))]
    shutil.rmtree(first)
    second = tmp_path / NASTIEST
    restore(file, second)
    assert done.model_path is not None
    with Site(second) as site:
        with site.connect() as client:
            assert _runs(client) == [done.run_id]
        _require_the_same(site, f"{done.run_id}:2", done.model_path)
        assert site.run(_TASK, rounds=1, devices=1, output=tmp_path / "out").accuracy is not None
    moved, copy = tmp_path / "moved", tmp_path / "copy"
    second.rename(moved)
    shutil.copytree(moved, copy, ignore=shutil.ignore_patterns("*.sock"))
    before = _objects(moved)
    with Site(copy, options=SiteOptions()) as site:
        _require_the_same(site, f"{done.run_id}:2", done.model_path)
        site.run(_TASK, rounds=1, devices=1, output=tmp_path / "out")
    assert _objects(moved) == before, "a copy wrote into the folder that it is a copy of"
    assert later.run_id != done.run_id


def _require_the_same(site: Site, name: str, path: Path) -> None:
    held = load(name, site.operator.believed, site.connect)
    wanted = load_model(path)
    found = held.weights.arrays()
    assert {key: value.tobytes() for key, value in found.items()} == {
        key: np.asarray(value).tobytes() for key, value in wanted.items()
    }


def _objects(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "store" / "blobs").rglob("*"))


@contextmanager
def _site_of_a_store(root: Path) -> Iterator[S3Store]:
    """Give a running store in a folder that is a site's for a backup."""
    SiteFolder(root).record_with(domain="main", store="juicefs")
    server = EmbeddedStore(root / "store")
    server.start()
    try:
        store = S3Store(server.settings)
        store.ensure_bucket()
        yield store
    finally:
        server.stop()


def test_what_the_journal_names_is_in_the_copy_of_the_store(tmp_path: Path) -> None:
    """A writer as the server is: object, then journal; journal, then deletion."""
    root, file = tmp_path / "site", tmp_path / "site.tar"
    stopping, written = threading.Event(), threading.Event()

    with _site_of_a_store(root) as store:
        (root / "server").mkdir()
        journal = root / "server" / "journal.sqlite"
        with closing(sqlite3.connect(journal)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE live (key TEXT)")
            db.commit()

        def write() -> None:
            with closing(sqlite3.connect(journal)) as db:
                for number in range(10_000):
                    key, old = f"v/{number}", f"v/{number - 2}"
                    store.put(key, os.urandom(50_000))
                    db.execute("INSERT INTO live VALUES (?)", (key,))
                    db.execute("DELETE FROM live WHERE key = ?", (old,))
                    db.commit()
                    if number >= 2:
                        store.delete([old])
                        written.set()
                    if stopping.is_set():
                        return

        writer = threading.Thread(target=write)
        writer.start()
        assert written.wait(60)
        try:
            back_up(root, file)
        finally:
            stopping.set()
            writer.join()
    restored = tmp_path / "restored"
    restore(file, restored)
    with closing(sqlite3.connect(restored / "server" / "journal.sqlite")) as db:
        live = [key for (key,) in db.execute("SELECT key FROM live")]
    assert live
    server = EmbeddedStore(restored / "store")
    server.start()
    try:
        store = S3Store(server.settings)
        for key in live:
            with store.open(key) as found:
                assert len(found.read(100_000)) == 50_000
    finally:
        server.stop()


def test_what_the_server_writes_during_a_backup_stops_no_restored_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, file, restored = tmp_path / "site", tmp_path / "site.tar", tmp_path / "restored"
    SiteFolder(root).record_with(domain="main", store="juicefs")
    (root / "server").mkdir()
    journal = Journal(root / "server" / "journal.sqlite")
    journal.next_epoch()
    mark = MarkFile(root / "server" / "journal.sqlite.mark")
    mark.write(Mark(epoch=journal.epoch()))
    copy = backups._Writing.add_database

    def goes_on(writing: backups._Writing, name: str) -> None:
        copy(writing, name)
        mark.write(Mark(epoch=journal.next_epoch()))

    monkeypatch.setattr(backups._Writing, "add_database", goes_on)
    back_up(root, file)
    journal.close()
    restore(file, restored)
    there = restored / "server" / "journal.sqlite"
    held = Journal(there)
    members, history = MemberRegistry(held.database, KEY), RunHistory(held.database)
    beside = MarkFile(there.with_name(mark.path.name))
    JournalUpkeep(held, members, history, JournalRetention(), beside).require_latest()
    held.close()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    SiteFolder(root).record_with(domain="main", store="juicefs")
    (root / "identities").mkdir()
    (root / "identities" / "server.json").write_text("secret")
    back_up(root, tmp_path / "site.tar")
    return tmp_path / "site.tar"


def test_a_backup_that_is_cut_anywhere_is_refused(tmp_path: Path, backup: Path) -> None:
    data = backup.read_bytes()
    with tarfile.open(backup) as archive:
        ends = [member.offset for member in archive] + [archive.getmembers()[-1].offset_data]
    for end in {0, 1, 511, 700, *ends}:
        backup.write_bytes(data[:end])
        with pytest.raises(ConfigError, match=r"backup of a site|cut short"):
            restore(backup, tmp_path / "restored")
    assert {each.name for each in tmp_path.iterdir()} == {"site", "site.tar"}


def test_a_flipped_byte_is_found(tmp_path: Path, backup: Path) -> None:
    data = bytearray(backup.read_bytes())
    data[data.index(b"secret")] ^= 1
    backup.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        restore(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "./a"])
def test_nothing_is_written_beside_the_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ConfigError, match="not a backup"):
        restore(file, tmp_path / "restored")
    assert [each.name for each in tmp_path.iterdir()] == ["evil.tar"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        restore(backup, tmp_path / "site")
    (tmp_path / "empty").mkdir()
    assert restore(backup, tmp_path / "empty").domain == "main"
    assert (tmp_path / "empty" / "identities" / "server.json").stat().st_mode & 0o777 == 0o600


def test_a_backup_lies_outside_of_the_site(tmp_path: Path, backup: Path) -> None:
    assert backup.exists()
    for place in (tmp_path / "site" / "site.tar", tmp_path / "site" / "store" / "site.tar"):
        with pytest.raises(ConfigError, match=r"site\.tar lies in the site's own folder"):
            back_up(tmp_path / "site", place)
    (tmp_path / "link").symlink_to(tmp_path / "site")
    with pytest.raises(ConfigError, match="own folder"):
        back_up(tmp_path / "site", tmp_path / "link" / "site.tar")
    assert not list((tmp_path / "site").rglob("*site.tar*"))


def test_a_backup_of_a_later_version_is_told_of_in_one_line(tmp_path: Path, backup: Path) -> None:
    data = backup.read_bytes()
    backup.write_bytes(data.replace(b'{"format":1,', b'{"format":2,'))
    with pytest.raises(
        ConfigError, match=r"^.*site\.tar is of another version of Rengo.*$"
    ) as told:
        restore(backup, tmp_path / "restored")
    assert "\n" not in str(told.value)


def test_where_there_is_no_site_there_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no site"):
        back_up(tmp_path / "nowhere", tmp_path / "site.tar")
    assert not list(tmp_path.iterdir())


def test_a_seaweedfs_site_is_backed_up_while_it_is_stopped(tmp_path: Path) -> None:
    root, file, restored = tmp_path / "site", tmp_path / "site.tar", tmp_path / "restored"
    with Site(root, options=SiteOptions(store="seaweedfs")) as site:
        done = site.run(_TASK, rounds=2, devices=1, output=tmp_path / "out")
        with pytest.raises(ConfigError, match="seaweedfs is backed up while it is stopped"):
            back_up(root, file)
        assert not file.exists()
    back_up(root, file)
    shutil.rmtree(root)
    restore(file, restored)
    assert done.model_path is not None
    with Site(restored) as site:
        with site.connect() as client:
            assert _runs(client) == [done.run_id]
        _require_the_same(site, f"{done.run_id}:2", done.model_path)
        assert site.run(_TASK, rounds=1, devices=1, output=tmp_path / "out").accuracy is not None
