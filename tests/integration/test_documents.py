"""The registry's cache: what was read is not read again, and never believed blindly."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fl_server.persistence.database import Database, JournalUnusable, sa, write_meta
from fl_server.persistence.manifest_cache import DocumentTable
from storage.registry.registry import Document, ModelRegistry
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectStream
from tests.integration.postgres import Cluster, running_cluster
from tests.versions import KEY, PROJECT, stored

MANY = 1203


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[ObjectStream]:
        self.opened.append(key)
        return super().open(key, start, end)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'd.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster").url
    database = Database(url)
    yield database
    with database.begin() as connection:
        for table in ("rengo_documents", "rengo_meta"):
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    database.close()


def test_a_document_is_found_by_its_etag_alone(database: Database) -> None:
    table = DocumentTable(database)
    table.put([Document("a", "1", b"\x00one\xff"), Document("b", "2", b"")])
    assert DocumentTable(database).get({"a": "1", "b": "2", "c": "3"}) == {
        "a": b"\x00one\xff",
        "b": b"",
    }
    assert table.get({"a": "2", "b": ""}) == {}
    assert table.get({}) == {}


def test_a_later_document_takes_the_place_of_the_one_before(database: Database) -> None:
    table = DocumentTable(database)
    table.put([Document("a", "1", b"one")])
    table.put([Document("a", "2", b"two"), Document("a", "3", b"three")])
    assert table.get({"a": "1"}) == table.get({"a": "2"}) == {}
    assert table.get({"a": "3"}) == {"a": b"three"}


def test_what_is_forgotten_is_gone(database: Database) -> None:
    table = DocumentTable(database)
    table.put([Document("a", "1", b"one"), Document("b", "2", b"two")])
    table.forget(["a", "c"])
    table.forget([])
    table.put([])
    assert table.get({"a": "1", "b": "2"}) == {"b": b"two"}


def test_there_may_be_many(database: Database) -> None:
    table = DocumentTable(database)
    table.put(Document(f"key/{number}", str(number), b"%d" % number) for number in range(MANY))
    wanted = {f"key/{number}": str(number) for number in range(MANY)}
    assert len(table.get(wanted)) == MANY
    table.forget(f"key/{number}" for number in range(1, MANY))
    assert table.get(wanted) == {"key/0": b"0"}


def test_many_threads_may_call_it(database: Database) -> None:
    table = DocumentTable(database)

    def work(number: int) -> dict[str, bytes]:
        mine = f"{number}/{number}"
        table.put([Document(mine, "1", b"x")])
        return table.get({mine: "1"})

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(20)))
    assert all(len(each) == 1 for each in found)


def test_another_version_of_the_table_is_refused(database: Database) -> None:
    DocumentTable(database)
    with database.begin() as connection:
        write_meta(connection, "documents_version", 9)
    with pytest.raises(JournalUnusable, match="another version of Rengo"):
        DocumentTable(database)


def test_a_rebuild_reads_only_what_is_new(database: Database) -> None:
    store = CountingStore()
    first = ModelRegistry(store, PROJECT, KEY, DocumentTable(database))
    first.rebuild()
    for number in range(3):
        first.commit(stored(store, "r", number), {"loss": 1.0})
    for expected in (6, 0):
        again = ModelRegistry(store, PROJECT, KEY, DocumentTable(database))
        store.opened.clear()
        assert again.rebuild() == []
        assert len(store.opened) == expected
        assert again.versions() == first.versions()
    first.promote(first.get("r", 1), "good")
    again = ModelRegistry(store, PROJECT, KEY, DocumentTable(database))
    store.opened.clear()
    again.rebuild()
    assert len(store.opened) == 1
    assert again.find("production").name == "r:1"


def test_what_the_database_says_is_not_believed(database: Database) -> None:
    store = CountingStore()
    registry = ModelRegistry(store, PROJECT, KEY, DocumentTable(database))
    registry.rebuild()
    registry.commit(stored(store, "r", 0))
    ModelRegistry(store, PROJECT, KEY, DocumentTable(database)).rebuild()
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE rengo_documents SET data = :data"), {"data": b"x"})
    again = ModelRegistry(store, PROJECT, KEY, DocumentTable(database))
    assert again.rebuild() == []
    assert again.versions() == registry.versions()
