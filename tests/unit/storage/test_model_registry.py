"""The model registry on the store in memory: names, acts, refusals and damaged documents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError, Corrupt, InvalidTransition, NotFound, Unavailable
from storage.registry.registry import Document, ModelRegistry, Version
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo
from storage.versions.keys import RunKeys
from storage.versions.manifest import MAX_DOCUMENT_BYTES, Record
from tests.versions import (
    KEY,
    OTHER_KEY,
    PROJECT,
    DictCache,
    manifest_of,
    model_file,
    stored,
)

RUN = RunKeys(PROJECT, "r")


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore) -> ModelRegistry:
    return opened(store)


def opened(store: MemoryStore, cache: DictCache | None = None) -> ModelRegistry:
    registry = ModelRegistry(store, PROJECT, KEY, cache, Clock())
    registry.rebuild()
    return registry


def commit(
    registry: ModelRegistry, store: MemoryStore, *numbers: int, **more: Any
) -> list[Version]:
    run_id = more.pop("run_id", "r")
    return [registry.commit(stored(store, run_id, number, **more)) for number in numbers]


def keys_of(store: MemoryStore) -> set[str]:
    return {info.key for info in store.list("")}


def stages(registry: ModelRegistry) -> dict[str, str]:
    return {version.name: version.record.stage for version in registry.versions()}


# --- committing ---------------------------------------------------------------------------------


def test_a_version_is_its_manifest_and_has_no_record_until_one_is_needed(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    manifest = stored(store, "r", 3)
    version = registry.commit(manifest)
    assert version.manifest == manifest
    assert version.record == Record(run_id="r", version=3, sha256=manifest.sha256)
    assert keys_of(store) == {RUN.version(3), RUN.manifest(3)}
    assert (version.name, version.keys, version.id) == ("r:3", RUN, ("r", 3))
    with store.open(RUN.manifest(3)) as stream:
        assert stream.read(1 << 20) == registry.signed(version)


def test_committing_again_changes_nothing(registry: ModelRegistry, store: MemoryStore) -> None:
    first = registry.commit(stored(store, "r", 1))
    again = registry.commit(stored(store, "r", 1, created_ms=9_999))
    assert again == first
    assert opened(store).get("r", 1) == first


def test_a_place_is_taken_once(registry: ModelRegistry, store: MemoryStore) -> None:
    (first,) = commit(registry, store, 1)
    with pytest.raises(Corrupt, match=r"r:1 has sha256 .* cannot become"):
        registry.commit(manifest_of("r", 1, b"other"))
    assert registry.get("r", 1) == first
    assert opened(store).get("r", 1) == first


@pytest.mark.parametrize("wrong", [{"project": "q"}, {"key": RUN.version(2)}])
def test_a_manifest_of_elsewhere_is_our_own_mistake(
    registry: ModelRegistry, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTransition):
        registry.commit(manifest_of("r", 1, **wrong))


def test_nothing_is_written_or_swept_before_the_store_was_read(store: MemoryStore) -> None:
    registry = ModelRegistry(store, PROJECT, KEY)
    version = opened(store).commit(stored(store, "r", 1))
    with pytest.raises(InvalidTransition, match="not read yet"):
        registry.retained("r", 9, 1, 0)
    for act in (
        lambda: registry.commit(version.manifest),
        lambda: registry.promote(version, ""),
        lambda: registry.remove(version),
        lambda: registry.rollback("digits", ""),
    ):
        with pytest.raises(InvalidTransition, match="not read yet"):
            act()
    assert keys_of(store) == {RUN.version(1), RUN.manifest(1)}


# --- metrics ------------------------------------------------------------------------------------


def test_measurements_add_up(registry: ModelRegistry, store: MemoryStore) -> None:
    registry.commit(stored(store, "r", 1), {"loss": 1.0})
    version = registry.measure("r", 1, {"accuracy": 0.5, "loss": 0.75})
    assert version.record.metrics == {"accuracy": 0.5, "loss": 0.75}
    assert version.record.revision == 2
    assert registry.measure("r", 1, {"loss": 0.75}) == version
    assert opened(store).get("r", 1) == version
    with pytest.raises(NotFound):
        registry.measure("r", 2, {"loss": 1.0})


def test_hostile_metrics_do_no_harm(registry: ModelRegistry, store: MemoryStore) -> None:
    commit(registry, store, 1)
    odd = {"nan": float("nan"), "inf": float("inf"), "": 1.0, "x" * 65: 1.0, "whole": 3}
    assert registry.measure("r", 1, odd).record.metrics == {"whole": 3.0}
    many = {f"{number:03}": 1.0 for number in range(100)}
    assert list(registry.measure("r", 1, many).record.metrics) == [f"{n:03}" for n in range(64)]
    assert opened(store).versions() == registry.versions()


# --- stages -------------------------------------------------------------------------------------


def test_one_version_of_a_task_is_in_production(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    one, two = commit(registry, store, 1, 2)
    (other,) = commit(registry, store, 1, run_id="s", task="faces")
    assert registry.production("digits") is None
    assert registry.promote(one, "first").record.reason == "first"
    registry.promote(other, "")
    registry.promote(two, "better")
    assert stages(registry) == {"r:1": "archived", "r:2": "production", "s:1": "production"}
    assert [registry.find(f"{task}@production").name for task in ("digits", "faces")] == [
        "r:2",
        "s:1",
    ]
    assert registry.get("r", 1).record.reason == "r:2 is in production"
    assert opened(store).versions() == registry.versions()


def test_promoting_what_is_in_production_changes_nothing(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    (one,) = commit(registry, store, 1)
    first = registry.promote(one, "first")
    assert registry.promote(one, "again") == first
    assert first.record.promotions == [1]


def test_a_rollback_goes_from_one_to_the_one_before(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    versions = commit(registry, store, 1, 2, 3)
    for version in versions:
        registry.promote(version, "")
    assert registry.rollback("digits", "spoiled").name == "r:2"
    gone = registry.get("r", 3).record
    assert (gone.stage, gone.withdrawn, gone.reason) == ("archived", True, "spoiled")
    assert registry.rollback("digits", "").name == "r:1"
    before = registry.versions()
    with pytest.raises(ConfigError, match="'digits' has no version to go back to"):
        registry.rollback("digits", "")
    assert registry.versions() == before
    assert opened(store).versions() == before


def test_a_version_that_was_rolled_back_may_be_promoted_by_name(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    one, two = commit(registry, store, 1, 2)
    registry.promote(one, "")
    registry.promote(two, "")
    registry.rollback("digits", "")
    again = registry.promote(two, "it was the data")
    assert (again.record.withdrawn, again.record.promotions) == (False, [2, 4])
    assert registry.rollback("digits", "").name == "r:1"


def test_a_rollback_passes_over_what_was_never_in_production_or_has_no_model(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    one, two, three, four = commit(registry, store, 1, 2, 3, 4)
    for version in (one, two, three):
        registry.promote(version, "")
    registry.candidate(four, "")
    registry.archive(four, "failed")
    store.delete([RUN.version(2)])
    assert registry.rollback("digits", "").name == "r:1"


def test_a_rollback_works_where_nothing_is_in_production(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    (one,) = commit(registry, store, 1)
    with pytest.raises(ConfigError, match="no version to go back to"):
        registry.rollback("digits", "")
    registry.promote(one, "")
    registry.archive(one, "retired")
    assert registry.production("digits") is None
    assert registry.rollback("digits", "needed again").record.promotions == [1, 2]


def test_what_has_no_whole_model_is_not_promoted(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    one, two = commit(registry, store, 1, 2)
    store.delete([RUN.version(1)])
    store.put(RUN.version(2), b"short")
    with pytest.raises(NotFound, match="000001"):
        registry.promote(one, "")
    with pytest.raises(Corrupt, match="5 bytes, its manifest says 175"):
        registry.promote(two, "")
    assert registry.production("digits") is None


def test_a_candidate_is_one_that_is_not_in_production(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    (one,) = commit(registry, store, 1)
    assert registry.candidate(one, "r" * 3000).record.reason == "r" * 2000
    assert registry.promote(one, "").record.stage == "production"
    with pytest.raises(ConfigError, match="in production already"):
        registry.candidate(one, "")


def test_a_thousand_promotions_are_remembered_and_no_more(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    one, two = commit(registry, store, 1, 2)
    for _ in range(1003):
        registry.promote(one, "")
        registry.archive(one, "")
    registry.promote(two, "")
    assert registry.get("r", 1).record.promotions == list(range(4, 1004))
    assert opened(store).versions() == registry.versions()


# --- tags and names -----------------------------------------------------------------------------


def test_a_tag_names_one_version_and_moves(registry: ModelRegistry, store: MemoryStore) -> None:
    one, two = commit(registry, store, 1, 2)
    registry.tag(one, "best")
    assert registry.find("best").name == "r:1"
    assert registry.tag(two, "best") == registry.tag(two, "best")
    assert registry.find("best").name == "r:2"
    assert registry.get("r", 1).record.tags == []
    registry.untag(two, "best")
    with pytest.raises(NotFound, match="r:2 has no tag 'best'"):
        registry.untag(two, "best")
    with pytest.raises(NotFound, match="no version is named 'best'"):
        registry.find("best")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("Best", "a-z"),
        ("", "a-z"),
        ("t" * 65, "a-z"),
        ("a:b", "a-z"),
        ("production", "is a stage"),
        ("deadbeef", "sha256"),
        ("r", "the run of that name"),
    ],
)
def test_a_tag_that_means_something_else_is_refused(
    registry: ModelRegistry, store: MemoryStore, label: str, why: str
) -> None:
    (one,) = commit(registry, store, 1)
    with pytest.raises(ConfigError, match=why):
        registry.tag(one, label)
    assert registry.get("r", 1) == one


def test_a_version_has_64_tags_at_most(registry: ModelRegistry, store: MemoryStore) -> None:
    (one,) = commit(registry, store, 1)
    for number in range(64):
        registry.tag(one, f"t{number}")
    with pytest.raises(ConfigError, match="r:1 has 64 tags"):
        registry.tag(one, "t64")
    assert len(registry.tag(one, "t3").record.tags) == 64


def test_the_names_of_a_version(registry: ModelRegistry, store: MemoryStore) -> None:
    one, two, _ = commit(registry, store, 2, 10, 9)
    registry.promote(one, "")
    registry.tag(one, "best-1.0")
    sha256 = one.manifest.sha256
    for name in ("r:2", "digits@production", "production", "best-1.0", sha256, sha256[:8]):
        assert registry.find(name).id == one.id, name
    assert registry.find("r").id == two.id


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("r:3", NotFound, "run r has no version 3: it has 1, 2"),
        ("q:1", NotFound, "no run 'q' has a version here"),
        ("q", NotFound, "no version is named 'q': a name is RUN:VERSION, RUN, TASK@production"),
        ("r:x", ConfigError, "a version is a number, as in r:12"),
        ("r:", ConfigError, "a version is a number"),
        (":1", NotFound, "no run ''"),
        ("r:-1", ConfigError, "a version is a number"),
        ("r:٣", ConfigError, "a version is a number"),
        ("r:" + "9" * 400, ConfigError, "a version is a number"),
        ("faces@production", NotFound, r"no version of task 'faces' is in production \(digits\)"),
        ("@production", NotFound, "no version of task ''"),
        ("digits@candidate", ConfigError, "only production follows an @"),
        ("deadbeef", NotFound, "no version is named"),
        ("abcdef1", NotFound, "no version is named"),
        ("", NotFound, "no version is named ''"),
    ],
)
def test_a_name_that_names_none_says_what_there_is(
    registry: ModelRegistry,
    store: MemoryStore,
    name: str,
    error: type[Exception],
    text: str,
) -> None:
    one, _ = commit(registry, store, 1, 2)
    registry.promote(one, "")
    with pytest.raises(error, match=text):
        registry.find(name)


def test_a_run_that_has_many_versions_names_the_last_few(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    commit(registry, store, *range(8))
    with pytest.raises(NotFound, match="it has 3, 4, 5, 6, 7 and 3 before"):
        registry.get("r", 9)


def test_production_needs_a_task_where_several_have_one(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    with pytest.raises(NotFound, match="no task has any"):
        registry.find("production")
    (one,) = commit(registry, store, 1)
    (other,) = commit(registry, store, 1, run_id="s", task="faces")
    registry.promote(one, "")
    registry.promote(other, "")
    with pytest.raises(ConfigError, match="say one of digits@production, faces@production"):
        registry.find("production")


def test_a_name_that_means_two_versions_is_refused(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    (one,) = commit(registry, store, 1)
    registry.tag(one, "later")
    commit(registry, store, 1, run_id="later")
    with pytest.raises(ConfigError, match="the tag of r:1, the latest of its run: later:1"):
        registry.find("later")
    assert registry.find("later:1").name == "later:1"


def test_the_same_bytes_are_the_version_that_had_them_first(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    commit(registry, store, 5, body=b"same", created_ms=50)
    commit(registry, store, 0, run_id="s", body=b"same", created_ms=60)
    commit(registry, store, 0, run_id="a", body=b"same", created_ms=70)
    sha256 = registry.get("r", 5).manifest.sha256
    assert registry.find(sha256).name == registry.find(sha256[:10]).name == "r:5"


def test_a_start_that_two_hashes_share_is_refused(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    for number in (1, 2):
        manifest = stored(store, "r", number, sha256=f"abcdef00{number:056d}")
        registry.commit(manifest)
    with pytest.raises(ConfigError, match="the hash of r:1, the hash of r:2"):
        registry.find("abcdef00")


def test_versions_come_newest_first(registry: ModelRegistry, store: MemoryStore) -> None:
    commit(registry, store, 1, created_ms=10)
    commit(registry, store, 1, run_id="s", created_ms=30, task="faces")
    commit(registry, store, 2, created_ms=20)
    commit(registry, store, 10, created_ms=5)
    assert [each.name for each in registry.versions()] == ["s:1", "r:2", "r:1", "r:10"]
    assert [each.name for each in registry.versions("r")] == ["r:10", "r:2", "r:1"]
    assert [each.name for each in registry.versions(task="faces")] == ["s:1"]
    assert registry.versions("r", "faces") == registry.versions("none") == []


# --- removing and retention ---------------------------------------------------------------------


def test_a_removed_version_leaves_nothing(registry: ModelRegistry, store: MemoryStore) -> None:
    one, two = commit(registry, store, 1, 2)
    store.put(RUN.state(1), b"state")
    registry.tag(one, "best")
    registry.remove(one)
    assert keys_of(store) == {RUN.version(2), RUN.manifest(2)}
    assert registry.versions() == [two] == opened(store).versions()
    with pytest.raises(NotFound):
        registry.promote(one, "")


def test_what_serves_or_is_to_serve_is_not_removed(
    registry: ModelRegistry, store: MemoryStore
) -> None:
    one, two = commit(registry, store, 1, 2)
    registry.promote(one, "")
    registry.candidate(two, "")
    there = keys_of(store)
    for version, what in ((one, "in production"), (two, "a candidate")):
        with pytest.raises(ConfigError, match=f"{version.name} is {what}"):
            registry.remove(version)
    assert keys_of(store) == there
    registry.archive(two, "")
    registry.remove(two)


def test_what_stays_of_a_run(registry: ModelRegistry, store: MemoryStore) -> None:
    versions = commit(registry, store, *range(8))
    registry.tag(versions[1], "best")
    registry.archive(versions[3], "")
    assert registry.retained("r", 7, 2, 0) == {1, 3, 6, 7}
    assert registry.retained("r", 7, 1, 5) == {0, 1, 3, 5, 7}
    assert registry.retained("none", 9, 2, 0) == {8, 9}


def test_what_a_sweep_took_is_forgotten(store: MemoryStore) -> None:
    cache = DictCache()
    registry = opened(store, cache)
    commit(registry, store, 1, 2, 3)
    commit(registry, store, 1, run_id="s")
    registry = opened(store, cache)
    registry.forget_others("r", {3})
    assert {each.name for each in registry.versions()} == {"r:3", "s:1"}
    assert set(cache.held) == {RUN.manifest(3), RunKeys(PROJECT, "s").manifest(1)}


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
    assert 1 in registry.retained("r", 9, 1, 0)
    assert registry.commit(manifest_of("r", 1, model_file(b"r 1"))).name == "r:1"
    assert registry.unreadable("r") == set()
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
