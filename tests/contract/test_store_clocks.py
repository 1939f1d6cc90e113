"""A clock that is wrong or jumps, on each embedded store: requests and presigned URLs are taken."""

from __future__ import annotations

import logging
import re
import time

import pytest
import urllib3

from runtime.errors import AccessDenied
from storage.store.clock import StoreClock
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from tests.integration.store_fixtures import bucket_of, embedded_store

__all__ = ["embedded_store"]
DAY_S, HOUR_S = 86_400.0, 3_600.0


@pytest.fixture(scope="module")
def s3_store(embedded_store: EmbeddedStore) -> S3Store:
    return bucket_of(embedded_store)


class Clocks:
    """This machine's clocks, which a test sets."""

    def __init__(self, off_s: float = 0.0) -> None:
        self.off_s = off_s
        self.slept_s = 0.0

    def wall(self) -> float:
        return time.time() + self.off_s

    def monotonic(self) -> float:
        return time.monotonic() - self.slept_s

    def store(self) -> StoreClock:
        return StoreClock(self.wall, self.monotonic)


def store_by(clocks: Clocks, s3_store: S3Store) -> S3Store:
    return S3Store(s3_store.settings, clock=clocks.store())


def every_request(store: S3Store) -> None:
    """Make each kind of request: by URLs and by boto3, of the server's and of devices."""
    store.ensure_bucket()
    store.put("clock/a", b"one")
    assert store.head("clock/a").size == 3
    with store.open("clock/a") as stream:
        assert stream.read(9) == b"one"
    assert [info.key for info in store.list("clock/")] == ["clock/a"]
    assert list(store.uploads("clock/none")) == []
    upload = store.begin_upload("clock/b")
    store.abort_upload("clock/b", upload)
    with urllib3.PoolManager() as pool:
        assert pool.request("GET", store.presign_get("clock/a", 60)).data == b"one"
        put = store.presign_put("clock/a", 60, 3)
        assert pool.request("PUT", put, body=b"two", headers=store.upload_headers).status == 200
    store.delete(["clock/a", "clock/c", "clock/d"])
    assert list(store.list("clock/")) == []


@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S, HOUR_S, -HOUR_S])
def test_a_clock_that_is_wrong_at_the_start_is_corrected(
    s3_store: S3Store, off_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_by(Clocks(off_s), s3_store)
    with caplog.at_level(logging.WARNING):
        every_request(store)
    way = "ahead of" if off_s > 0 else "behind"
    (line,) = [each.getMessage() for each in caplog.records if "clock" in each.getMessage()]
    found = re.search(rf"clock is (\d+) s {way} that of the store", line)
    assert found is not None
    assert abs(int(found[1]) - abs(off_s)) <= 2


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, DAY_S])
def test_a_jump_is_bridged(s3_store: S3Store, jump_s: float) -> None:
    clocks = Clocks()
    store = store_by(clocks, s3_store)
    every_request(store)
    clocks.off_s = jump_s
    with urllib3.PoolManager() as pool:
        url = store.presign_get("clock/none", 60)
        assert pool.request("GET", url).status == 404, "devices get URLs of the right time at once"
    every_request(store)
    clocks.off_s = 0.0
    every_request(store)


def test_a_machine_that_slept_learns_the_time_anew(s3_store: S3Store) -> None:
    clocks = Clocks()
    store = store_by(clocks, s3_store)
    every_request(store)
    clocks.slept_s = 2 * HOUR_S
    every_request(store)


def test_wrong_keys_are_refused_as_before(s3_store: S3Store) -> None:
    settings = s3_store.settings.model_copy(update={"access_key": "nobody"})
    store = S3Store(settings, clock=Clocks().store())
    with pytest.raises(AccessDenied):
        store.put("clock/a", b"x")
    with pytest.raises(AccessDenied):
        store.head("clock/a")
