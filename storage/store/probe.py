"""What a store can do, found out by trying; the probe leaves nothing behind.

Nothing in Rengo depends on conditional PUT, versioning or pinned lengths; the probe tells an
operator which of them the store has.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from runtime.errors import (
    AccessDenied,
    ConfigError,
    Corrupt,
    PreconditionFailed,
    StorageError,
)
from storage.store.lifecycle import rules
from storage.store.objects import abort_uploads
from storage.store.s3 import S3Store
from storage.transfer import http

Answer: TypeAlias = bool | None

LATEST_S = 900.0
_BODY = b"rengo-probe"
_ROOT = "probe"
_URL_S = 300
# the least that S3 accepts for every part but the last
_PART = bytes(5 << 20)


@dataclass(frozen=True)
class Capabilities:
    """Whether the store did what was tried; None where it refused the key.

    Attributes:
        range: a GET of a byte range answers with that range.
        if_match: a GET with If-Match of another object is refused.
        delete_many: one request removes several objects.
        multipart: an unfinished upload is listed and can be aborted.
        presigned_parts: an upload in parts is sent and completed by presigned URLs alone.
        part_copy: a part can be a range of another object.
        pinned_length: a presigned PUT with a signed length refuses another length.
        conditional_put: a PUT with If-None-Match leaves an existing object.
        versioning: the bucket tells whether it keeps versions (whether or not it does).
        lifecycle: the bucket tells its lifecycle rules.
        sse_s3: it encrypts an object with its own key on request (``AES256``).
        sse_kms: the same with a key service's key (``aws:kms``).
    """

    range: Answer
    if_match: Answer
    delete_many: Answer
    multipart: Answer
    presigned_parts: Answer
    part_copy: Answer
    pinned_length: Answer
    conditional_put: Answer
    versioning: Answer
    lifecycle: Answer
    sse_s3: Answer
    sse_kms: Answer


@dataclass(frozen=True)
class Findings:
    """The results of a probe.

    Attributes:
        keeps_versions: the bucket keeps deleted and replaced objects as old versions.
        round_trip_s: of the fastest of three small GETs.
        clock_offset_s: the store's clock minus ours, to the second; presigned URLs need it small.
    """

    can: Capabilities
    keeps_versions: bool
    round_trip_s: float
    clock_offset_s: float


def probe(store: S3Store, on_step: Callable[[str], None] = lambda _: None) -> Findings:
    """Try everything under a key of its own and leave nothing behind. Blocks; needs the bucket.

    Args:
        store: the store; its public endpoint, which only devices need, is not tried.
        on_step: called with what is tried next.

    Raises:
        Unavailable, AccessDenied, NotFound: the plain verbs do not work, and why.
        Corrupt: an object came back with other bytes.
    """
    if store.settings.public_endpoint is not None:
        store = S3Store(store.settings.model_copy(update={"public_endpoint": None}))
    on_step("clock")
    offset_s = clock_offset_s(store)
    folder = f"{_ROOT}/{secrets.token_hex(8)}"
    with _explained_by_the_clock(offset_s), store.errors("HEAD BUCKET"):
        # first: some stores make a bucket at the first PUT
        store.client.head_bucket(Bucket=store.settings.bucket)
    with _cleaned_up(store, folder):
        on_step("plain verbs")
        _plain(store, f"{folder}/object")
        trials = _Trials(store, folder)
        answers = {}
        for field in fields(Capabilities):
            on_step(field.name.replace("_", " "))
            answers[field.name] = trials.answer(getattr(trials, field.name))
        round_trip_s = _round_trip_s(store, f"{folder}/object")
    return Findings(Capabilities(**answers), trials.keeps_versions, round_trip_s, offset_s)


def clock_offset_s(store: S3Store) -> float:
    """Return the store's clock minus ours; a store tells the time also in a refusal.

    Raises:
        Unavailable: the store cannot be reached.
        StorageError: it does not tell the time, or its certificate is refused.
    """
    what = f"GET {store.settings.endpoint}"
    with http.named_errors(what):
        answer = store.http.request("GET", store.settings.endpoint)
    date = answer.headers.get("Date", "")
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError as error:
        raise StorageError(f"{what}: the store gives its time as {date[:64]!r}") from error
    # HTTP gives whole seconds; with ours cut too, equal clocks differ by 0 or 1
    return theirs.timestamp() - math.floor(time.time())


@contextmanager
def _cleaned_up(store: S3Store, folder: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        try:
            _remove_all(store, folder)
        except StorageError as second:
            error.add_note(f"what the probe left is under {folder}: {second}")
        raise
    _remove_all(store, folder)


def _remove_all(store: S3Store, folder: str) -> None:
    abort_uploads(store, f"{folder}/")
    store.delete([info.key for info in store.list(f"{folder}/")])


def check_encryption(store: S3Store) -> None:
    """Raise unless the store encrypts as its settings ask.

    Raises:
        ConfigError: it does not; names the setting.
        Unavailable: it cannot be reached.
    """
    if store.settings.sse is None:
        return
    folder = f"{_ROOT}/{secrets.token_hex(8)}"
    with _cleaned_up(store, folder):
        _put_encrypted(store, f"{folder}/object")


def _put_encrypted(store: S3Store, key: str) -> None:
    try:
        store.put(key, _BODY)
    except AccessDenied:
        raise
    except StorageError as error:
        if store.settings.sse is None:
            raise
        # a store without a key service answers 500, and works otherwise
        plain = store.settings.model_copy(update={"sse": None, "kms_key": None})
        S3Store(plain).put(key, _BODY)
        raise ConfigError(
            f"store.sse = '{store.settings.sse}' does not work on this store: {error}; leave it "
            "out, or set up its encryption"
        ) from error


@contextmanager
def _explained_by_the_clock(offset_s: float) -> Iterator[None]:
    try:
        yield
    except AccessDenied as error:
        if abs(offset_s) < LATEST_S / 2:
            raise
        raise AccessDenied(
            f"{error}; its clock is {offset_s:+.0f} s off this machine's, and stores refuse what "
            "was signed more than 15 minutes away from their time: set the clock first"
        ) from error


def _plain(store: S3Store, key: str) -> None:
    _put_encrypted(store, key)
    with store.open(key) as stream:
        if stream.read(64) != _BODY:
            raise Corrupt(f"{key} of {store.settings.endpoint} came back changed")


def _round_trip_s(store: S3Store, key: str) -> float:
    url, best_s = store.presign_get(key, _URL_S), float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with http.fetch(store.http, url) as answer:
            answer.read(64)
        best_s = min(best_s, time.perf_counter() - started)
    return best_s


class _Trials:
    """A trial of each capability, in the method of its name."""

    def __init__(self, store: S3Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._key = f"{folder}/object"
        self.keeps_versions = False

    def answer(self, trial: Callable[[], bool]) -> Answer:
        """Return the result of a trial; an error is one as long as other requests succeed."""
        try:
            return trial()
        except AccessDenied:
            self._store.head(self._key)
            return None
        except StorageError:
            self._store.head(self._key)
            return False

    def range(self) -> bool:
        with self._store.open(self._key, 6, 9) as stream:
            return (stream.start, stream.read(64)) == (6, _BODY[6:9])

    def if_match(self) -> bool:
        etag = self._store.head(self._key).etag
        self._call("get_object", Key=self._key, IfMatch=f'"{etag}"')["Body"].close()
        try:
            self._call("get_object", Key=self._key, IfMatch='"0"')["Body"].close()
        except PreconditionFailed:
            return True
        return False

    def delete_many(self) -> bool:
        keys = [f"{self._folder}/many/{name}" for name in ("a", "b", "c")]
        for key in keys:
            self._store.put(key, _BODY)
        self._store.delete(keys)
        return not any(self._store.list(f"{self._folder}/many/"))

    def multipart(self) -> bool:
        key = f"{self._folder}/parts/object"
        self._store.begin_upload(key)
        return abort_uploads(self._store, key) == 1

    def presigned_parts(self) -> bool:
        key, pool = f"{self._folder}/parts/presigned", self._store.http
        upload = self._store.begin_upload(key)
        tags = [
            http.send(
                pool, self._store.presign_part(key, upload, number, _URL_S), data, len(data), {}
            )
            for number, data in ((1, _PART), (2, _BODY))
        ]
        http.complete_upload(pool, self._store.presign_complete(key, upload, _URL_S), tags)
        return self._store.head(key).size == len(_PART) + len(_BODY)

    def part_copy(self) -> bool:
        source, key = f"{self._folder}/parts/source", f"{self._folder}/parts/copy"
        self._store.put(source, _PART)
        upload = self._store.begin_upload(key)
        answer = self._call(
            "upload_part_copy",
            Key=key,
            UploadId=upload,
            PartNumber=1,
            CopySource={"Bucket": self._store.settings.bucket, "Key": self._store.full(source)},
            CopySourceRange=f"bytes=0-{len(_BODY) - 1}",
        )
        part = {"PartNumber": 1, "ETag": answer["CopyPartResult"]["ETag"]}
        self._call(
            "complete_multipart_upload",
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": [part]},
        )
        return self._store.head(key).size == len(_BODY)

    def pinned_length(self) -> bool:
        url = self._store.presign_put(f"{self._folder}/pinned", _URL_S, len(_BODY))
        headers = self._store.upload_headers
        try:
            http.send(self._store.http, url, _BODY + b"!", len(_BODY) + 1, headers)
        except StorageError:
            http.send(self._store.http, url, _BODY, len(_BODY), headers)
            return True
        return False

    def conditional_put(self) -> bool:
        try:
            self._call("put_object", Key=self._key, Body=_BODY, IfNoneMatch="*")
        except PreconditionFailed:
            return True
        return False

    def versioning(self) -> bool:
        self.keeps_versions = self._call("get_bucket_versioning").get("Status") == "Enabled"
        return True

    def lifecycle(self) -> bool:
        rules(self._store)
        return True

    def sse_s3(self) -> bool:
        return self._encrypts(ServerSideEncryption="AES256")

    def sse_kms(self) -> bool:
        key = self._store.settings.kms_key
        named = {} if key is None else {"SSEKMSKeyId": key}
        return self._encrypts(ServerSideEncryption="aws:kms", **named)

    def _encrypts(self, **wanted: str) -> bool:
        key = f"{self._folder}/encrypted"
        self._call("put_object", Key=key, Body=_BODY, **wanted)
        found = self._call("head_object", Key=key)
        return bool(found.get("ServerSideEncryption") == wanted["ServerSideEncryption"])

    def _call(self, verb: str, **params: Any) -> dict[str, Any]:
        if "Key" in params:
            params["Key"] = self._store.full(params["Key"])
        with self._store.errors(f"{verb} {params.get('Key', '')}"):
            answer: dict[str, Any] = getattr(self._store.client, verb)(
                Bucket=self._store.settings.bucket, **params
            )
        return answer
