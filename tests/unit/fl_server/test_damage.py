"""One object that the store cannot give: it concerns itself alone, and no waiting mends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_server.aggregation.base_models import BaseLost, BaseModels
from fl_server.aggregation.model_cache import ModelCache
from fl_server.dataplane import patience
from fl_server.dataplane.patience import Patience
from fl_server.flows.events import FailureReported
from fl_server.rounds.commands import Aggregate, SweepRound, VerifyUpdate
from fl_server.rounds.events import UpdateRejected
from runtime.errors import AccessDenied, ConfigError, Damaged, NotFound, Unavailable
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from tests.unit.fl_server.test_finite_versions import plane_of
from tests.unit.fl_server.test_streaming import KEYS, Bench
from tests.versions import KEY, PROJECT, stored

RUN = RunKeys(PROJECT, "r")


class DamagedStore(MemoryStore):
    """A store that answers 500 for some keys, or for all."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: set[str] = set()
        self.away = False

    def open(self, key: str, start: int = 0, end: int | None = None) -> Any:
        if self.away or key in self.lost:
            raise Unavailable(f"GET {key}: the store answered 500")
        return super().open(key, start, end)


def opened(store: MemoryStore) -> ModelRegistry:
    return ModelRegistry(store, PROJECT, KEY)


@pytest.fixture
def store() -> DamagedStore:
    found = DamagedStore()
    registry = opened(found)
    registry.rebuild()
    for number in range(3):
        registry.commit(stored(found, "r", number))
    registry.promote(registry.get("r", 1), "")
    registry.tag(registry.get("r", 2), "best")
    return found


@pytest.mark.parametrize("document", [RUN.manifest, RUN.record])
def test_a_document_that_is_not_given_sets_its_version_aside_alone(
    store: DamagedStore, document: Callable[[int], str]
) -> None:
    store.lost = {document(2)}
    registry = opened(store)
    (line,) = registry.rebuild()
    why = f"GET {document(2)}: the store answered 500, while the store serves other objects"
    assert line == f"r:2 is set aside: {why}"
    assert registry.set_aside() == {("r", 2): why}
    assert [each.name for each in registry.versions()] == ["r:1", "r:0"]
    production = registry.production("digits")
    assert production is not None
    assert production.name == "r:1"
    with pytest.raises(NotFound, match=r"r:2 is set aside: GET .*500"):
        registry.find("r:2")
    registry.promote(registry.get("r", 0), "")
    registry.commit(stored(store, "r", 3))
    assert registry.retained("r", 3, keep=1, keep_every=0) == {0, 1, 2, 3}
    store.lost = set()
    assert opened_names(store) == ["r:3", "r:2", "r:1", "r:0"]


def opened_names(store: MemoryStore) -> list[str]:
    registry = opened(store)
    assert registry.rebuild() == []
    assert registry.find("best").name == "r:2", "what it had was not written over"
    return [each.name for each in registry.versions()]


@pytest.mark.parametrize("document", [RUN.manifest, RUN.record])
@pytest.mark.parametrize("why", ["not given", "not valid"])
def test_a_version_that_is_set_aside_can_be_removed(
    store: DamagedStore, document: Callable[[int], str], why: str
) -> None:
    if why == "not given":
        store.lost = {document(2)}
    else:
        store.put(RUN.manifest(2), b"{}")
    registry = opened(store)
    registry.rebuild()
    assert registry.find_set_aside("r:2") == ("r", 2)
    assert registry.find_set_aside("r:1") is None
    registry.discard("r", 2)
    assert registry.set_aside() == {}
    assert [info.key for info in store.list(RUN.prefix) if RUN.version_of(info.key) == 2] == []
    with pytest.raises(NotFound, match="run r has no version 2"):
        registry.find("r:2")
    store.lost = set()
    assert opened(store).rebuild() == []
    with pytest.raises(ConfigError, match="r:1 is not set aside any more"):
        registry.discard("r", 1)
    assert [each.name for each in registry.versions()] == ["r:1", "r:0"]
    # its number is free again
    assert registry.commit(stored(store, "r", 2)).record.tags == []


def test_what_a_failed_removal_left_of_a_damaged_version_goes_next_time(
    store: DamagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.lost = {RUN.manifest(2)}
    registry = opened(store)
    registry.rebuild()
    deleted = store.delete

    def fail(keys: Any) -> None:
        if (found := list(keys)) != [RUN.version(2)]:
            raise Unavailable("DELETE: the store answered 500")
        deleted(found)

    monkeypatch.setattr(store, "delete", fail)
    with pytest.raises(Unavailable):
        registry.discard("r", 2)
    assert list(registry.set_aside()) == [("r", 2)]
    monkeypatch.undo()
    registry.tag(registry.get("r", 1), "good")
    assert registry.set_aside() == {}
    assert [info.key for info in store.list(RUN.prefix) if RUN.version_of(info.key) == 2] == []


def test_an_absent_store_sets_nothing_aside(store: DamagedStore) -> None:
    store.away = True
    registry = opened(store)
    with pytest.raises(Unavailable):
        registry.rebuild()
    store.away = False
    assert registry.rebuild() == []


# --- patience -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_SURE_S", 0.05)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE_S", 0.02)


def failing(*errors: Exception) -> Callable[[], str]:
    left = iter(errors)

    def work() -> str:
        error = next(left, None)
        if error is not None:
            raise error
        return "done"

    return work


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [Unavailable, AccessDenied])
def test_the_same_error_while_others_are_served_is_damage(kind: type[Exception]) -> None:
    found = Patience(threading.Event(), lambda: True)
    with pytest.raises(Damaged, match="GET k: 500, while the store serves other objects"):
        found.until_done(failing(*[kind("GET k: 500")] * 10_000), "r")
    assert found.waiting("r") is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [Unavailable, AccessDenied, OSError])
def test_an_absent_store_and_a_full_disk_are_waited_for(kind: type[Exception]) -> None:
    asked: list[bool] = []

    def serves() -> bool:
        asked.append(True)
        return len(asked) > 3 and kind is OSError

    found = Patience(threading.Event(), serves)
    seen: list[object] = []
    left = iter(range(20))

    def work() -> str:
        seen.append(found.waiting("r"))
        if next(left, None) is not None:
            raise kind("away")
        return "done"

    begun_s = time.time()
    assert found.until_done(work, "r") == "done"
    waiting = seen[-1]
    assert isinstance(waiting, patience.Waiting)
    assert waiting.reason == "away"
    assert begun_s <= waiting.since_s <= time.time()
    assert (found.waiting("r"), found.waiting("s")) == (None, None)
    assert bool(asked) == (kind is not OSError)


def test_stopping_ends_a_wait() -> None:
    stopping = threading.Event()
    threading.Timer(0.1, stopping.set).start()
    with pytest.raises(Unavailable):
        Patience(stopping, lambda: False).until_done(failing(*[Unavailable("away")] * 10_000), "")


# --- a run --------------------------------------------------------------------------------------


class DamagedBench(Bench):
    """A run whose store loses objects."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lost = DamagedStore()
        for info in self.store.list(""):
            with self.store.open(info.key) as stream:
                lost.put(info.key, stream.read(info.size))
        self.store = self.lossy = lost
        self.restart()


@pytest.fixture
def bench(tmp_path: Path) -> DamagedBench:
    return DamagedBench(tmp_path / "bench")


@pytest.mark.usefixtures("quick")
def test_a_lost_update_is_refused_and_a_lost_base_ends_the_run(
    bench: DamagedBench, tmp_path: Path
) -> None:
    plane = plane_of(bench, tmp_path / "plane")
    try:
        made = bench.submit("a")
        verify = VerifyUpdate("a", made.round, made.attempt, made.update)
        bench.lossy.lost = {made.update.key}
        event = plane.perform(KEYS.run_id, verify, bench.model)
        assert isinstance(event, UpdateRejected)
        assert f"GET {made.update.key}: the store answered 500" in event.reason
        plane.forget_copies(KEYS.run_id)
        plane = restarted(bench, plane, tmp_path / "again")
        bench.lossy.lost = {bench.model.key}
        for command in (verify, Aggregate(1, 1, ("a",), 1), SweepRound(1, 1)):
            failed = plane.perform(KEYS.run_id, command, bench.model)
            assert isinstance(failed, FailureReported)
            assert f"version 0 is lost: GET {bench.model.key}: the store answered 500" in (
                failed.reason
            )
    finally:
        plane.stop()


def restarted(bench: Bench, plane: Any, folder: Path) -> Any:
    plane.stop()
    return plane_of(bench, folder)


def test_what_the_store_has_lost_is_put_back_from_the_server_s_copy(
    bench: DamagedBench, tmp_path: Path
) -> None:
    base = BaseModels(ModelCache(tmp_path / "copies", bench.store), bench.store)
    base.fetch(bench.model)
    bench.store.delete([bench.model.key])
    base.require_stored(bench.model)
    with bench.store.open(bench.model.key) as stream:
        assert len(stream.read(1 << 30)) == bench.model.size_bytes
    base.forget()
    bench.store.delete([bench.model.key])
    with pytest.raises(BaseLost, match="no such object"):
        base.require_stored(bench.model)
