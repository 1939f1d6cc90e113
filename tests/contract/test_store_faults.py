"""Whatever breaks between a caller and the store: a named error or success, never a wrong model.

The same on both embedded stores behind a proxy that misbehaves, and in memory where it has a
meaning.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_server.aggregation.model_cache import ModelCache
from fl_server.rounds.model import Model
from runtime.errors import AccessDenied, Corrupt, NotFound, RengoError, StorageError, Unavailable
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectStore, abort_uploads
from storage.store.s3 import S3Store
from storage.transfer import http
from storage.transfer.files import Transfers, TransferSettings
from storage.transfer.multipart import PartSizes
from tests.integration.store_fixtures import KINDS, bucket_of, embedded_store, running_store  # noqa: F401
from tests.proxy import Fault, Proxy

KEY = "projects/p/runs/r/global/000001.safetensors"
SIZE = 3_000_000
OLD = random.Random(1).randbytes(SIZE)
NEW = random.Random(2).randbytes(SIZE)
QUICK = TransferSettings(attempts=3, read_s=2.0, connect_s=2.0)
BIG = random.Random(3).randbytes(16_000_000)
WELL = Fault()
_URL_S = 600


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def model(data: bytes) -> Model:
    return Model(1, KEY, sha256(data), len(data))


def read(store: ObjectStore, key: str = KEY) -> bytes:
    with store.open(key) as stream:
        return b"".join(iter(lambda: stream.read(1 << 20), b""))


@dataclass
class Rough:
    """A store, and the same one behind a proxy."""

    store: S3Store
    proxy: Proxy

    def behind(self, *faults: Fault, always: Fault = WELL, read_s: float = 5.0) -> S3Store:
        """Return a new way to the store through the proxy, with the faults to come."""
        self.proxy.faults, self.proxy.always = list(faults), always
        settings = self.store.settings.model_copy(update={"endpoint": self.proxy.url})
        sizes = PartSizes(large_bytes=6 << 20, part_bytes=5 << 20, written_bytes=5 << 20)
        store = S3Store(settings, sizes)
        store.http = http.pool(connect_s=2.0, read_s=read_s)
        return store


@pytest.fixture
def rough(embedded_store: EmbeddedStore) -> Iterator[Rough]:  # noqa: F811
    store = bucket_of(embedded_store)
    with Proxy(store.settings.endpoint) as proxy, instant():
        yield Rough(store, proxy)
    store.delete([info.key for info in store.list("")])
    abort_uploads(store, "")


@pytest.fixture(params=["memory", *KINDS])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    with running_store(tmp_path / "data", request.param) as embedded:
        yield bucket_of(embedded)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def source_of(data: bytes, folder: Path) -> Path:
    found = folder / "source"
    found.write_bytes(data)
    return found


def way_in(name: str, rough: Rough, faulty: S3Store, folder: Path) -> Callable[[], Any]:
    """Return one of the ways by which NEW goes into the store."""
    source = source_of(NEW, folder)
    ways: dict[str, Callable[[], Any]] = {
        "bytes": lambda: faulty.put(KEY, NEW),
        "file": lambda: faulty.put(KEY, io.BytesIO(NEW)),
        "device": lambda: Transfers(QUICK).upload(faulty.presign_put(KEY, _URL_S), source),
    }
    return ways[name]


WAYS_IN = ("bytes", "file", "device")


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
        assert not embedded.running
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
            url = faulty.presign_get(KEY, _URL_S)
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


# --- 503 --------------------------------------------------------------------------------------


def verbs(store: S3Store, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return every way to use the store, where KEY holds OLD."""
    source, target = source_of(OLD, folder), folder / "target"

    def download() -> None:
        target.unlink(missing_ok=True)
        url = store.presign_get(KEY, _URL_S)
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
        "upload": lambda: Transfers(QUICK).upload(store.presign_put(KEY, _URL_S), source),
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
    url = rough.behind(*cuts).presign_get(KEY, _URL_S)
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
    url = faulty.presign_get(KEY, _URL_S)
    assert (
        dogged.download(url, path, sha256=sha256(OLD), size=SIZE) == SIZE
    )  # by what each try brings
    hasty = Transfers(TransferSettings(attempts=2, read_s=1.0))
    faulty = rough.behind(always=Fault(stall_down=0), read_s=1.0)
    path.unlink()
    with pytest.raises(Unavailable, match="ReadTimeoutError"):
        hasty.download(faulty.presign_get(KEY, _URL_S), path, sha256=sha256(OLD), size=SIZE)
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
        get, path, sha256=sha256(OLD), size=SIZE, renew=lambda: store.presign_get(KEY, _URL_S)
    )
    transfers.upload(put, source, renew=lambda: store.presign_put(KEY, _URL_S))
    assert path.read_bytes() == OLD
    assert read(store) == NEW


def test_a_url_used_again_does_what_it_did_and_no_more(
    rough: Rough, tmp_path: Path, path: Path
) -> None:
    store, source, transfers = rough.store, source_of(OLD, tmp_path), Transfers(QUICK)
    put, get = store.presign_put(KEY, _URL_S), store.presign_get(KEY, _URL_S)
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
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 64 MB on the folder; False where this user may not."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "rengo-test", str(folder)],
        capture_output=True,
        check=False,
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def limit_files(pid: int, most: int) -> None:
    """Let no file of the process and its threads grow beyond ``most`` bytes."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


def hasty(store: S3Store) -> S3Store:
    """Return the store with little patience: one without room thinks about it for a minute."""
    store.http = http.pool(connect_s=2.0, read_s=3.0)
    return store


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
    with small_disk(tmp_path / "disk") as mounted:
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
    cache, url = ModelCache(tmp_path / "cache", rough.store), rough.store.presign_get(KEY, _URL_S)
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
    url = rough.behind(Fault(flip_down=SIZE // 2)).presign_get(KEY, _URL_S)
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
    url = rough.behind(always=Fault(flip_down=SIZE // 2, flip_again=True)).presign_get(KEY, _URL_S)
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
    url = rough.store.presign_get(KEY, _URL_S)
    with pytest.raises(Corrupt, match="does not have the sha256"):
        Transfers(QUICK).download(url, path, sha256=sha256(NEW), size=SIZE)
    assert not path.exists()


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
        url = store.presign_get(KEY, _URL_S)
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
