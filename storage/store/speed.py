"""How fast a store is, measured by presigned URLs as devices use them."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runtime.errors import Corrupt
from storage.store.s3 import S3Store
from storage.transfer import http

SIZES_MB = (1, 8, 64)
_REPETITIONS = 5
_URL_S = 3600
_MAX_S = 60.0


@dataclass(frozen=True)
class TransferSpeed:
    """The medians at one size, in MB/s (a million bytes each second)."""

    size_mb: int
    put_mb_s: float
    get_mb_s: float


def speeds(
    store: S3Store, on_step: Callable[[str], None] = lambda _: None
) -> Iterator[TransferSpeed]:
    """Yield the speed at each size and leave nothing behind; slow sizes are skipped.

    Args:
        on_step: called with what is measured next.

    Raises:
        Unavailable, AccessDenied, StorageError: a transfer failed.
    """
    key = f"probe/{secrets.token_hex(8)}/speed"
    last_s = 0.0
    try:
        for before, size_mb in zip((1, *SIZES_MB), SIZES_MB, strict=False):
            if last_s * size_mb / before > _MAX_S:
                return
            on_step(f"speed at {size_mb} MB")
            rounds = _rounds(store, key, os.urandom(size_mb * 1_000_000))
            last_s = max(rounds[-1])
            puts, gets = zip(*rounds, strict=True)
            yield TransferSpeed(
                size_mb, size_mb / statistics.median(puts), size_mb / statistics.median(gets)
            )
    finally:
        store.delete([key])


def _rounds(store: S3Store, key: str, data: bytes) -> list[tuple[float, float]]:
    put, get = store.presign_put(key, _URL_S, len(data)), store.presign_get(key, _URL_S)
    took: list[tuple[float, float]] = []
    while len(took) < _REPETITIONS and sum(map(sum, took)) < _MAX_S / 4:
        started = time.perf_counter()
        http.send(store.http, put, data, len(data), store.upload_headers)
        sent = time.perf_counter()
        _read(store, get, len(data))
        took.append((sent - started, time.perf_counter() - sent))
    return took


def _read(store: S3Store, url: str, size: int) -> None:
    with http.fetch(store.http, url) as answer:
        seen = 0
        while block := answer.read(http.BLOCK_BYTES):
            seen += len(block)
    if seen != size:
        raise Corrupt(f"GET {http.redacted(url)}: {seen} of {size} bytes came")
