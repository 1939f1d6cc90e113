"""The model registry over a store with damaged documents, outages and slow answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Unavailable
from storage.registry.registry import Document, ModelRegistry
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo
from storage.versions.manifest import MAX_DOCUMENT_BYTES, Record
from tests.unit.storage.registry import RUN, commit, opened, registry, stages, store
from tests.versions import KEY, OTHER_KEY, PROJECT, DictCache, manifest_of, model_file, stored

__all__ = ["registry", "store"]


# --- documents that cannot be believed ----------------------------------------------------------


def text_of(store: MemoryStore, key: str) -> bytes:
    with store.open(key) as stream:
        return stream.read(1 << 20)


def signed_record(**changes: Any) -> bytes:
    sha256 = manifest_of("r", 1, model_file(b"r 1")).sha256
    fields: dict[str, Any] = {"run_id": "r", "version": 1, "sha256": sha256, "tags": ["best"]}
    return Record(**(fields | changes)).encode(KEY)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a Manifest"),
        (b"{}", "not a Manifest"),
        (b"[" * 5000, "not a Manifest"),
        (manifest_of("r", 1, model_file(b"r 1")).encode(KEY)[:-9], "not a Manifest"),
        (
            manifest_of("r", 1, model_file(b"r 1")).encode(OTHER_KEY),
            "not signed by this site's server",
        ),
        (signed_record(), "not signed by this site's server"),
        (b"x" * (MAX_DOCUMENT_BYTES + 1), "at most"),
        (manifest_of("r", 2, model_file(b"r 2")).encode(KEY), "the manifest of p/r:2"),
        (manifest_of("s", 1, model_file(b"r 1")).encode(KEY), "the manifest of p/s:1"),
        (manifest_of("r", 1, model_file(b"r 1"), project="q").encode(KEY), "the manifest of q/r:1"),
        (
            manifest_of("r", 1, model_file(b"r 1"), key=RUN.version(2)).encode(KEY),
            "the manifest of p/r:1",
        ),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_manifest_that_cannot_be_believed_is_none(
    store: MemoryStore, data: bytes, why: str, cached: bool
) -> None:
    cache = DictCache() if cached else None
    commit(opened(store, cache), store, 1, 2)
    opened(store, cache)
    store.put(RUN.manifest(1), data)
    registry = ModelRegistry(store, PROJECT, KEY, cache)
    for _ in range(2):
        (line,) = registry.rebuild()
        assert line.startswith(RUN.manifest(1))
        assert why in line
    assert [each.name for each in registry.versions()] == ["r:2"]
    # what it is, or was, is not known: no sweep takes it
    assert registry.unreadable("r") == {1}
    assert registry.set_aside() == {("r", 1): line}
    assert 1 in registry.retained("r", 9, 1, 0)
    assert registry.commit(manifest_of("r", 1, model_file(b"r 1"))).name == "r:1"
    assert registry.unreadable("r") == set()
    assert registry.set_aside() == {}
    assert opened(store).versions() == registry.versions()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a Record"),
        (signed_record()[:-9], "not a Record"),
        (signed_record().replace(b"best", b"pest"), "not signed by this site's server"),
        (manifest_of("r", 1, model_file(b"r 1")).encode(KEY), "not signed by this site's server"),
        (signed_record(version=2), "the record of r:2"),
        (signed_record(run_id="s"), "the record of s:1"),
        (signed_record(sha256="0a" * 32), "not of its manifest's"),
    ],
)
def test_a_record_that_cannot_be_believed_says_nothing_and_is_held(
    store: MemoryStore, data: bytes, why: str
) -> None:
    (one,) = commit(opened(store), store, 1)
    store.put(RUN.record(1), data)
    registry = ModelRegistry(store, PROJECT, KEY)
    (line,) = registry.rebuild()
    assert line.startswith(RUN.record(1))
    assert why in line
    assert registry.versions() == [one]
    assert registry.retained("r", 9, 1, 0) == {1, 9}
    registry.tag(one, "good")
    assert registry.unreadable("r") == set()
    assert opened(store).find("good").name == "r:1"


def test_a_manifest_without_its_model_is_no_version(store: MemoryStore) -> None:
    registry = opened(store)
    one, _ = commit(registry, store, 1, 2)
    registry.promote(one, "")
    store.delete([RUN.version(1)])
    again = ModelRegistry(store, PROJECT, KEY)
    assert again.rebuild() == [f"{RUN.manifest(1)}: its model {RUN.version(1)} is not there"]
    assert [each.name for each in again.versions()] == ["r:2"]
    assert again.production("digits") is None
    assert 1 not in again.retained("r", 9, 1, 0)


def test_a_record_without_a_manifest_serves_nothing_later(store: MemoryStore) -> None:
    store.put(RUN.record(1), signed_record())
    registry = ModelRegistry(store, PROJECT, KEY)
    assert registry.rebuild() == [f"{RUN.record(1)}: a record without a manifest"]
    commit(registry, store, 1)
    assert opened(store).get("r", 1).record.tags == []


def test_a_model_of_another_size_is_named(store: MemoryStore) -> None:
    commit(opened(store), store, 1)
    store.put(RUN.version(1), b"another")
    (line,) = ModelRegistry(store, PROJECT, KEY).rebuild()
    assert line == f"{RUN.version(1)}: 7 bytes, its manifest says 175: it will be refused"


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        (f"{RUN.prefix}manifests/0000001.json", 1),
        (f"{RUN.prefix}manifests/1.json", 0),
        (f"{RUN.prefix}manifests/readme", 0),
        (f"{RUN.prefix}updates/000001/001/d.upd", 0),
        (f"projects/{PROJECT}/runs/Other/manifests/000001.json", 0),
        (f"projects/{PROJECT}/runs/x", 0),
    ],
)
def test_other_keys_are_none_of_ours(store: MemoryStore, key: str, lines: int) -> None:
    registry = opened(store)
    commit(registry, store, 1)
    store.put(key, text_of(store, RUN.manifest(1)))
    again = ModelRegistry(store, PROJECT, KEY)
    assert len(again.rebuild()) == lines
    assert again.versions() == registry.versions()


def test_other_projects_are_not_read(registry: ModelRegistry, store: MemoryStore) -> None:
    elsewhere = ModelRegistry(store, f"{PROJECT}2", KEY)
    elsewhere.rebuild()
    elsewhere.commit(stored(store, "r", 1, project=f"{PROJECT}2"))
    assert registry.rebuild() == []
    assert registry.versions() == []


@given(
    kind=st.sampled_from(["manifest", "record"]),
    data=st.binary(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(["signed", "signature", "stage"]), inner, max_size=3
        ),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_no_document_can_fell_a_rebuild(kind: str, data: bytes) -> None:
    store = MemoryStore()
    commit(opened(store), store, 1, 2)
    store.put(getattr(RUN, kind)(1), data)
    registry = ModelRegistry(store, PROJECT, KEY)
    assert len(registry.rebuild()) == 1
    assert registry.has("r", 2)


# --- requests, threads and outages --------------------------------------------------------------


class WatchedStore(MemoryStore):
    """Counts requests, and fails or waits where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.on_put: Callable[[str], None] = lambda key: None

    def open(self, key: str, start: int = 0, end: int | None = None) -> Any:
        self.calls.append(f"open {key}")
        return super().open(key, start, end)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.calls.append(f"list {prefix}")
        return super().list(prefix)

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        self.on_put(key)
        return super().put(key, source, size)

    def delete(self, keys: Iterable[str]) -> None:
        self.calls.append("delete")
        super().delete(keys)


def test_a_rebuild_lists_once_and_gets_what_the_cache_lacks() -> None:
    store, cache = WatchedStore(), DictCache()
    registry = opened(store, cache)
    versions = commit(registry, store, *range(30))
    registry.tag(versions[3], "best")
    opened(store, cache)
    registry.tag(versions[4], "best")
    store.calls.clear()
    again = opened(store, cache)
    listing = f"list projects/{PROJECT}/runs/"
    changed = {f"open {RUN.record(3)}", f"open {RUN.record(4)}"}
    assert store.calls[0] == listing
    assert set(store.calls[1:]) == changed
    assert len(store.calls) == 3
    assert again.find("best").name == "r:4"


def test_a_store_that_names_no_etags_is_read_whole() -> None:
    class Nameless(WatchedStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            return (ObjectInfo(info.key, info.size, "") for info in super().list(prefix))

    store, cache = Nameless(), DictCache()
    registry = opened(store, cache)
    (one,) = commit(registry, store, 1)
    registry.tag(one, "old")
    opened(store, cache)
    assert cache.held == {}
    cache.put([Document(RUN.record(1), "", text_of(store, RUN.record(1)))])
    registry.untag(one, "old")
    assert opened(store, cache).versions() == registry.versions()


def test_an_outage_while_it_is_read_leaves_what_was_known() -> None:
    class Cut(WatchedStore):
        cut = False

        def open(self, key: str, start: int = 0, end: int | None = None) -> Any:
            if self.cut:
                raise Unavailable("cut")
            return super().open(key, start, end)

    store = Cut()
    registry = opened(store)
    versions = commit(registry, store, 1)
    store.cut = True
    with pytest.raises(Unavailable):
        registry.rebuild()
    assert registry.versions() == versions


def test_a_document_that_goes_while_it_is_read_is_not_there() -> None:
    class Going(WatchedStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            found = list(super().list(prefix))
            self.delete([RUN.manifest(1)])
            return iter(found)

    store = Going()
    store.put(RUN.manifest(1), b"soon gone")
    registry = ModelRegistry(store, PROJECT, KEY)
    assert registry.rebuild() == [f"{RUN.manifest(1)}: listed, but not there"]


def test_readers_do_not_wait_for_a_store_that_does_not_answer() -> None:
    store = WatchedStore()
    registry = opened(store)
    (one,) = commit(registry, store, 1)
    waiting, answer = threading.Event(), threading.Event()

    def wait(_key: str) -> None:
        waiting.set()
        assert answer.wait(30)

    store.on_put = wait
    writer = threading.Thread(target=registry.tag, args=(one, "best"))
    writer.start()
    try:
        assert waiting.wait(30)
        assert registry.find("r").record.tags == []
        assert registry.versions() == [one]
        assert registry.has("r", 1)
        assert registry.production("digits") is None
        # what is being written may be in the store already
        assert registry.retained("r", 9, 1, 0) == {1, 9}
    finally:
        answer.set()
        writer.join()
    assert registry.find("best").name == "r:1"


def test_writers_take_turns() -> None:
    store = WatchedStore()
    registry = opened(store)
    versions = commit(registry, store, *range(8))
    writing = threading.Lock()
    at_once = []

    def on_put(_key: str) -> None:
        if not writing.acquire(blocking=False):
            at_once.append(_key)
            return
        # long enough for another to come, where none waits
        time.sleep(0.002)
        writing.release()

    store.on_put = on_put
    threads = [
        threading.Thread(
            target=lambda each=each: (registry.promote(each, ""), registry.tag(each, "t"))
        )
        for each in versions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == []
    counts = [each.record.promotions for each in registry.versions()]
    assert sorted(count for (count,) in counts) == list(range(1, 9))
    assert list(stages(registry).values()).count("production") == 1
    again = opened(store)
    assert again.versions() == registry.versions()
    assert again.find("t").name == registry.find("t").name


@pytest.mark.parametrize("landed", [False, True])
def test_a_rollback_that_failed_half_way_is_not_done_twice(landed: bool) -> None:
    store = WatchedStore()
    registry = opened(store)
    for version in commit(registry, store, 1, 2, 3):
        registry.promote(version, "")

    def fail(key: str) -> None:
        if key == RUN.record(2):
            store.on_put = lambda key: None
            if landed:
                promoted = registry.get("r", 2).record
                changes = {"stage": "production", "promotions": [2, 4], "revision": 9}
                store.put(key, promoted.model_copy(update=changes).encode(KEY))
            raise Unavailable("an outage")

    store.on_put = fail
    with pytest.raises(Unavailable):
        registry.rollback("digits", "bad")
    assert registry.rollback("digits", "bad").name == "r:2"
    assert stages(registry) == {"r:3": "archived", "r:2": "production", "r:1": "archived"}
    assert opened(store).versions() == registry.versions()
