"""Local copies of versions: verified, few, and whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fl_server.aggregation.model_cache import ModelCache
from fl_server.rounds.model import Model
from runtime.errors import Corrupt, NotFound
from runtime.files import file_sha256
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo


class CountingStore(MemoryStore):
    """Counts reads, so that a second fetch can be seen to need none."""

    reads = 0

    def open(self, key, start=0, end=None):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().open(key, start, end)


def model(version: int, data: bytes) -> Model:
    return Model(version, f"v/{version}", hashlib.sha256(data).hexdigest(), len(data))


def stored(store: MemoryStore, version: int, data: bytes) -> Model:
    info: ObjectInfo = store.put(f"v/{version}", data)
    assert info.size == len(data)
    return model(version, data)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def cache(tmp_path: Path, store: CountingStore) -> ModelCache:
    return ModelCache(tmp_path / "work" / "run", store, keep=2)


def test_a_copy_is_fetched_once(cache: ModelCache, store: CountingStore) -> None:
    wanted = stored(store, 1, b"x" * 3_000_000)
    path = cache.fetch(wanted)
    assert path.read_bytes() == b"x" * 3_000_000
    assert cache.fetch(wanted) == path
    assert store.reads == 1


def test_an_object_that_is_not_what_was_committed_is_no_copy(
    cache: ModelCache, store: CountingStore
) -> None:
    wanted = stored(store, 1, b"right")
    store.put("v/1", b"wrong")
    with pytest.raises(Corrupt, match="v/1 has sha256"):
        cache.fetch(wanted)
    assert list(cache.folder.iterdir()) == []
    store.put("v/1", b"right")
    assert cache.fetch(wanted).read_bytes() == b"right"


def test_a_version_that_is_gone_is_named(cache: ModelCache) -> None:
    with pytest.raises(NotFound, match="v/9"):
        cache.fetch(model(9, b"gone"))


def test_the_two_latest_used_stay(cache: ModelCache, store: CountingStore) -> None:
    models = [stored(store, version, bytes([version])) for version in range(4)]
    paths = []
    for age, each in enumerate(models[:3]):
        path = cache.fetch(each)
        os.utime(path, (1000 + age, 1000 + age))
        paths.append(path)
    assert [path.exists() for path in paths] == [False, True, True]
    cache.fetch(models[1])  # used again, so that the other one is the oldest
    last = cache.fetch(models[3])
    assert [path.exists() for path in (paths[1], paths[2], last)] == [True, False, True]


def test_a_made_version_is_adopted_without_a_fetch(cache: ModelCache, store: CountingStore) -> None:
    path = cache.temporary()
    path.write_bytes(b"made here")
    made = model(5, b"made here")
    assert file_sha256(path) == made.sha256
    cache.adopt(path, made)
    assert cache.fetch(made).read_bytes() == b"made here"
    assert not path.exists()
    assert store.reads == 0


def test_half_written_files_of_a_killed_process_are_removed(
    cache: ModelCache, store: CountingStore
) -> None:
    leftover = cache.temporary()
    leftover.write_bytes(b"half")
    kept = cache.fetch(stored(store, 1, b"whole"))
    again = ModelCache(cache.folder, store)
    assert not leftover.exists()
    assert again.fetch(model(1, b"whole")) == kept
    assert store.reads == 1


def test_forget_leaves_nothing(cache: ModelCache, store: CountingStore) -> None:
    cache.fetch(stored(store, 1, b"a"))
    cache.forget()
    assert not cache.folder.exists()
    assert cache.fetch(model(1, b"a")).read_bytes() == b"a"


def test_the_folder_is_private(cache: ModelCache, store: CountingStore) -> None:
    cache.fetch(stored(store, 1, b"a"))
    assert cache.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("left", [b"", b"wh", bytes(5)])
def test_a_copy_that_a_power_cut_has_hollowed_is_fetched_again(
    cache: ModelCache, store: CountingStore, left: bytes
) -> None:
    wanted = stored(store, 1, b"whole")
    cache.fetch(wanted).write_bytes(left)
    again = ModelCache(cache.folder, store)
    assert again.fetch(wanted).read_bytes() == b"whole"
    assert store.reads == 2


def test_a_sound_copy_of_a_former_process_is_taken(cache: ModelCache, store: CountingStore) -> None:
    wanted = stored(store, 1, b"whole")
    cache.fetch(wanted)
    again = ModelCache(cache.folder, store)
    assert again.fetch(wanted).read_bytes() == b"whole"
    assert store.reads == 1
