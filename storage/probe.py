"""What a store can do, found out by trying: for the server's start and for ``doctor``.

Nothing in Rengo depends on conditional PUT, versioning or pinned lengths; the probe says what an
operator may count on.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from runtime.errors import (
    AccessDenied,
    Corrupt,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from storage import http
from storage.s3 import S3Store

_BODY = b"rengo-probe"
_ROOT = "probe"


@dataclass(frozen=True)
class Capabilities:
    """What the store did when asked.

    Attributes:
        range: a GET of a byte range answers with that range.
        conditional_put: a PUT with If-None-Match leaves an object that is there.
        versioning: the bucket tells whether it keeps versions (not that it does).
        pinned_length: a presigned PUT with a signed length refuses another length.
        multipart: an unfinished upload is listed and can be aborted.
        delete_many: one request removes several objects.
        round_trip_s: of the fastest of three small GETs.
        clock_offset_s: the store's clock minus ours, to the second; presigned URLs need it small.
    """

    range: bool
    conditional_put: bool
    versioning: bool
    pinned_length: bool
    multipart: bool
    delete_many: bool
    round_trip_s: float
    clock_offset_s: float


def probe(store: S3Store) -> Capabilities:
    """Try everything under a key of its own and leave nothing behind. Blocks; needs the bucket.

    Raises:
        Unavailable, AccessDenied, NotFound: the plain verbs do not work, with the reason.
        Corrupt: the store gave back other bytes than it was given.
    """
    if store.settings.public_endpoint is not None:
        # presigned URLs are tried too, and only devices need the public way
        store = S3Store(store.settings.model_copy(update={"public_endpoint": None}))
    folder = f"{_ROOT}/{secrets.token_hex(8)}"
    key = f"{folder}/object"
    store.put(key, _BODY)
    try:
        with store.open(key) as stream:
            if stream.read(64) != _BODY:
                raise Corrupt(f"{key} of {store.settings.endpoint} came back changed")
        offset_s, round_trip_s = _clock(store, key)
        return Capabilities(
            range=_works(lambda: _range(store, key)),
            conditional_put=_works(lambda: _conditional_put(store, key)),
            versioning=_works(lambda: _versioning(store)),
            pinned_length=_works(lambda: _pinned_length(store, f"{folder}/pinned")),
            multipart=_works(lambda: _multipart(store, f"{folder}/parts/object")),
            delete_many=_works(lambda: _delete_many(store, folder)),
            round_trip_s=round_trip_s,
            clock_offset_s=offset_s,
        )
    finally:
        store.delete([info.key for info in store.list(f"{folder}/")])


def _works(trial: Callable[[], bool]) -> bool:
    try:
        return trial()
    except (Unavailable, AccessDenied):
        # not an answer about the feature: a store that is down can do everything
        raise
    except StorageError:
        return False


def _range(store: S3Store, key: str) -> bool:
    with store.open(key, 6, 9) as stream:
        return (stream.start, stream.read(64)) == (6, _BODY[6:9])


def _conditional_put(store: S3Store, key: str) -> bool:
    try:
        _call(store, "put_object", Key=key, Body=b"replaced", IfNoneMatch="*")
    except PreconditionFailed:
        return True
    return False


def _versioning(store: S3Store) -> bool:
    _call(store, "get_bucket_versioning")
    return True


def _pinned_length(store: S3Store, key: str) -> bool:
    url = store.presign_put(key, 60, len(_BODY))
    try:
        http.send(store.http, url, _BODY + b"!", len(_BODY) + 1, {})
    except StorageError:
        http.send(store.http, url, _BODY, len(_BODY), {})
        return True
    return False


def _multipart(store: S3Store, key: str) -> bool:
    _call(store, "create_multipart_upload", Key=key)
    return store.abort_uploads(key) == 1


def _delete_many(store: S3Store, folder: str) -> bool:
    keys = [f"{folder}/many/{name}" for name in ("a", "b", "c")]
    for key in keys:
        store.put(key, _BODY)
    store.delete(keys)
    return not any(store.list(f"{folder}/many/"))


def _clock(store: S3Store, key: str) -> tuple[float, float]:
    url, best_s, offset_s = store.presign_get(key, 60), float("inf"), 0.0
    for _ in range(3):
        with http.named_errors(f"GET {http.place(url)}"):
            started = time.perf_counter()
            answer = store.http.request("GET", url)
            took_s = time.perf_counter() - started
        http.raise_for_status(answer.status, f"GET {http.place(url)}")
        if took_s < best_s:
            best_s, offset_s = took_s, _offset_s(answer.headers.get("Date", ""))
    return offset_s, best_s


def _offset_s(date: str) -> float:
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError as error:
        raise StorageError(f"the store gives its time as {date[:64]!r}") from error
    # HTTP gives whole seconds: ours is cut alike, so that equal clocks differ by 0 or 1
    return theirs.timestamp() - math.floor(time.time())


def _call(store: S3Store, verb: str, **params: Any) -> None:
    with store.errors(f"{verb} {params.get('Key', '')}"):
        getattr(store.client, verb)(Bucket=store.settings.bucket, **params)
