"""The model registry on the store in memory: versions committed, measured, promoted and removed."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import ConfigError, Corrupt, InvalidTransition, NotFound
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from storage.versions.manifest import Record
from tests.unit.storage.registry import RUN, commit, opened, registry, stages, store
from tests.versions import KEY, PROJECT, DictCache, manifest_of, stored

__all__ = ["registry", "store"]


def keys_of(store: MemoryStore) -> set[str]:
    return {info.key for info in store.list("")}


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
