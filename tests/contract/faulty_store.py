"""A store and the same one behind a proxy that fails as a test says, and what is stored in it."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_server.rounds.model import Model
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore
from storage.store.objects import ObjectStore, abort_uploads
from storage.store.s3 import S3Store
from storage.transfer import http
from storage.transfer.files import Transfers, TransferSettings
from storage.transfer.multipart import PartSizes
from tests.integration.store_fixtures import bucket_of
from tests.proxy import Fault, Proxy

KEY = "projects/p/runs/r/global/000001.safetensors"
SIZE = 3_000_000
OLD = random.Random(1).randbytes(SIZE)
NEW = random.Random(2).randbytes(SIZE)
QUICK = TransferSettings(attempts=3, read_s=2.0, connect_s=2.0)
WELL = Fault()
URL_S = 600


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
def rough(embedded_store: EmbeddedStore) -> Iterator[Rough]:
    store = bucket_of(embedded_store)
    with Proxy(store.settings.endpoint) as proxy, instant():
        yield Rough(store, proxy)
    store.delete([info.key for info in store.list("")])
    abort_uploads(store, "")


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
        "device": lambda: Transfers(QUICK).upload(faulty.presign_put(KEY, URL_S), source),
    }
    return ways[name]


WAYS_IN = ("bytes", "file", "device")


def hasty(store: S3Store) -> S3Store:
    """Return the store with little patience: one without room thinks about it for a minute."""
    store.http = http.pool(connect_s=2.0, read_s=3.0)
    return store
