"""Large files on their way in parts, on both embedded stores: cut, killed, refused, lost."""

from __future__ import annotations

import http.server
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import urllib3

from runtime.errors import AccessDenied, NotFound, StorageError, Unavailable
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore
from storage.store.objects import ObjectStore, abort_uploads
from storage.store.s3 import S3Store
from storage.transfer import http as http_to_store
from storage.transfer.files import Cancelled, Transfers, TransferSettings
from storage.transfer.multipart import MultipartTarget, UploadedParts, uploaded_parts_path
from tests.integration.store_fixtures import bucket_of, embedded_store  # noqa: F401
from tests.proxy import Fault, Proxy
from tests.support import soaking

KEY = "projects/p/runs/r/updates/000001/001/d.upd"
PART = 5 << 20
SIZE = 4 * PART + 12_345
BODY = random.Random(11).randbytes(SIZE)
QUICK = TransferSettings(attempts=3, read_s=5.0, connect_s=5.0)


@dataclass
class Way:
    """A store, the same one through a proxy, and a file that is to go there."""

    store: S3Store
    proxy: Proxy
    source: Path

    @property
    def through(self) -> S3Store:
        public = self.store.settings.model_copy(update={"public_endpoint": self.proxy.url})
        return S3Store(public)

    def begin(self) -> str:
        return self.store.begin_upload(KEY)

    def place(self, upload_id: str) -> MultipartTarget:
        signer = self.through
        urls = [signer.presign_part(KEY, upload_id, number, 600) for number in range(1, 6)]
        return MultipartTarget(upload_id, PART, urls, signer.presign_complete(KEY, upload_id, 600))

    def is_whole(self) -> bool:
        """Whether the store has the file, and no unfinished upload."""
        with self.store.open(KEY) as stream:
            found = b"".join(iter(lambda: stream.read(1 << 20), b""))
        return found == BODY and not list(self.store.uploads(""))


@pytest.fixture
def way(embedded_store: EmbeddedStore, tmp_path: Path) -> Iterator[Way]:  # noqa: F811
    store = bucket_of(embedded_store)
    source = tmp_path / "update.upd"
    source.write_bytes(BODY)
    with Proxy(store.settings.endpoint) as proxy, instant():
        yield Way(store, proxy, source)
    store.delete([info.key for info in store.list("")])
    abort_uploads(store, "")


def transfers() -> Transfers:
    return Transfers(QUICK)


def test_a_file_goes_in_parts_and_every_byte_once(way: Way) -> None:
    place = way.place(way.begin())
    assert place.fits(SIZE)
    assert transfers().upload_in_parts(place, way.source) == SIZE
    assert way.is_whole()


@pytest.mark.parametrize("seed", soaking(range(6), lambda seed: seed >= 2))
def test_cuts_at_random_bytes_cost_at_most_a_part_each(way: Way, seed: int) -> None:
    source = random.Random(seed)
    cuts = [source.randrange(1, 2 * PART) for _ in range(3)]
    way.proxy.faults = [Fault(cut_up=cut) for cut in cuts]
    moved = Transfers().upload_in_parts(way.place(way.begin()), way.source)
    # two parts are on their way at once, and a cut costs a connection
    assert len(cuts) < way.proxy.connections <= len(cuts) + 2
    assert SIZE <= moved <= SIZE + len(cuts) * PART
    assert way.is_whole()


@pytest.mark.parametrize("after", [PART // 2, PART + PART // 2, 2 * PART])
def test_what_is_left_half_way_goes_on_with_the_rest(way: Way, after: int) -> None:
    place, cancel = way.place(way.begin()), threading.Event()
    way.proxy.always = Fault(on_up=(after, cancel.set))
    with pytest.raises((Cancelled, Unavailable)):
        transfers().upload_in_parts(place, way.source, cancel=cancel)
    arrived = UploadedParts(uploaded_parts_path(way.source))
    arrived.load(place)
    assert len(arrived.etags) >= 2 * (after // PART) - 1
    there = sum(len(BODY[(number - 1) * PART : number * PART]) for number in arrived.etags)
    way.proxy.always = Fault()
    assert transfers().upload_in_parts(place, way.source) == SIZE - there
    assert way.is_whole()


def test_a_file_that_has_arrived_is_not_sent_again(way: Way) -> None:
    place = way.place(way.begin())
    transfers().upload_in_parts(place, way.source)
    assert transfers().upload_in_parts(place, way.source) == 0
    assert way.is_whole()


def test_a_completion_whose_answer_was_lost_is_a_completion(way: Way) -> None:
    upload_id = way.begin()
    place = way.place(upload_id)
    arrived = UploadedParts(uploaded_parts_path(way.source))
    arrived.load(place)
    for number in range(1, 6):
        part = BODY[(number - 1) * PART : number * PART]
        arrived.add(number, way.store.put_part(KEY, upload_id, number, part))
    way.proxy.faults = [Fault(cut_down=1)]
    assert transfers().upload_in_parts(place, way.source) == 0
    assert way.proxy.connections == 2
    assert way.is_whole()


def test_a_refused_url_is_renewed_and_the_upload_goes_on(way: Way) -> None:
    upload_id = way.begin()
    good = way.place(upload_id)
    urls = [*good.urls[:2], *(f"{url[:-4]}0000" for url in good.urls[2:])]
    bad = MultipartTarget(upload_id, PART, urls, good.complete_url)
    asked: list[int] = []

    def renew() -> MultipartTarget:
        asked.append(1)
        return good

    # the refused parts' own bytes may be on the way when the store says no
    moved = transfers().upload_in_parts(bad, way.source, renew=renew)
    assert SIZE <= moved <= SIZE + 2 * PART
    assert len(asked) == 1
    assert way.is_whole()
    with pytest.raises(AccessDenied):
        transfers().upload_in_parts(
            MultipartTarget(way.begin(), PART, bad.urls[2:], bad.complete_url), way.source
        )


def test_an_upload_that_the_store_lost_begins_again_elsewhere(way: Way) -> None:
    lost = way.begin()
    place = way.place(lost)
    way.proxy.faults = [Fault(cut_up=2 * PART + 1000)]
    way.proxy.always = Fault(cut_up=1)
    with pytest.raises(Unavailable):
        transfers().upload_in_parts(place, way.source)
    way.proxy.always = Fault()
    way.store.abort_upload(KEY, lost)
    with pytest.raises(NotFound):
        transfers().upload_in_parts(place, way.source, renew=lambda: place)
    again = way.begin()
    moved = transfers().upload_in_parts(place, way.source, renew=lambda: way.place(again))
    assert SIZE <= moved <= SIZE + 2 * PART
    assert way.is_whole()


def test_parts_that_the_store_does_not_have_are_sent_again(way: Way) -> None:
    place = way.place(way.begin())
    arrived = UploadedParts(uploaded_parts_path(way.source))
    arrived.load(place)
    for number in range(1, 6):
        arrived.add(number, "0" * 32)
    assert transfers().upload_in_parts(place, way.source) == SIZE
    assert way.is_whole()


def test_the_servers_own_object_survives_cuts(way: Way) -> None:
    settings = way.store.settings.model_copy(update={"endpoint": way.proxy.url})
    server = S3Store(settings, way.store.sizes.model_copy(update={"large_bytes": PART}))
    way.proxy.faults = [Fault(cut_up=2_000_000), Fault(), Fault(cut_up=9_000_000)]
    with way.source.open("rb") as file:
        assert server.put(KEY, file).size == SIZE
    assert way.is_whole()


# --- what a store says to a completion ----------------------------------------------------------

DONE = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"


def said(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()


@dataclass
class Completing:
    """A store that answers completions as told, each answer once, then well."""

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def completing() -> Iterator[Completing]:
    state = Completing()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

        def do_POST(self) -> None:
            state.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = state.answers.pop(0) if state.answers else (200, DONE)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/b/k?uploadId=u&X-Amz-Signature=private"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def complete(state: Completing, tmp_path: Path) -> None:
    """Complete an upload all of whose parts have arrived."""
    source = tmp_path / "file"
    source.write_bytes(b"x" * 15)
    place = MultipartTarget("u", 10, [state.url] * 2, state.url)
    arrived = UploadedParts(uploaded_parts_path(source))
    arrived.load(place)
    # in the order in which they arrived
    for number, etag in ((2, 'e"<2>'), (1, "e-1")):
        arrived.add(number, etag)
    with instant():
        Transfers(QUICK).upload_in_parts(place, source)


def test_a_success_that_holds_an_error_is_none(completing: Completing, tmp_path: Path) -> None:
    completing.answers = [(200, said("InternalError")), (200, b"  "), (200, DONE)]
    complete(completing, tmp_path)
    assert len(completing.bodies) == 3
    assert b'<PartNumber>2</PartNumber><ETag>"e"&lt;2&gt;"</ETag>' in completing.bodies[0]


def test_a_store_that_keeps_failing_is_left(completing: Completing, tmp_path: Path) -> None:
    completing.answers = [(200, said("InternalError"))] * 9
    with pytest.raises(Unavailable, match="InternalError") as caught:
        complete(completing, tmp_path)
    assert "private" not in str(caught.value)


def test_an_upload_that_is_unknown_at_once_is_not_believed_complete(
    completing: Completing, tmp_path: Path
) -> None:
    completing.answers = [(404, said("NoSuchUpload"))]
    # the parts are to be sent again, which this store does not take
    with pytest.raises(StorageError, match=r"PUT .* 501"):
        complete(completing, tmp_path)


@pytest.mark.parametrize("status", [200, 404])
def test_an_upload_that_is_known_no_more_was_completed(
    completing: Completing, tmp_path: Path, status: int
) -> None:
    completing.answers = [(503, b""), (status, said("NoSuchUpload"))]
    complete(completing, tmp_path)
    assert len(completing.bodies) == 2


def test_a_refused_completion_is_denied(completing: Completing, tmp_path: Path) -> None:
    completing.answers = [(403, said("AccessDenied"))]
    with pytest.raises(AccessDenied):
        complete(completing, tmp_path)


def test_completing_by_hand_on_a_real_store(way: Way) -> None:
    upload_id = way.begin()
    etag = way.store.put_part(KEY, upload_id, 1, os.urandom(100))
    with urllib3.PoolManager(retries=False) as pool:
        http_to_store.complete_upload(pool, way.place(upload_id).complete_url, [etag])
    store: ObjectStore = way.store
    assert store.head(KEY).size == 100
