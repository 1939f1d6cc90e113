from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import AccessDenied, Corrupt, NotFound, StorageError, Unavailable
from runtime.processes.ports import free_port
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from storage.transfer.files import Cancelled, Transfers, TransferSettings
from tests.integration.store_fixtures import (  # noqa: F401
    Answer,
    RoughStore,
    bucket_of,
    embedded_store,
    rough_store,
)

BODY = random.Random(7).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = TransferSettings(attempts=3, read_s=2.0, connect_s=2.0)


def never() -> str:
    raise AssertionError("no new URL was needed")


def get(
    store: RoughStore, path: Path, *, renew: Callable[[], str] | None = never, sha256: str = SHA
) -> int:
    with instant():
        return Transfers(QUICK).download(
            store.url, path, sha256=sha256, size=len(store.body), renew=renew
        )


@pytest.fixture
def rough(rough_store: RoughStore) -> RoughStore:  # noqa: F811
    rough_store.body = BODY
    return rough_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def only(path: Path) -> bool:
    """Whether the file is there, right, and alone in its folder."""
    return path.read_bytes() == BODY and list(path.parent.iterdir()) == [path]


def test_a_real_store_gives_and_takes(embedded_store: EmbeddedStore, tmp_path: Path) -> None:  # noqa: F811
    store = bucket_of(embedded_store)
    data = os.urandom(9_000_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    transfers = Transfers()
    assert transfers.upload(store.presign_put("k/up", 60, len(data)), source) == len(data)
    sha256 = hashlib.sha256(data).hexdigest()
    url = store.presign_get("k/up", 60)
    assert transfers.download(url, target, sha256=sha256, size=len(data)) == len(data)
    assert target.read_bytes() == data
    assert transfers.download(url, target, sha256=sha256, size=len(data)) == 0


def test_a_real_store_resumes_and_renews(embedded_store: EmbeddedStore, path: Path) -> None:  # noqa: F811
    store = bucket_of(embedded_store)
    store.put("k/model", BODY)
    path.with_name(path.name + ".part").write_bytes(BODY[:1_234_567])
    bad = store.presign_get("k/model", 60)[:-4] + "0000"
    renewals: list[int] = []

    def renew() -> str:
        renewals.append(1)
        return store.presign_get("k/model", 60)

    moved = Transfers().download(bad, path, sha256=SHA, size=len(BODY), renew=renew)
    assert moved == len(BODY) - 1_234_567
    assert len(renewals) == 1
    assert only(path)


def test_a_real_store_refuses_an_upload_until_the_url_is_renewed(
    embedded_store: EmbeddedStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    store: S3Store = bucket_of(embedded_store)
    source = tmp_path / "update"
    source.write_bytes(os.urandom(20_000_000))
    bad = store.presign_put("k/update", 60)[:-4] + "0000"
    Transfers().upload(bad, source, renew=lambda: store.presign_put("k/update", 60))
    assert store.head("k/update").size == 20_000_000
    with pytest.raises(AccessDenied, match="k/update") as caught:
        Transfers().upload(bad, source, renew=lambda: bad)
    assert "X-Amz" not in str(caught.value)


@pytest.mark.parametrize("seed", range(8))
def test_cuts_at_random_bytes_cost_no_byte_twice(rough: RoughStore, path: Path, seed: int) -> None:
    source = random.Random(seed)
    rough.answers = [Answer(cut_after=source.randrange(1, 900_000)) for _ in range(6)]
    assert get(rough, path) == len(BODY)
    # what was on the wire at a cut may be lost, and nothing else may be sent again
    assert [seen.range is None for seen in rough.seen] == [True] + [False] * (len(rough.seen) - 1)
    assert only(path)


def test_a_new_process_moves_only_the_rest(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(cut_after=1_000_000), Answer(503), Answer(503), Answer(503)]
    with pytest.raises(Unavailable, match="503"):
        get(rough, path)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size
    assert 0 < have <= 1_000_000
    assert not path.exists()
    assert get(rough, path) == len(BODY) - have
    assert rough.seen[-1].range == f"bytes={have}-"
    assert only(path)


def test_a_file_that_is_there_is_not_asked_for(rough: RoughStore, path: Path) -> None:
    path.write_bytes(BODY)
    assert get(rough, path) == 0
    assert rough.seen == []


def test_a_file_that_is_there_and_wrong_is_replaced(rough: RoughStore, path: Path) -> None:
    path.write_bytes(bytes(len(BODY)))
    assert get(rough, path) == len(BODY)
    assert only(path)


@pytest.mark.parametrize(
    "left",
    [bytes(1_000_000), bytes(len(BODY)), bytes(len(BODY) + 5)],
    ids=["short", "full", "long"],
)
def test_a_damaged_part_is_fetched_afresh_once(rough: RoughStore, path: Path, left: bytes) -> None:
    path.with_name(path.name + ".part").write_bytes(left)
    get(rough, path)
    assert rough.seen[-1].range is None
    assert only(path)


def test_a_store_without_ranges_is_read_from_the_start(rough: RoughStore, path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(BODY[:1000])
    rough.answers = [Answer(ignore_range=True)]
    assert get(rough, path) == len(BODY)
    assert only(path)


def test_the_wrong_object_is_corrupt_after_two_fetches(rough: RoughStore, path: Path) -> None:
    with pytest.raises(Corrupt, match="does not have the sha256 0000"):
        get(rough, path, sha256="0" * 64)
    assert len(rough.seen) == 2
    assert not path.exists()
    assert path.with_name(path.name + ".part").stat().st_size == 0


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_an_object_of_another_size_is_not_read(rough: RoughStore, path: Path, size: int) -> None:
    with pytest.raises(Corrupt, match="bytes from 0"):
        Transfers(QUICK).download(rough.url, path, sha256=SHA, size=size, renew=None)
    assert not path.exists()
    assert path.with_name(path.name + ".part").stat().st_size == 0


def test_an_empty_object_needs_no_request(rough: RoughStore, path: Path) -> None:
    empty = hashlib.sha256().hexdigest()
    assert Transfers(QUICK).download(rough.url, path, sha256=empty, size=0) == 0
    assert path.read_bytes() == b""


def test_a_refused_url_is_renewed_once(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(403)]
    assert get(rough, path, renew=lambda: f"{rough.url}?again") == len(BODY)
    assert [seen.path for seen in rough.seen] == ["/bucket/key", "/bucket/key?again"]
    assert only(path)


def test_a_renewed_url_that_is_refused_is_denied(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(403), Answer(403)]
    with pytest.raises(AccessDenied, match="bucket/key") as caught:
        get(rough, path, renew=lambda: f"{rough.url}?X-Amz-Signature=private")
    assert len(rough.seen) == 2
    assert "private" not in str(caught.value)
    rough.answers = [Answer(403)]
    with pytest.raises(AccessDenied):
        get(rough, path, renew=None)


def test_a_url_that_expires_on_a_long_way_is_renewed_again(rough: RoughStore, path: Path) -> None:
    refused = Answer(403)
    cut = Answer(cut_after=700_000)
    rough.answers = [refused, cut, refused, cut, refused]
    assert get(rough, path, renew=lambda: rough.url) == len(BODY)
    assert only(path)


def test_a_busy_store_is_asked_again_and_then_given_up(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(503), Answer(500)]
    assert get(rough, path) == len(BODY)
    path.unlink()
    rough.answers = [Answer(503)] * 3
    with pytest.raises(Unavailable, match="503"):
        get(rough, path)
    assert rough.answers == []


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (301, StorageError)])
def test_what_trying_again_cannot_mend_is_raised_at_once(
    rough: RoughStore, path: Path, status: int, error: type[StorageError]
) -> None:
    rough.answers = [Answer(status)]
    with pytest.raises(error, match=str(status)):
        get(rough, path)
    assert len(rough.seen) == 1


def test_an_upload_follows_no_redirect(rough: RoughStore, path: Path) -> None:
    path.write_bytes(BODY)
    rough.answers = [Answer(307)]
    with pytest.raises(StorageError, match="307"):
        Transfers(QUICK).upload(rough.url, path)
    assert [seen.path for seen in rough.seen] == ["/bucket/key"]


def test_a_slow_link_takes_its_time(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(block_bytes=200_000, pause_s=0.02)]
    started = time.monotonic()
    assert get(rough, path) == len(BODY)
    assert time.monotonic() - started > 0.25
    assert len(rough.seen) == 1


def test_a_trickle_ends_with_the_time(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(block_bytes=1000, pause_s=0.05)] * 3
    hasty = Transfers(TransferSettings(attempts=3, total_s=0.5))
    started = time.monotonic()
    with instant(), pytest.raises(Unavailable, match="out of time"):
        hasty.download(rough.url, path, sha256=SHA, size=len(BODY))
    assert time.monotonic() - started < 3
    assert path.with_name(path.name + ".part").stat().st_size > 0


def test_a_store_that_falls_silent_is_left(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/bucket/key"
        patience = TransferSettings(attempts=2, read_s=0.2)
        with instant(), pytest.raises(Unavailable, match="ReadTimeoutError"):
            Transfers(patience).download(url, path, sha256=SHA, size=10)


def test_a_store_that_is_not_there_is_unavailable(path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/bucket/key?X-Amz-Signature=private"
    with instant(), pytest.raises(Unavailable, match="refused") as caught:
        Transfers(QUICK).download(url, path, sha256=SHA, size=10)
    assert "private" not in str(caught.value)


def test_cancelling_ends_a_download_and_keeps_what_came(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(block_bytes=10_000, pause_s=0.01)]
    cancel = threading.Event()
    timer = threading.Timer(1.0, cancel.set)  # of three seconds at least
    timer.start()
    with pytest.raises(Cancelled):
        Transfers(QUICK).download(rough.url, path, sha256=SHA, size=len(BODY), cancel=cancel)
    timer.join()
    have = path.with_name(path.name + ".part").stat().st_size
    assert 0 < have < len(BODY)
    assert get(rough, path) == len(BODY) - have


def test_cancelling_ends_a_wait(rough: RoughStore, path: Path) -> None:
    rough.answers = [Answer(503)] * 50
    cancel = threading.Event()
    cancelled_at: list[float] = []

    def give_up() -> None:
        cancelled_at.append(time.monotonic())
        cancel.set()

    timer = threading.Timer(1.0, give_up)
    timer.start()
    patient = Transfers(TransferSettings(attempts=50))
    with pytest.raises(Cancelled):
        patient.download(rough.url, path, sha256=SHA, size=len(BODY), cancel=cancel)
    assert time.monotonic() - cancelled_at[0] < 1.0
    timer.join()


def test_an_upload_begins_again_after_cuts_and_refusals(rough: RoughStore, path: Path) -> None:
    path.write_bytes(BODY)
    rough.answers = [Answer(take=100_000), Answer(503), Answer(403)]
    with instant():
        moved = Transfers(QUICK).upload(rough.url, path, renew=lambda: f"{rough.url}?again")
    assert rough.uploaded == BODY
    assert moved >= len(BODY)
    assert rough.seen[-1].path == "/bucket/key?again"


def test_an_upload_that_is_refused_twice_is_denied(rough: RoughStore, path: Path) -> None:
    path.write_bytes(b"x" * 100)
    rough.answers = [Answer(403), Answer(403)]
    with pytest.raises(AccessDenied):
        Transfers(QUICK).upload(rough.url, path, renew=lambda: rough.url)
    assert rough.uploaded is None


def test_an_upload_of_nothing_and_a_cancelled_one(rough: RoughStore, path: Path) -> None:
    path.write_bytes(b"")
    assert Transfers(QUICK).upload(rough.url, path) == 0
    assert rough.uploaded == b""
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        Transfers(QUICK).upload(rough.url, path, cancel=cancel)


def test_the_device_side_needs_no_boto3() -> None:

    code = (
        "import sys, storage.transfer.files, storage.updates.stream; print('boto3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False"
