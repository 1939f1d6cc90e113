"""The laws that every object store keeps: in memory, juicefs and seaweedfs alike."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import urllib3
from pydantic import SecretStr, ValidationError

from runtime.errors import (
    AccessDenied,
    ConfigError,
    Corrupt,
    NotFound,
    StorageError,
    TransportError,
    Unavailable,
)
from runtime.processes.ports import free_port
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.memory import MemoryStore
from storage.store.multipart_writer import PartWriter
from storage.store.objects import ObjectStore, abort_uploads
from storage.store.probe import probe
from storage.store.s3 import S3Store
from storage.store.servers.base import StoreTls
from storage.store.settings import StoreSettings
from storage.transfer import http
from storage.transfer.multipart import LARGE_BYTES
from tests.integration.store_fixtures import KINDS, bucket_of, running_store

KEY = "projects/p/runs/r/global/0.safetensors"


class OnlyForward(io.RawIOBase):
    """A stream that can be read once and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._inner.read(size)


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


@pytest.fixture(scope="module", params=KINDS)
def embedded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedStore]:
    with running_store(tmp_path_factory.mktemp("store"), request.param) as found:
        yield found


@pytest.fixture
def s3(embedded: EmbeddedStore) -> Iterator[S3Store]:
    found = bucket_of(embedded)
    yield found
    found.delete([info.key for info in found.list("")])


def read(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    with store.open(key, start, end) as stream:
        return b"".join(iter(lambda: stream.read(1000), b""))


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_what_was_put_is_what_is_read(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    put = store.put(KEY, data)
    assert (put.key, put.size) == (KEY, size)
    assert store.head(KEY).size == size
    assert read(store, KEY) == data


def test_a_file_is_taken_from_where_it_stands(store: ObjectStore) -> None:
    file = io.BytesIO(b"0123456789")
    file.seek(4)
    store.put(KEY, file)
    assert read(store, KEY) == b"456789"
    file.seek(0)
    store.put(KEY, file, 3)
    assert read(store, KEY) == b"012"


def test_a_stream_needs_its_size_and_must_hold_it(store: ObjectStore) -> None:
    store.put(KEY, OnlyForward(b"x" * 3_000_000), 3_000_000)  # type: ignore[arg-type]
    assert store.head(KEY).size == 3_000_000
    with pytest.raises(ConfigError, match="size of a stream"):
        store.put(KEY, OnlyForward(b"abc"))  # type: ignore[arg-type]
    with pytest.raises(Corrupt, match="ended after 3 of 4 bytes"):
        store.put(KEY, OnlyForward(b"abc"), 4)  # type: ignore[arg-type]
    assert store.head(KEY).size == 3_000_000


def test_a_put_replaces_the_whole_object(store: ObjectStore) -> None:
    store.put(KEY, b"a longer one")
    store.put(KEY, b"short")
    assert read(store, KEY) == b"short"


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 5), (3, 7), (9, 10), (4, None), (0, None)])
def test_ranges_are_half_open(store: ObjectStore, start: int, end: int | None) -> None:
    data = b"0123456789"
    store.put(KEY, data)
    assert read(store, KEY, start, end) == data[start:end]


def test_a_stream_fills_the_callers_buffer(store: ObjectStore) -> None:
    data = os.urandom(300_000)
    store.put(KEY, data)
    buffer, found = memoryview(bytearray(7000)), b""
    with store.open(KEY) as stream:
        while count := stream.readinto(buffer):
            found += buffer[:count]
    assert found == data


def test_a_range_beyond_the_end_is_corrupt(store: ObjectStore) -> None:
    store.put(KEY, b"0123456789")
    with pytest.raises(Corrupt, match=KEY):
        read(store, KEY, 10)


def test_what_is_not_there_is_not_found_by_name(store: ObjectStore) -> None:
    with pytest.raises(NotFound, match="runs/none"):
        store.head("runs/none")
    with pytest.raises(NotFound, match="runs/none"):
        read(store, "runs/none")


def test_listing_goes_by_prefix_in_order_and_shows_no_folder(store: ObjectStore) -> None:
    keys = ["a/1/x", "a/1/y", "a/10/x", "a/2", "b"]
    for index, key in enumerate(reversed(keys)):
        store.put(key, b"x" * index)
    assert [info.key for info in store.list("")] == keys
    assert [info.key for info in store.list("a/1/")] == ["a/1/x", "a/1/y"]
    assert [info.key for info in store.list("a/1")] == ["a/1/x", "a/1/y", "a/10/x"]
    assert [info.size for info in store.list("a/")] == [4, 3, 2, 1]
    assert list(store.list("nothing/")) == []


def test_deleting_takes_the_named_and_forgives_the_missing(store: ObjectStore) -> None:
    for key in ("u/1/a", "u/1/b", "u/2/a", "v"):
        store.put(key, b"x")
    store.delete(["u/1/a", "u/1/b", "u/1/c", "u/3/none"])
    assert [info.key for info in store.list("")] == ["u/2/a", "v"]
    store.delete([])


def test_listing_and_deleting_go_beyond_a_page(store: ObjectStore) -> None:
    keys = [f"many/{index:04}" for index in range(1005)]
    threads = [
        threading.Thread(target=lambda part=part: [store.put(key, b"x") for key in part])
        for part in (keys[::4], keys[1::4], keys[2::4], keys[3::4])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [info.key for info in store.list("many/")] == keys
    store.delete(keys)
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "a?b", "ä", "a" * 513]
)
def test_a_key_that_stores_would_read_differently_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ConfigError, match="object key"):
        store.put(key, b"x")
    with pytest.raises(ConfigError, match="object key"):
        store.presign_put(key, 60)


def test_presigned_urls_name_the_object(store: ObjectStore) -> None:
    assert KEY in store.presign_get(KEY, 60)
    assert KEY in store.presign_put(KEY, 60, 10)
    assert abort_uploads(store, "") == 0
    store.ensure_bucket()


PARTS = [os.urandom(5 << 20), os.urandom(5 << 20), os.urandom(1234)]


def test_an_object_in_parts_is_there_when_it_is_complete(store: ObjectStore) -> None:
    store.put(KEY, b"before")
    upload = store.begin_upload(KEY)
    sent = [store.put_part(KEY, upload, number, part) for number, part in enumerate(PARTS, 1)]
    assert read(store, KEY) == b"before"
    assert [(each.key, each.id) for each in store.uploads("projects/")] == [(KEY, upload)]
    assert store.has_upload(KEY, upload)
    store.complete_upload(KEY, upload, sent)
    assert read_whole(store, KEY) == b"".join(PARTS)
    assert not store.has_upload(KEY, upload)
    assert list(store.uploads("")) == []


def test_a_part_may_be_sent_again_and_out_of_order(store: ObjectStore) -> None:
    upload = store.begin_upload(KEY)
    last = store.put_part(KEY, upload, 2, memoryview(PARTS[2]))
    store.put_part(KEY, upload, 1, PARTS[1])
    first = store.put_part(KEY, upload, 1, PARTS[0])
    store.complete_upload(KEY, upload, [first, last])
    assert read_whole(store, KEY) == PARTS[0] + PARTS[2]


def test_an_upload_that_is_gone_takes_nothing(store: ObjectStore) -> None:
    upload = store.begin_upload(KEY)
    etag = store.put_part(KEY, upload, 1, b"x")
    store.abort_upload(KEY, upload)
    store.abort_upload(KEY, upload)
    assert not store.has_upload(KEY, upload)
    with pytest.raises(NotFound, match=KEY):
        store.put_part(KEY, upload, 1, b"x")
    with pytest.raises(NotFound, match=KEY):
        store.complete_upload(KEY, upload, [etag])
    assert list(store.list("")) == []


def test_an_object_is_not_made_of_parts_that_are_not_there(store: ObjectStore) -> None:
    upload = store.begin_upload(KEY)
    etag = store.put_part(KEY, upload, 1, PARTS[0])
    with pytest.raises(StorageError):
        store.complete_upload(KEY, upload, [etag, "0" * 32])
    assert list(store.list("")) == []
    store.abort_upload(KEY, upload)


def test_unfinished_uploads_are_named_and_removed_by_prefix(store: ObjectStore) -> None:
    for key in ("projects/p/a", "projects/p/b/c", "projects/q/a"):
        store.put_part(key, store.begin_upload(key), 1, b"x" * 1000)
    assert sorted(each.key for each in store.uploads("projects/p/")) == [
        "projects/p/a",
        "projects/p/b/c",
    ]
    assert abort_uploads(store, "nothing/") == 0
    assert abort_uploads(store, "projects/p/") == 2
    assert abort_uploads(store, "projects/") == 1
    assert abort_uploads(store, "") == 0


def write_and_fail(writer: PartWriter, data: bytes) -> None:
    writer.write(data)
    raise Corrupt("on the way")


def test_an_object_is_written_in_parts_while_its_bytes_come(store: ObjectStore) -> None:
    data = b"".join(PARTS)
    with PartWriter(store, KEY, 5 << 20) as writer:
        for start in range(0, len(data), 700_001):
            writer.write(data[start : start + 700_001])
        assert list(store.list("")) == []
    assert read_whole(store, KEY) == data
    writer = PartWriter(store, "other", 5 << 20)
    with pytest.raises(Corrupt, match="on the way"), writer:
        write_and_fail(writer, data)
    assert [info.key for info in store.list("")] == [KEY]
    assert list(store.uploads("")) == []


def request(method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request(method, url, body=body)
        return answer.status, answer.data


def test_a_presigned_url_is_all_a_device_needs(s3: S3Store) -> None:
    assert request("PUT", s3.presign_put(KEY, 60), b"hello")[0] == 200
    assert request("GET", s3.presign_get(KEY, 60)) == (200, b"hello")


def test_a_presigned_url_opens_nothing_else(s3: S3Store) -> None:
    s3.put(KEY, b"hello")
    s3.put("other", b"secret")
    put, get = s3.presign_put(KEY, 60), s3.presign_get(KEY, 60)
    assert request("GET", put)[0] == 403
    assert request("PUT", get, b"x")[0] == 403
    assert request("GET", get.replace(KEY, "other"))[0] == 403
    assert request("GET", get[:-4] + "0000")[0] == 403
    assert request("GET", get.partition("?")[0])[0] == 403
    assert read(s3, KEY) == b"hello"


def test_a_presigned_put_pins_the_length(s3: S3Store) -> None:
    url = s3.presign_put(KEY, 60, 5)
    assert request("PUT", url, b"longer")[0] == 403
    assert request("PUT", url, b"abc")[0] == 403
    assert request("PUT", url, b"fives")[0] == 200


def test_an_expired_url_is_refused(s3: S3Store) -> None:
    s3.put(KEY, b"hello")
    url = s3.presign_get(KEY, 1)
    refused = threading.Event()
    for _ in range(60):
        if request("GET", url)[0] == 403:
            refused.set()
            break
        refused.wait(0.1)
    assert refused.is_set()


def test_devices_may_reach_the_store_by_another_name(s3: S3Store) -> None:
    public = s3.settings.endpoint.replace("127.0.0.1", "localhost")
    other = S3Store(s3.settings.model_copy(update={"public_endpoint": public}))
    other.put(KEY, b"hello")
    url = other.presign_get(KEY, 60)
    assert url.startswith(public)
    assert request("GET", url) == (200, b"hello")


def test_a_wrong_secret_is_denied_by_every_verb_and_told_without_it(s3: S3Store) -> None:
    secret = "wrong-and-private"
    bad = S3Store(s3.settings.model_copy(update={"secret": SecretStr(secret)}))
    verbs = [
        lambda: bad.put(KEY, b"x"),
        lambda: bad.open(KEY),
        lambda: bad.head(KEY),
        lambda: bad.delete([KEY, "other"]),
        lambda: list(bad.list("")),
        lambda: abort_uploads(bad, ""),
        bad.ensure_bucket,
    ]
    for verb in verbs:
        with pytest.raises(AccessDenied, match=s3.settings.endpoint) as caught:
            verb()
        assert secret not in str(caught.value)
        assert "X-Amz" not in str(caught.value)
    assert secret not in repr(bad.settings)


def test_a_large_object_goes_in_parts_and_comes_back(s3: S3Store, tmp_path: Path) -> None:
    data = os.urandom(LARGE_BYTES + 12345)
    path = tmp_path / "large"
    path.write_bytes(data)
    with path.open("rb") as file:
        s3.put(KEY, file)
    assert s3.head(KEY).size == len(data)
    assert read_whole(s3, KEY) == data
    assert read(s3, KEY, LARGE_BYTES, LARGE_BYTES + 10) == data[-12345:][:10]
    assert abort_uploads(s3, "") == 0


def read_whole(store: ObjectStore, key: str) -> bytes:
    with store.open(key) as stream:
        return b"".join(iter(lambda: stream.read(1 << 20), b""))


def test_a_large_put_that_fails_leaves_no_parts(s3: S3Store) -> None:
    short = OnlyForward(b"x" * (20 << 20))
    with pytest.raises(Corrupt, match="the source ended"):
        s3.put(KEY, short, LARGE_BYTES)  # type: ignore[arg-type]
    assert abort_uploads(s3, "") == 0
    assert list(s3.list("")) == []


def test_presigned_parts_are_all_a_device_needs(s3: S3Store) -> None:
    upload = s3.begin_upload(KEY)
    with urllib3.PoolManager(retries=False) as pool:
        etags = [
            http.send(pool, s3.presign_part(KEY, upload, number, 60), part, len(part), {})
            for number, part in enumerate(PARTS, 1)
        ]
        ends = s3.presign_complete(KEY, upload, 60)
        with pytest.raises(AccessDenied):
            http.complete_upload(pool, ends[:-4] + "0000", etags)
        with pytest.raises(Corrupt, match="InvalidPart"):
            http.complete_upload(pool, ends, [*etags[:2], "0" * 32])
        http.complete_upload(pool, ends, etags)
        assert read_whole(s3, KEY) == b"".join(PARTS)
        with contextlib.suppress(NotFound):  # or it says success once more
            http.complete_upload(pool, ends, etags)
        assert read_whole(s3, KEY) == b"".join(PARTS)
        with pytest.raises(NotFound):
            http.send(pool, s3.presign_part(KEY, upload, 1, 60), b"x", 1, {})
    assert s3.presign_part(KEY, upload, 400, 60).partition("?")[0].endswith(KEY)


def test_deleting_leaves_no_empty_folder(s3: S3Store) -> None:
    keys = [f"runs/r/updates/{index}/0/{device}.upd" for index in range(3) for device in "abc"]
    for key in keys:
        s3.put(key, b"x")
    s3.delete(keys)
    answer = s3.client.list_objects_v2(Bucket=s3.settings.bucket)
    assert answer.get("Contents", []) == []


def test_the_probe_tells_what_the_store_can_do_and_leaves_nothing(
    s3: S3Store, embedded: EmbeddedStore
) -> None:
    found = probe(s3)
    assert found.can.range
    assert found.can.pinned_length
    assert found.can.multipart
    assert found.can.delete_many
    seaweedfs = "weed" in Path(f"/proc/{embedded.pid}/cmdline").read_text()
    assert found.can.conditional_put is seaweedfs
    assert found.can.versioning is seaweedfs
    assert abs(found.clock_offset_s) <= 2
    assert 0 < found.round_trip_s < 5
    assert list(s3.list("")) == []
    assert abort_uploads(s3, "") == 0


def test_a_store_that_is_not_there_is_unavailable() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    store = S3Store(StoreSettings(endpoint=endpoint, access_key="a", secret=SecretStr("private")))
    verbs = [
        lambda: store.put(KEY, b"x"),
        lambda: store.open(KEY),
        lambda: store.head(KEY),
        lambda: list(store.list("")),
        lambda: store.delete([KEY]),
        store.ensure_bucket,
    ]
    with instant():
        for verb in verbs:
            with pytest.raises(Unavailable, match=endpoint) as caught:
                verb()
            assert "X-Amz" not in str(caught.value)
            assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:9000", "ftp://host", "http://user:pw@host", "http://"]
)
def test_an_endpoint_that_is_not_a_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="http://host:port"):
        StoreSettings(endpoint=endpoint, access_key="a", secret=SecretStr("b"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_store_keeps_every_object_it_acknowledged(tmp_path: Path, kind: Kind) -> None:
    with running_store(tmp_path / "data", kind) as embedded:
        store = bucket_of(embedded)
        data = {f"runs/r/{index}": os.urandom(200_000) for index in range(20)}
        for key, value in data.items():
            store.put(key, value)
        torn = threading.Thread(target=put_until_cut, args=(store, "runs/r/torn"))
        with instant():
            torn.start()
            embedded.kill()
            torn.join()
        assert not embedded.running
        embedded.start()
        assert {info.key for info in store.list("runs/r/")} - {"runs/r/torn"} == set(data)
        for key, value in data.items():
            assert read_whole(store, key) == value
        whole = {info.key: info.size for info in store.list("runs/r/torn")}
        assert whole in ({}, {"runs/r/torn": 30 << 20})
        embedded.stop()
        again = EmbeddedStore(tmp_path / "data", kind)
        again.start()
        try:
            assert read_whole(S3Store(again.settings), "runs/r/7") == data["runs/r/7"]
        finally:
            again.stop()


def put_until_cut(store: S3Store, key: str) -> None:
    try:
        with instant():
            store.put(key, b"x" * (30 << 20))
    except Unavailable:
        return


def _port_in(socket: Path) -> int:
    return int(socket.stem.rpartition("-")[2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedded_store_hides_its_keys_and_leaves_nothing_outside(
    tmp_path: Path, kind: Kind
) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    (folder / "weed.host.user.log.INFO.20260101-000000.1").write_text("of an earlier release")
    with running_store(folder, kind) as embedded:
        secret = embedded.settings.secret.get_secret_value()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "keys.json").stat().st_mode) == 0o600
        assert secret not in Path(f"/proc/{embedded.pid}/cmdline").read_text()
        with pytest.raises(ConfigError, match="object store"):
            EmbeddedStore(tmp_path / "other", kind, int(embedded.settings.endpoint[-5:])).start()
        pid = embedded.pid
        ports = {
            connection.laddr.port for connection in psutil.Process(pid).net_connections("inet")
        }
    assert not Path(f"/proc/{pid}").exists()
    assert secret not in (folder / "server.log").read_text()
    left = [path for path in Path("/tmp").glob("seaweedfs-*") if _port_in(path) in ports]
    assert not left
    # its output alone, which is kept short while it runs
    if kind == "seaweedfs":
        assert {each.name for each in folder.iterdir() if "log" in each.name} == {"server.log"}
        assert not [*folder.glob("weed.[A-Z]*")]


def test_every_port_is_on_loopback_and_takes_nothing_without_a_key(embedded: EmbeddedStore) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(embedded.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    for host, port in listening:
        assert host == "127.0.0.1"
        with urllib3.PoolManager(retries=False, timeout=2.0) as pool:
            try:
                answer = pool.request("PUT", f"http://127.0.0.1:{port}/buckets/rengo/x", body=b"x")
            except urllib3.exceptions.HTTPError:
                continue
            assert answer.status >= 400, port


def test_the_store_shows_no_page_to_log_in(embedded: EmbeddedStore) -> None:
    browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/html"}
    with urllib3.PoolManager(retries=False, headers=browser) as pool:
        for path in ("/", "/minio/", "/minio/login", "/minio/prometheus/metrics"):
            answer = pool.request("GET", f"{embedded.settings.endpoint}{path}", redirect=False)
            assert answer.status in {403, 404}, path


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_leaves_loopback_with_tls_alone(tmp_path: Path, kind: Kind) -> None:
    for host in ("0.0.0.0", "192.0.2.7"):
        with pytest.raises(ConfigError, match=r"without TLS: give it a certificate"):
            EmbeddedStore(tmp_path, kind, host=host)
    for host in ("localhost", "", "::1"):
        with pytest.raises(ConfigError, match="not an IPv4 address"):
            EmbeddedStore(tmp_path, kind, host=host)


def test_a_store_with_inner_parts_stays_on_loopback(tmp_path: Path) -> None:
    tls = StoreTls(tmp_path / "certificate", tmp_path / "key")
    with pytest.raises(ConfigError, match=r"seaweedfs listens on .* alone.*choose juicefs"):
        EmbeddedStore(tmp_path, "seaweedfs", host="0.0.0.0", tls=tls)
    assert EmbeddedStore(tmp_path, host="192.0.2.7", tls=tls).settings.endpoint.startswith(
        "https://192.0.2.7:"
    )


def test_a_missing_file_of_authorities_is_named(tmp_path: Path) -> None:
    settings = StoreSettings(
        endpoint="https://127.0.0.1:1",
        access_key="a",
        secret=SecretStr("b"),
        ca=tmp_path / "none.crt",
    )
    with pytest.raises(ConfigError, match=r"none\.crt cannot be read"):
        S3Store(settings)


def test_an_unknown_kind_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="juicefs, seaweedfs"):
        EmbeddedStore(tmp_path, "minio")  # type: ignore[arg-type]


def test_a_damaged_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match=r"keys\.json"):
        EmbeddedStore(tmp_path).start()


def test_a_store_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    (tmp_path / "meta.db").write_bytes(b"not a database" * 100)
    with pytest.raises((TransportError, StorageError), match="juicefs"):
        EmbeddedStore(tmp_path).start()
