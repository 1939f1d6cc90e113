"""Whatever breaks between a caller and the store: a named error or success, never a wrong model.

The same on both embedded stores behind a proxy that misbehaves, and in memory where it has a
meaning.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fl_server.aggregation.model_cache import ModelCache
from fl_server.rounds.model import Model
from runtime.errors import AccessDenied, Corrupt, NotFound, StorageError, Unavailable
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectStore, abort_uploads
from storage.store.s3 import S3Store
from storage.transfer import http
from storage.transfer.files import Transfers, TransferSettings
from tests.contract.faulty_store import (
    KEY,
    NEW,
    OLD,
    QUICK,
    SIZE,
    URL_S,
    WAYS_IN,
    Rough,
    model,
    path,
    read,
    rough,
    sha256,
    source_of,
    way_in,
)
from tests.integration.store_fixtures import KINDS, bucket_of, embedded_store, running_store
from tests.proxy import Fault

__all__ = ["embedded_store", "path", "rough"]


@pytest.fixture(params=["memory", *KINDS])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    with running_store(tmp_path / "data", request.param) as embedded:
        yield bucket_of(embedded)


# --- torn writes ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("cut", [100, SIZE // 2, SIZE])
@pytest.mark.parametrize("there", [False, True], ids=["none", "old"])
def test_a_put_cut_midway_leaves_the_old_object_or_none(
    rough: Rough, tmp_path: Path, way: str, cut: int, there: bool
) -> None:
    if there:
        rough.store.put(KEY, OLD)
    faulty = rough.behind(always=Fault(cut_up=cut))
    with pytest.raises(Unavailable, match=KEY) as caught:
        way_in(way, rough, faulty, tmp_path)()
    assert "X-Amz" not in str(caught.value)
    assert rough.proxy.connections >= 3
    if there:
        assert read(rough.store) == OLD
    else:
        assert list(rough.store.list("")) == []


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_put_whose_answer_is_lost_is_made_again(rough: Rough, tmp_path: Path, way: str) -> None:
    rough.store.put(KEY, OLD)
    faulty = rough.behind(Fault(cut_down=0), Fault(cut_up=SIZE // 3))
    way_in(way, rough, faulty, tmp_path)()
    assert read(rough.store) == NEW


def test_a_large_put_cut_midway_leaves_the_old_object_and_no_parts(rough: Rough) -> None:
    rough.store.put(KEY, OLD)
    large = os.urandom(11 << 20)
    # creating the upload and aborting it pass; no connection carries a part to its end
    faulty = rough.behind(always=Fault(cut_up=3 << 20))
    with pytest.raises(Unavailable, match=KEY):
        faulty.put(KEY, large)
    assert read(rough.store) == OLD
    assert abort_uploads(rough.store, "") == 0
    rough.behind(Fault(), Fault(cut_up=2 << 20), Fault(cut_down=0)).put(KEY, large)
    assert read(rough.store) == large


def test_a_source_that_ends_early_leaves_the_old_object(any_store: ObjectStore) -> None:
    any_store.put(KEY, OLD)
    with pytest.raises(Corrupt, match="ended after"):
        any_store.put(KEY, io.BytesIO(NEW), len(NEW) + 1)
    assert read(any_store) == OLD


# --- concurrent writers -----------------------------------------------------------------------


def written_while(store: ObjectStore, bodies: list[bytes], look: Callable[[], None]) -> None:
    """Let a writer for each body replace KEY again and again while two readers look."""
    store.put(KEY, bodies[0])
    done = threading.Event()

    def write(body: bytes) -> None:
        for _ in range(6):
            store.put(KEY, body)

    def watch() -> None:
        while not done.is_set():
            try:
                look()
            except (Unavailable, NotFound):
                # what was replaced while it was read may break off, by name
                continue

    with ThreadPoolExecutor(len(bodies) + 2) as threads:
        readers = [threads.submit(watch) for _ in range(2)]
        try:
            for writer in [threads.submit(write, body) for body in bodies]:
                writer.result()
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert read(store) in bodies
    assert [info.key for info in store.list("")] == [KEY]


def test_a_reader_sees_one_of_the_writers_whole(any_store: ObjectStore) -> None:
    bodies = [random.Random(seed).randbytes(SIZE) for seed in range(4)]
    seen: list[bytes] = []
    written_while(any_store, bodies, lambda: seen.append(read(any_store)))
    assert seen
    assert all(each in bodies for each in seen)


def test_a_reader_takes_none_but_the_one_it_wants(any_store: ObjectStore, tmp_path: Path) -> None:
    # one store gives the new object under the old one's length, if they differ
    bodies = [random.Random(seed).randbytes(SIZE + 1000 * seed) for seed in range(4)]
    wanted = [Model(1, KEY, sha256(body), len(body)) for body in bodies]
    numbers = itertools.count()
    outcomes: list[bool] = []

    def look() -> None:
        number = next(numbers)
        index, folder = number % len(bodies), tmp_path / str(number)
        try:
            found = ModelCache(folder, any_store).fetch(wanted[index])
        except Corrupt:
            outcomes.append(False)
            assert list(folder.iterdir()) == []
            return
        outcomes.append(True)
        assert found.read_bytes() == bodies[index]

    written_while(any_store, bodies, look)
    assert False in outcomes


# --- 503 --------------------------------------------------------------------------------------


def verbs(store: S3Store, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return every way to use the store, where KEY holds OLD."""
    source, target = source_of(OLD, folder), folder / "target"

    def download() -> None:
        target.unlink(missing_ok=True)
        url = store.presign_get(KEY, URL_S)
        Transfers(QUICK).download(url, target, sha256=sha256(OLD), size=SIZE)

    return {
        "put": lambda: store.put(KEY, OLD),
        "open": lambda: read(store),
        "head": lambda: store.head(KEY),
        "list": lambda: list(store.list("")),
        "delete": lambda: store.delete(["gone/1", "gone/2"]),
        "abort": lambda: abort_uploads(store, ""),
        "bucket": store.ensure_bucket,
        "large": lambda: store.put("large", bytes(7 << 20)),
        "upload": lambda: Transfers(QUICK).upload(store.presign_put(KEY, URL_S), source),
        "download": download,
        "cache": lambda: ModelCache(folder / "cache", store).fetch(model(OLD)),
    }


VERBS = (
    *("put", "open", "head", "list", "delete", "abort", "bucket", "large"),
    *("upload", "download", "cache"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_a_busy_store_is_asked_again(rough: Rough, tmp_path: Path, verb: str) -> None:
    rough.store.put(KEY, OLD)
    busy = Fault(status=503)
    verbs(rough.behind(busy, busy), tmp_path)[verb]()
    assert rough.proxy.faults == []
    assert read(rough.store) == OLD


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_that_stays_busy_is_given_up_by_name(
    rough: Rough, tmp_path: Path, verb: str
) -> None:
    rough.store.put(KEY, OLD)
    faulty = rough.behind(always=Fault(status=503))
    with pytest.raises(Unavailable, match="503") as caught:
        verbs(faulty, tmp_path)[verb]()
    assert "X-Amz" not in str(caught.value)
    assert read(rough.store) == OLD


# --- slow and cut connections -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_downloads_go_on_after_cuts_at_random_bytes(rough: Rough, path: Path, seed: int) -> None:
    rough.store.put(KEY, OLD)
    source = random.Random(seed)
    cuts = [Fault(cut_down=source.randrange(1, SIZE)) for _ in range(2)]
    url = rough.behind(*cuts).presign_get(KEY, URL_S)
    Transfers(QUICK).download(url, path, sha256=sha256(OLD), size=SIZE)
    assert path.read_bytes() == OLD
    assert rough.proxy.connections >= 2


def test_the_server_s_copy_comes_whole_or_not_at_all(rough: Rough, tmp_path: Path) -> None:
    rough.store.put(KEY, OLD)
    cache = ModelCache(tmp_path / "cache", rough.behind(Fault(cut_down=SIZE // 2)))
    with pytest.raises(Unavailable, match=KEY):
        cache.fetch(model(OLD))
    assert list((tmp_path / "cache").iterdir()) == []
    assert cache.fetch(model(OLD)).read_bytes() == OLD


@pytest.mark.parametrize("fault", [Fault(delay_s=0.5), Fault(rate_bps=6e6)], ids=["late", "thin"])
def test_a_slow_link_takes_its_time(rough: Rough, tmp_path: Path, fault: Fault) -> None:
    rough.store.put(KEY, OLD)
    ways = verbs(rough.behind(always=fault), tmp_path)
    for verb in ("put", "upload", "download", "cache"):
        ways[verb]()
    assert read(rough.store) == OLD


def test_a_store_that_falls_silent_is_left(rough: Rough, tmp_path: Path, path: Path) -> None:
    rough.store.put(KEY, OLD)
    faulty = rough.behind(always=Fault(stall_down=SIZE // 2), read_s=1.0)
    with pytest.raises(Unavailable, match="ReadTimeoutError"):
        ModelCache(tmp_path / "cache", faulty).fetch(model(OLD))
    dogged = Transfers(TransferSettings(attempts=5, read_s=1.0))
    url = faulty.presign_get(KEY, URL_S)
    assert (
        dogged.download(url, path, sha256=sha256(OLD), size=SIZE) == SIZE
    )  # by what each try brings
    hasty = Transfers(TransferSettings(attempts=2, read_s=1.0))
    faulty = rough.behind(always=Fault(stall_down=0), read_s=1.0)
    path.unlink()
    with pytest.raises(Unavailable, match="ReadTimeoutError"):
        hasty.download(faulty.presign_get(KEY, URL_S), path, sha256=sha256(OLD), size=SIZE)
    with pytest.raises(Unavailable, match="ReadTimeoutError"):
        faulty.put(KEY, NEW)
    # the answer was withheld, not the object
    assert read(rough.store) in (OLD, NEW)


# --- expired and reused URLs ------------------------------------------------------------------


def wait_until_refused(url: str) -> None:
    """Ask by a URL of one second until the store says that it is over."""
    pause = threading.Event()
    with http.pool(connect_s=2.0, read_s=5.0) as pool:
        for _ in range(100):
            if pool.request("GET", url).status == 403:
                return
            pause.wait(0.1)
    raise AssertionError("the URL did not expire")


def test_an_expired_url_moves_nothing_until_it_is_renewed(
    rough: Rough, tmp_path: Path, path: Path
) -> None:
    store, source = rough.store, source_of(NEW, tmp_path)
    store.put(KEY, OLD)
    put, get = store.presign_put(KEY, 1), store.presign_get(KEY, 1)
    wait_until_refused(get)
    transfers = Transfers(QUICK)
    with pytest.raises(AccessDenied, match=KEY) as caught:
        transfers.download(get, path, sha256=sha256(OLD), size=SIZE)
    assert "X-Amz" not in str(caught.value)
    with pytest.raises(AccessDenied, match=KEY):
        transfers.upload(put, source)
    assert read(store) == OLD
    assert not path.exists()
    transfers.download(
        get, path, sha256=sha256(OLD), size=SIZE, renew=lambda: store.presign_get(KEY, URL_S)
    )
    transfers.upload(put, source, renew=lambda: store.presign_put(KEY, URL_S))
    assert path.read_bytes() == OLD
    assert read(store) == NEW


def test_a_url_used_again_does_what_it_did_and_no_more(
    rough: Rough, tmp_path: Path, path: Path
) -> None:
    store, source, transfers = rough.store, source_of(OLD, tmp_path), Transfers(QUICK)
    put, get = store.presign_put(KEY, URL_S), store.presign_get(KEY, URL_S)
    transfers.upload(put, source)
    transfers.upload(put, source)
    transfers.download(get, path, sha256=sha256(OLD), size=SIZE)
    source_of(NEW, tmp_path)
    transfers.upload(put, source)
    path.unlink()
    # whoever replaced the object meanwhile: the URL alone does not make it the right one
    with pytest.raises(Corrupt, match="does not have the sha256"):
        transfers.download(get, path, sha256=sha256(OLD), size=SIZE)
    with pytest.raises(Corrupt, match="has sha256"):
        ModelCache(tmp_path / "cache", store).fetch(model(OLD))
    store.delete([KEY])
    with pytest.raises(NotFound, match=KEY):
        transfers.download(get, path, sha256=sha256(NEW), size=SIZE)
    assert not path.exists()


# --- a full disk ------------------------------------------------------------------------------


@contextmanager
def no_room_here(most: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``most`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_on_this_side_is_an_error_and_room_mends_it(
    rough: Rough, tmp_path: Path, path: Path
) -> None:
    rough.store.put(KEY, OLD)
    cache, url = ModelCache(tmp_path / "cache", rough.store), rough.store.presign_get(KEY, URL_S)
    with no_room_here(1_500_000):
        with pytest.raises(OSError, match="File too large"):
            Transfers(QUICK).download(url, path, sha256=sha256(OLD), size=SIZE)
        with pytest.raises(OSError, match="File too large"):
            cache.fetch(model(OLD))
    assert not path.exists()
    assert list((tmp_path / "cache").iterdir()) == []
    assert Transfers(QUICK).download(url, path, sha256=sha256(OLD), size=SIZE) <= SIZE
    assert path.read_bytes() == OLD
    assert cache.fetch(model(OLD)).read_bytes() == OLD


# --- one flipped bit --------------------------------------------------------------------------


def test_a_bit_flipped_on_the_way_here_is_fetched_again(
    rough: Rough, tmp_path: Path, path: Path
) -> None:
    rough.store.put(KEY, OLD)
    url = rough.behind(Fault(flip_down=SIZE // 2)).presign_get(KEY, URL_S)
    moved = Transfers(QUICK).download(url, path, sha256=sha256(OLD), size=SIZE)
    assert moved == 2 * SIZE
    assert path.read_bytes() == OLD
    cache = ModelCache(tmp_path / "cache", rough.behind(Fault(flip_down=SIZE // 2)))
    with pytest.raises(Corrupt, match=KEY):
        cache.fetch(model(OLD))
    assert list((tmp_path / "cache").iterdir()) == []
    assert cache.fetch(model(OLD)).read_bytes() == OLD


def test_a_link_that_always_flips_never_gives_a_model(rough: Rough, path: Path) -> None:
    rough.store.put(KEY, OLD)
    url = rough.behind(always=Fault(flip_down=SIZE // 2, flip_again=True)).presign_get(KEY, URL_S)
    with pytest.raises(Corrupt, match="does not have the sha256"):
        Transfers(QUICK).download(url, path, sha256=sha256(OLD), size=SIZE)
    assert not path.exists()


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_bit_flipped_on_the_way_there_is_found_by_who_reads(
    rough: Rough, tmp_path: Path, path: Path, way: str
) -> None:
    faulty = rough.behind(Fault(flip_up=SIZE // 2))
    try:
        way_in(way, rough, faulty, tmp_path)()
    except StorageError:
        return
    with pytest.raises(Corrupt, match=KEY):
        ModelCache(tmp_path / "cache", rough.store).fetch(model(NEW))
    url = rough.store.presign_get(KEY, URL_S)
    with pytest.raises(Corrupt, match="does not have the sha256"):
        Transfers(QUICK).download(url, path, sha256=sha256(NEW), size=SIZE)
    assert not path.exists()
