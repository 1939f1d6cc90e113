"""A job's transfers: patience, fresh URLs, cancellation, and ends that are events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from broker.wire.messages import ModelRef, Order, PartsRef, UploadRef
from fl_client.jobs import transfer as transferring
from fl_client.jobs.transfer import JobTransfers, TransferContext
from fl_client.session.events import (
    Job,
    JobFailed,
    JobKey,
    ModelFetched,
    UpdateUploaded,
)
from runtime.errors import AccessDenied, ConfigError, Corrupt, StorageError, Unavailable
from storage.transfer.byte_ranges import EarlierVersion
from storage.transfer.files import Cancelled, Transfers
from storage.transfer.multipart import MultipartTarget
from storage.transfer.multipart_upload import RenewTarget
from tests.messages import SAMPLES, SHA

ORDER = SAMPLES["order"]
HEADERS = {"x-amz-server-side-encryption": "AES256"}


def job(url: str = "u-1", action: str = "train") -> Job:
    assert isinstance(ORDER, Order)
    order = ORDER.model_copy(
        update={
            "model": ModelRef(url=f"get-{url}", key="m", sha256=SHA, size_bytes=10),
            "upload": UploadRef(url=f"put-{url}", key="u", headers=HEADERS)
            if action == "train"
            else None,
        }
    )
    return Job(JobKey("r", "train", 1, 1), order)


class Scripted(Transfers):
    """Transfers that fail as they are told, then move ten bytes; urls show what they were given."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)
        self.urls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.renews: Callable[[], str] | None = None
        self.earlier: EarlierVersion | None = None
        self.started = threading.Event()

    def download(
        self,
        url: str,
        path: Path,
        *,
        sha256: str,
        size: int,
        renew: Callable[[], str] | None = None,
        cancel: threading.Event | None = None,
        watch: Callable[[int], object] | None = None,
        earlier: EarlierVersion | None = None,
    ) -> int:
        del watch
        self.earlier = earlier
        assert (sha256, size) == (SHA, 10)
        return self.move(url, renew, cancel)

    def upload(
        self,
        url: str,
        path: Path,
        *,
        headers: Mapping[str, str] | None = None,
        renew: Callable[[], str] | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        self.headers.append(dict(headers or {}))
        return self.move(url, renew, cancel)

    def upload_in_parts(
        self,
        place: MultipartTarget,
        path: Path,
        *,
        renew: RenewTarget | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        assert renew is not None
        return self.move(place.complete_url, lambda: renew().complete_url, cancel)

    def move(
        self, url: str, renew: Callable[[], str] | None, cancel: threading.Event | None
    ) -> int:
        self.urls.append(url)
        self.started.set()
        assert renew is not None
        assert cancel is not None
        if cancel.is_set():
            raise Cancelled("by the owner")
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, NeedsUrl):
                self.urls.append(renew())
            else:
                raise failure
        return 10


class NeedsUrl(Exception):
    """The store answered 403: a fresh URL is asked for, once."""


def never(key: JobKey) -> None:
    raise AssertionError(f"asked for {key}")


def test_a_fetch_ends_as_an_event() -> None:
    transfers, lease = Scripted(), TransferContext(job())
    assert JobTransfers(transfers, never).fetch(lease, Path("m")) == ModelFetched(lease.key)
    assert transfers.urls == ["get-u-1"]
    assert (lease.bytes_down, lease.bytes_up) == (10, 0)


def test_an_upload_ends_as_an_event() -> None:
    transfers, lease = Scripted(), TransferContext(job())
    assert JobTransfers(transfers, never).upload(lease, Path("u")) == UpdateUploaded(lease.key)
    assert transfers.urls == ["put-u-1"]
    assert transfers.headers == [HEADERS]
    assert (lease.bytes_down, lease.bytes_up) == (0, 10)


def test_a_store_that_cannot_be_reached_costs_time_only() -> None:
    transfers, lease = Scripted(*(Unavailable("down") for _ in range(4))), TransferContext(job())
    assert JobTransfers(transfers, never).fetch(lease, Path("m")) == ModelFetched(lease.key)
    assert len(transfers.urls) == 5


def test_a_retry_takes_the_latest_url() -> None:
    lease = TransferContext(job("u-1"))
    transfers = Scripted(Unavailable("down"))
    lease.renew(job("u-2"))
    JobTransfers(transfers, never).upload(lease, Path("u"))
    assert transfers.urls == ["put-u-2", "put-u-2"]


def test_a_fetch_is_told_of_the_earlier_model() -> None:
    transfers, earlier = Scripted(), EarlierVersion(Path("older"), [(0, 4)])
    JobTransfers(transfers, never).fetch(TransferContext(job()), Path("m"), earlier=earlier)
    assert transfers.earlier == earlier


@pytest.mark.parametrize("verb", ["fetch", "upload"])
def test_a_fresh_url_comes_by_an_order_that_came_again(verb: str) -> None:
    transfers, lease = Scripted(NeedsUrl()), TransferContext(job("old"))
    asked: list[JobKey] = []

    def ask(key: JobKey) -> None:
        asked.append(key)
        threading.Thread(target=lease.renew, args=(job("new"),)).start()

    event = getattr(JobTransfers(transfers, ask), verb)(lease, Path("x"))
    assert isinstance(event, ModelFetched | UpdateUploaded)
    prefix = "get" if verb == "fetch" else "put"
    assert transfers.urls == [f"{prefix}-old", f"{prefix}-new"]
    assert asked == [lease.key]


def test_a_url_that_never_comes_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transferring, "_RENEWAL_S", 0.01)
    transfers, lease = Scripted(NeedsUrl(), NeedsUrl()), TransferContext(job())
    asked: list[JobKey] = []
    event = JobTransfers(transfers, asked.append).fetch(lease, Path("m"))
    assert event == ModelFetched(lease.key)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Corrupt("m has sha256 x, expected y"), "m has sha256"),
        (StorageError("PUT u: the store answered 400"), "answered 400"),
        (OSError(28, "No space left on device"), "No space left"),
        (ConfigError("GET m: the store's certificate is not trusted"), "not trusted"),
    ],
)
def test_what_no_patience_mends_fails_the_job(error: Exception, said: str) -> None:
    transfers, lease = Scripted(error), TransferContext(job())
    event = JobTransfers(transfers, never).fetch(lease, Path("m"))
    assert isinstance(event, JobFailed)
    assert said in event.reason
    assert event.key == lease.key


def test_a_reason_fits_into_a_message() -> None:
    event = JobTransfers(Scripted(Corrupt("x" * 5000)), never).fetch(
        TransferContext(job()), Path("m")
    )
    assert isinstance(event, JobFailed)
    assert len(event.reason) == 2000


def test_an_order_without_a_place_for_the_update_fails_the_job() -> None:
    lease = TransferContext(job(action="evaluate"))
    event = JobTransfers(Scripted(), never).upload(lease, Path("u"))
    assert isinstance(event, JobFailed)
    assert "has no upload" in event.reason


def test_a_cancelled_job_ends_in_silence() -> None:
    lease = TransferContext(job())
    lease.cancel()
    assert JobTransfers(Scripted(), never).fetch(lease, Path("m")) is None
    assert JobTransfers(Scripted(), never).upload(lease, Path("u")) is None


@pytest.mark.parametrize("waits_for", ["store", "url"])
def test_cancelling_ends_any_wait_at_once(waits_for: str) -> None:
    failures = [Unavailable("down")] * 1000 if waits_for == "store" else [NeedsUrl()]
    transfers, lease = Scripted(*failures), TransferContext(job())
    ends: list[object] = []
    runner = threading.Thread(
        target=lambda: ends.append(JobTransfers(transfers, lambda _: None).fetch(lease, Path("m")))
    )
    runner.start()
    assert transfers.started.wait(10)
    lease.cancel()
    runner.join(5)
    assert ends == [None]


def test_a_failure_of_a_cancelled_job_is_silence() -> None:
    lease = TransferContext(job())

    class Late(Scripted):
        def move(
            self, url: str, renew: Callable[[], str] | None, cancel: threading.Event | None
        ) -> int:
            lease.cancel()
            raise AccessDenied("403")

    assert JobTransfers(Late(), never).fetch(lease, Path("m")) is None


def test_a_lease_shows_the_latest_job() -> None:
    lease = TransferContext(job("u-1"))
    newer = replace(job("u-2"), stage="uploading")
    lease.renew(newer)
    assert lease.job == newer


def job_in_parts(url: str = "u-1", upload_id: str = "x") -> Job:
    """Return a job whose update may go in three parts of ten bytes."""
    found = job(url)
    assert found.order.upload is not None
    parts = PartsRef(
        upload_id=upload_id, part_bytes=10, urls=["a", "b", "c"], complete_url=f"end-{url}"
    )
    upload = found.order.upload.model_copy(update={"parts": parts})
    return replace(found, order=found.order.model_copy(update={"upload": upload}))


@pytest.mark.parametrize(
    ("size", "url"), [(1, "put-u-1"), (10, "put-u-1"), (11, "end-u-1"), (30, "end-u-1")]
)
def test_a_large_update_goes_in_parts_and_a_small_one_whole(
    tmp_path: Path, size: int, url: str
) -> None:
    path = tmp_path / "u"
    path.write_bytes(bytes(size))
    transfers, lease = Scripted(), TransferContext(job_in_parts())
    assert JobTransfers(transfers, never).upload(lease, path) == UpdateUploaded(lease.key)
    assert transfers.urls == [url]
    assert lease.bytes_up == 10


def test_an_update_for_which_there_are_too_few_parts_goes_whole(tmp_path: Path) -> None:
    path = tmp_path / "u"
    path.write_bytes(bytes(31))
    transfers = Scripted()
    JobTransfers(transfers, never).upload(TransferContext(job_in_parts()), path)
    assert transfers.urls == ["put-u-1"]


@pytest.mark.parametrize("with_parts", [True, False])
def test_parts_are_renewed_by_the_order_that_comes_again(tmp_path: Path, with_parts: bool) -> None:
    path = tmp_path / "u"
    path.write_bytes(bytes(25))
    transfers, lease = Scripted(NeedsUrl()), TransferContext(job_in_parts())

    def ask(key: JobKey) -> None:
        lease.renew(job_in_parts("u-2") if with_parts else job("u-2"))

    assert JobTransfers(transfers, ask).upload(lease, path) == UpdateUploaded(lease.key)
    # a server that gives no parts any more takes the update whole
    assert transfers.urls[-1] == ("end-u-2" if with_parts else "put-u-2")
