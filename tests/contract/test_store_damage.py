"""A store that is killed, full or damaged: a named error or success, never a wrong model."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fl_server.aggregation.model_cache import ModelCache
from runtime.errors import Corrupt, RengoError, StorageError, Unavailable
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.memory import MemoryStore
from storage.store.s3 import S3Store
from storage.transfer.files import Transfers
from tests.contract.faulty_store import (
    KEY,
    NEW,
    OLD,
    QUICK,
    SIZE,
    URL_S,
    WAYS_IN,
    Rough,
    hasty,
    model,
    path,
    read,
    sha256,
    way_in,
)
from tests.disks import small_disk
from tests.integration.broker_fixtures import eventually
from tests.integration.store_fixtures import KINDS, bucket_of, running_store
from tests.proxy import Fault, Proxy
from tests.support import hold_still

__all__ = ["path"]
BIG = random.Random(3).randbytes(16_000_000)


# --- kill -9 ----------------------------------------------------------------------------------


@contextmanager
def mortal(folder: Path, kind: Kind) -> Iterator[tuple[EmbeddedStore, Rough]]:
    with running_store(folder / "data", kind) as embedded:
        store = bucket_of(embedded)
        with Proxy(store.settings.endpoint) as proxy, instant():
            yield embedded, Rough(store, proxy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS_IN)
def test_a_store_killed_during_a_put_has_the_old_object(
    tmp_path: Path, kind: Kind, way: str
) -> None:
    with mortal(tmp_path, kind) as (embedded, rough):
        rough.store.put(KEY, OLD)
        faulty = rough.behind(Fault(on_up=(SIZE // 2, embedded.kill)))
        with pytest.raises(Unavailable, match=KEY):
            way_in(way, rough, faulty, tmp_path)()
        eventually(lambda: not embedded.running)  # the connection breaks before the kill returns
        embedded.start()
        assert read(rough.store) == OLD
        assert [info.key for info in rough.store.list("")] == [KEY]
        way_in(way, rough, rough.behind(), tmp_path)()
        assert read(rough.store) == NEW


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_killed_during_a_get_costs_the_rest_alone(
    tmp_path: Path, path: Path, kind: Kind
) -> None:
    with mortal(tmp_path, kind) as (embedded, rough):
        rough.store.put(KEY, BIG)
        faulty = rough.behind(Fault(on_down=(len(BIG) // 4, embedded.kill)))

        def fetch() -> int:
            url = faulty.presign_get(KEY, URL_S)
            return Transfers(QUICK).download(url, path, sha256=sha256(BIG), size=len(BIG))

        with pytest.raises(Unavailable, match=KEY):
            fetch()
        assert not path.exists()
        have = path.with_name(path.name + ".part").stat().st_size
        assert 0 < have < len(BIG)
        embedded.start()
        assert fetch() == len(BIG) - have
        assert path.read_bytes() == BIG


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_s_copy_is_whole_or_none_when_the_store_is_killed(
    tmp_path: Path, kind: Kind
) -> None:
    with mortal(tmp_path, kind) as (embedded, rough):
        rough.store.put(KEY, BIG)
        faulty = rough.behind(Fault(on_down=(len(BIG) // 4, embedded.kill)))
        cache = ModelCache(tmp_path / "cache", faulty)
        with pytest.raises(Unavailable, match=KEY):
            cache.fetch(model(BIG))
        assert list((tmp_path / "cache").iterdir()) == []
        embedded.start()
        assert cache.fetch(model(BIG)).read_bytes() == BIG


# --- a full disk ------------------------------------------------------------------------------


def limit_files(pid: int, most: int) -> None:
    """Let no file of the process and its threads grow beyond ``most`` bytes."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


def fill(store: S3Store) -> tuple[dict[str, bytes], RengoError]:
    """Put objects until the store refuses, and return those it took."""
    taken: dict[str, bytes] = {}
    for index in range(40):
        key, data = f"fill/{index:02}", random.Random(index).randbytes(4_000_000)
        try:
            store.put(key, data)
        except StorageError as error:
            return taken, error
        taken[key] = data
    raise AssertionError("the disk did not fill")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_a_named_error_and_takes_nothing_away(tmp_path: Path, kind: Kind) -> None:
    with small_disk(tmp_path / "disk", 64) as mounted:
        embedded = EmbeddedStore(tmp_path / "disk" / "data", kind)
        embedded.start()
        try:
            store = hasty(bucket_of(embedded))
            if not mounted:
                limit_files(embedded.pid, 2_000_000)
            with instant():
                taken, error = fill(store)
            assert "fill/" in str(error)
            assert store.settings.endpoint in str(error)
            if not embedded.running:
                embedded.start()
            kept = {info.key: info.size for info in store.list("fill/")}
            assert kept == {key: len(data) for key, data in taken.items()}
            for key, data in taken.items():
                assert read(store, key) == data
        finally:
            embedded.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_may_not_grow_is_a_named_error(tmp_path: Path, kind: Kind) -> None:
    with running_store(tmp_path / "data", kind) as embedded:
        store = hasty(bucket_of(embedded))
        store.put("small", b"hello")
        limit_files(embedded.pid, 2_000_000)
        with instant(), pytest.raises(StorageError, match=KEY):
            store.put(KEY, random.Random(0).randbytes(8_000_000))
        if not embedded.running:
            embedded.start()
        assert read(store, "small") == b"hello"
        assert [info.key for info in store.list("projects/")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_answers_nobody_is_of_no_use(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.store.embedded._ANSWER_S", 0.1)
    with running_store(tmp_path / "data", kind) as embedded:
        eventually(lambda: embedded.fault() == "")
        hold_still(embedded.pid)
        found = [embedded.fault() for _ in range(6)]
        os.kill(embedded.pid, signal.SIGCONT)
        assert found[:5] == 5 * [""], "a busy one may be late"
        assert found[5] == f"it does not answer at {embedded.settings.endpoint}"
        eventually(lambda: embedded.fault() == "")


# --- one flipped bit --------------------------------------------------------------------------


def flip_at_rest(folder: Path, known: bytes) -> None:
    """Flip a bit of these bytes wherever the store keeps them below its folder."""
    for found in folder.rglob("*"):
        if not found.is_file():
            continue
        data = found.read_bytes()
        at = data.find(known)
        if at >= 0:
            with found.open("r+b") as file:
                file.seek(at)
                file.write(bytes([known[0] ^ 1]))
            return
    raise AssertionError("the store keeps the bytes in another form")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_flipped_at_rest_is_found(tmp_path: Path, path: Path, kind: Kind) -> None:
    with running_store(tmp_path / "data", kind) as embedded:
        store = hasty(bucket_of(embedded))
        store.put(KEY, OLD)
        embedded.stop()
        flip_at_rest(tmp_path / "data", OLD[SIZE // 2 : SIZE // 2 + 64])
        embedded.start()
        url = store.presign_get(KEY, URL_S)
        with instant(), pytest.raises(StorageError, match=KEY) as caught:
            Transfers(QUICK).download(url, path, sha256=sha256(OLD), size=SIZE)
        assert isinstance(caught.value, Corrupt | Unavailable)
        assert not path.exists()
        with instant(), pytest.raises(StorageError, match=KEY):
            ModelCache(tmp_path / "cache", store).fetch(model(OLD))
        assert list((tmp_path / "cache").iterdir()) == []


def test_a_bit_flipped_in_memory_is_found(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put(KEY, bytes([OLD[0] ^ 1]) + OLD[1:])
    with pytest.raises(Corrupt, match=KEY):
        ModelCache(tmp_path / "cache", store).fetch(model(OLD))
    assert list((tmp_path / "cache").iterdir()) == []
