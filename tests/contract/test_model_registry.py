"""The registry on every store: what one process wrote is what the next finds there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

import pytest

from runtime.errors import Corrupt, NotFound
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo, ObjectStore, ObjectStream
from storage.versions.keys import RunKeys
from tests.integration.store_fixtures import KINDS, bucket_of, running_store
from tests.versions import KEY, PROJECT, DictCache, manifest_of, stored

RUN = RunKeys(PROJECT, "r")


@pytest.fixture(scope="module", params=["memory", *KINDS])
def any_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    with running_store(tmp_path_factory.mktemp("store"), request.param) as embedded:
        yield bucket_of(embedded)


@pytest.fixture
def store(any_store: ObjectStore) -> Iterator[ObjectStore]:
    yield any_store
    any_store.delete([info.key for info in any_store.list("")])


def opened(store: ObjectStore, cache: DictCache | None = None) -> ModelRegistry:
    registry = ModelRegistry(store, PROJECT, KEY, cache)
    assert registry.rebuild() == []
    return registry


def keys_of(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list("")}


class Killed(Exception):
    """The process is gone."""


class Process:
    """One process's requests, of which it makes so many and is killed."""

    def __init__(self, store: ObjectStore, left: int) -> None:
        self._store = store
        self._left = left

    def _one(self) -> None:
        if not self._left:
            raise Killed
        self._left -= 1

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        self._one()
        return self._store.put(key, source, size)

    def delete(self, keys: list[str]) -> None:
        self._one()
        self._store.delete(keys)

    def open(self, key: str) -> AbstractContextManager[ObjectStream]:
        return self._store.open(key)

    def head(self, key: str) -> ObjectInfo:
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.list(prefix)


def killed_after(store: ObjectStore, writes: int) -> ModelRegistry:
    """Return the registry of a process that is killed after so many writes."""
    registry = ModelRegistry(Process(store, writes), PROJECT, KEY)  # type: ignore[arg-type]
    registry.rebuild()
    return registry


def test_what_was_done_is_read_from_a_listing(store: ObjectStore) -> None:
    registry = opened(store)
    for number in range(5):
        registry.commit(stored(store, "r", number), {"loss": 1.0 / (number + 1)})
    registry.commit(stored(store, "s", 0, task="faces"))
    for number in (1, 2, 3):
        registry.promote(registry.get("r", number), f"round {number}")
    assert registry.rollback("digits", "spoiled").name == "r:2"
    registry.tag(registry.get("r", 3), "best")
    registry.tag(registry.get("r", 4), "best")
    registry.candidate(registry.get("s", 0), "canary")
    registry.remove(registry.get("r", 0))
    again = opened(store)
    assert again.versions() == registry.versions()
    assert again.find("digits@production").name == "r:2"
    assert again.find("best").name == "r:4"
    assert again.rollback("digits", "").name == "r:1"
    assert not {key for key in keys_of(store) if RUN.version_of(key) == 0}


def test_a_kept_manifest_is_the_signed_one(store: ObjectStore) -> None:
    registry = opened(store)
    version = registry.commit(stored(store, "r", 1))
    with store.open(RUN.manifest(1)) as stream:
        assert stream.read(1 << 20) == registry.signed(version)
    with pytest.raises(Corrupt, match="cannot become"):
        opened(store).commit(manifest_of("r", 1, b"other"))


def test_a_record_that_was_replaced_is_not_taken_from_the_cache(store: ObjectStore) -> None:
    cache = DictCache()
    registry = opened(store, cache)
    for number in (1, 2):
        registry.commit(stored(store, "r", number))
    for label in ("aa", "bb", "aa"):
        # a file of the same size each time
        registry.tag(registry.get("r", 1), label)
        registry.untag(registry.get("r", 1), label)
        registry.tag(registry.get("r", 1), label)
        again = opened(store, cache)
        assert again.versions() == registry.versions()
        assert again.find(label).name == "r:1"
        registry.untag(registry.get("r", 1), label)
    opened(store, cache)
    cache.found = 0
    opened(store, cache)
    assert cache.found == 3


def test_more_versions_than_a_page_of_a_listing(store: ObjectStore) -> None:
    registry = opened(store)
    body = b"same"
    manifests = [manifest_of("r", number, body) for number in range(345)]

    def write(part: int) -> None:
        for manifest in manifests[part::4]:
            store.put(manifest.key, body)
            store.put(RUN.state(manifest.version), body)

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for manifest in manifests:
        registry.commit(manifest)
    again = opened(store)
    assert [each.manifest.version for each in again.versions("r")] == [*reversed(range(345))]
    assert again.versions() == registry.versions()


@pytest.mark.parametrize(("writes", "production"), [(0, "r:1"), (1, "r:2"), (2, "r:2")])
def test_a_kill_while_promoting(store: ObjectStore, writes: int, production: str) -> None:
    registry = opened(store)
    for number in (1, 2):
        registry.commit(stored(store, "r", number))
    registry.promote(registry.get("r", 1), "")
    dying = killed_after(store, writes)
    try:
        dying.promote(dying.get("r", 2), "")
    except Killed:
        assert writes < 2
    after = ModelRegistry(store, PROJECT, KEY)
    assert len(after.rebuild()) == (writes == 1)
    assert after.find("production").name == production
    stages = [each.record.stage for each in after.versions()]
    assert sorted(stages) == sorted(["archived" if writes else "none", "production"])
    assert opened(store).versions() == after.versions()


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_kill_while_rolling_back(store: ObjectStore, writes: int) -> None:
    registry = opened(store)
    for number in (1, 2, 3):
        registry.promote(registry.commit(stored(store, "r", number)), "")
    dying = killed_after(store, writes)
    try:
        dying.rollback("digits", "spoiled")
    except Killed:
        assert writes < 3
    after = ModelRegistry(store, PROJECT, KEY)
    assert len(after.rebuild()) == (writes in {1, 2})
    assert after.find("production").name == ("r:2" if writes else "r:3")
    spoiled = after.get("r", 3).record
    assert (spoiled.withdrawn, spoiled.reason) == ((True, "spoiled") if writes else (False, ""))
    assert opened(store).versions() == after.versions()
    assert after.rollback("digits", "").name == ("r:1" if writes else "r:2")


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_kill_while_removing(store: ObjectStore, writes: int) -> None:
    registry = opened(store)
    registry.commit(stored(store, "r", 1), {"loss": 1.0})
    dying = killed_after(store, writes)
    try:
        dying.remove(dying.get("r", 1))
    except Killed:
        assert writes < 2
    after = ModelRegistry(store, PROJECT, KEY)
    after.rebuild()
    assert after.has("r", 1) == (writes == 0)
    if writes:
        with pytest.raises(NotFound):
            store.head(RUN.version(1))
        assert 1 not in after.retained("r", 9, 1, 0)
    if writes == 2:
        assert keys_of(store) == set()


def test_damaged_and_foreign_documents_are_named(store: ObjectStore) -> None:
    registry = opened(store)
    for number in range(4):
        registry.tag(registry.commit(stored(store, "r", number)), f"t{number}")
    store.put(RUN.manifest(0), b"")
    store.put(RUN.manifest(1), manifest_of("r", 2).encode(KEY))
    store.put(RUN.record(2), b"\x00" * 3000)
    store.delete([RUN.version(3)])
    after = ModelRegistry(store, PROJECT, KEY)
    lines = "\n".join(after.rebuild())
    for key, why in (
        (RUN.manifest(0), "not a Manifest"),
        (RUN.manifest(1), "the manifest of p/r:2"),
        (RUN.record(2), "not a Record"),
        (RUN.manifest(3), "its model"),
    ):
        assert f"{key}: {why}" in lines
    assert [each.name for each in after.versions()] == ["r:2"]
    assert after.retained("r", 9, 1, 0) == {0, 1, 2, 9}
