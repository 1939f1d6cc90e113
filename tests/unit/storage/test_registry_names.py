"""The model registry on the store in memory: tags, and the names of a version."""

from __future__ import annotations

import pytest

from runtime.errors import ConfigError, NotFound
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from tests.unit.storage.registry import commit, registry, store
from tests.versions import stored

__all__ = ["registry", "store"]


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
