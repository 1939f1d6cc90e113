"""An S3 bucket as an object store.

Objects are read and written by presigned URLs and urllib3: on both embedded stores a PUT then takes
a third of the CPU of boto3, which hashes every body that it signs, and the server and the devices
handle the same errors. boto3 does the requests without a body, except the single DELETE, which each
round makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, TypedDict, TypeVar

from runtime.errors import (
    AccessDenied,
    ConfigError,
    Corrupt,
    NotFound,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from runtime.retry import retrying
from runtime.security.tls import Tls
from storage.store.clock import StoreClock, sign_by
from storage.store.multipart_writer import PartWriter
from storage.store.objects import ObjectInfo, Part, UnfinishedUpload, check_key, source_size
from storage.store.presign import UrlSigner
from storage.store.settings import ATTEMPTS, CONNECT_S, READ_S, StoreSettings, client_of
from storage.transfer import http
from storage.transfer.multipart import PartSizes

T = TypeVar("T")


class _Object(TypedDict):
    Bucket: str
    Key: str


_OWN_URL_S = 900
_TOTAL_S = 60.0

_DENIED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_MISSING = {
    "404",
    "NoSuchBucket",
    "NoSuchKey",
    "NoSuchLifecycleConfiguration",
    "NoSuchUpload",
    "NotFound",
}
_ELSEWHERE = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_PRECONDITION = {"412", "ConditionalRequestConflict", "PreconditionFailed"}
_BUSY = {"429", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}


class S3Store:
    """A bucket of any S3 server; see :class:`storage.store.objects.ObjectStore`."""

    def __init__(
        self,
        settings: StoreSettings,
        sizes: PartSizes | None = None,
        clock: StoreClock | None = None,
    ) -> None:
        self.settings = settings
        self.sizes = sizes or PartSizes()
        self.client = client_of(settings, settings.endpoint)
        self._clock = clock or StoreClock()
        sign_by(self._clock, self.client, settings)
        self._private = UrlSigner(settings, self.client, self._clock)
        self._public = self._private
        if settings.public_endpoint:
            public = client_of(settings, settings.public_endpoint)
            self._public = UrlSigner(settings, public, self._clock)
        tls = None if settings.ca is None else Tls.trusting(settings.ca)
        self.http = http.pool(tls=tls, connect_s=CONNECT_S, read_s=READ_S, proxy=settings.proxy)

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        """Store the source: in one request, or a large one in parts."""
        total = source_size(source, size, check_key(key))
        if self.sizes.is_large(total):
            self._put_parts(key, source, total)
            return self.head(key)
        headers = self.upload_headers

        def url() -> str:
            return self._private.sign("PUT", self.full(key), _OWN_URL_S, headers=headers)

        if isinstance(source, bytes):
            etag = self._retry(lambda: http.send(self.http, url(), source, total, headers))
        elif source.seekable():
            start = source.tell()
            etag = self._retry(lambda: self._send_from(url(), source, start, total, key))
        else:
            etag = http.send(self.http, url(), _blocks(source, total, key), total, headers)
        return ObjectInfo(key, total, etag)

    def open(self, key: str, start: int = 0, end: int | None = None) -> http.Download:
        """Return the bytes as a stream; a break is Unavailable, and a range resumes it."""
        full = self.full(check_key(key))

        def fetch() -> http.Download:
            url = self._private.sign("GET", full, _OWN_URL_S)
            return http.fetch(self.http, url, start=start, end=end)

        return self._retry(fetch)

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object."""
        with self.errors(f"HEAD {check_key(key)}"):
            found = self.client.head_object(Bucket=self.settings.bucket, Key=self.full(key))
        return ObjectInfo(key, found["ContentLength"], found["ETag"].strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects, up to a thousand in one request, and the last of each folder singly.

        MinIO's front over a file system removes an empty folder only after a single DELETE; other
        stores get one request more.
        """
        rest = iter(keys)
        while batch := list(islice(rest, 1000)):
            lasts = {check_key(key).rpartition("/")[0]: key for key in batch}
            self._delete_many(sorted(set(batch) - set(lasts.values())))
            for key in lasts.values():
                self._retry(partial(self._remove, key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Return the objects under the prefix, one page for each request."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.settings.bucket, Prefix=self.full(prefix)
        )
        with self.errors(f"LIST {prefix}"):
            for page in pages:
                for found in page.get("Contents", []):
                    # a key that ends in a slash is a folder that the store made
                    if not found["Key"].endswith("/"):
                        key = found["Key"].removeprefix(self.settings.root)
                        yield ObjectInfo(key, found["Size"], found["ETag"].strip('"'))

    def presign_get(self, key: str, expires_s: int) -> str:
        """Return a URL on the public endpoint that reads the object."""
        return self._public.sign("GET", self.full(check_key(key)), expires_s)

    @property
    def upload_headers(self) -> dict[str, str]:
        """The headers that are signed into a presigned PUT and must be sent with it."""
        return self.settings.upload_headers

    def presign_put(self, key: str, expires_s: int, size: int | None = None) -> str:
        """Return a URL on the public endpoint that writes the object, with its length signed."""
        headers = self.upload_headers
        if size is not None:
            headers["Content-Length"] = str(size)
        return self._public.sign("PUT", self.full(check_key(key)), expires_s, headers=headers)

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload and return its id."""
        wanted: dict[str, Any] = {**self._object(key), **self.settings.upload_params}
        with self.errors(f"CREATE UPLOAD {key}"):
            return self.client.create_multipart_upload(**wanted)["UploadId"]

    def put_part(self, key: str, upload_id: str, number: int, data: Part) -> str:
        """Store one part and return its ETag."""
        query: dict[str, str | int] = {"uploadId": upload_id, "partNumber": number}
        full, size = self.full(check_key(key)), len(data)

        def send() -> str:
            url = self._private.sign("PUT", full, _OWN_URL_S, query=query)
            return http.send(self.http, url, _slices(data), size, {})

        return self._retry(send)

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Assemble the object from its parts."""
        query = {"uploadId": upload_id}
        full = self.full(check_key(key))

        def complete() -> None:
            url = self._private.sign("POST", full, _OWN_URL_S, query=query)
            http.complete_upload(self.http, url, etags)

        self._retry(complete)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload, if it exists."""
        try:
            with self.errors(f"ABORT UPLOAD {key}"):
                self.client.abort_multipart_upload(**self._object(key), UploadId=upload_id)
        except NotFound:
            return

    def has_upload(self, key: str, upload_id: str) -> bool:
        """Whether the multipart upload is unfinished."""
        try:
            with self.errors(f"LIST PARTS {key}"):
                self.client.list_parts(**self._object(key), UploadId=upload_id, MaxParts=1)
        except NotFound:
            return False
        return True

    def uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Return the unfinished multipart uploads under the prefix."""
        # no prefix in the request: MinIO takes it for a whole key
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.settings.bucket
        )
        with self.errors(f"LIST UPLOADS {prefix}"):
            for page in pages:
                for found in page.get("Uploads", []):
                    if found["Key"].startswith(self.full(prefix)):
                        key = found["Key"].removeprefix(self.settings.root)
                        yield UnfinishedUpload(key, found["UploadId"])

    def presign_part(self, key: str, upload_id: str, number: int, expires_s: int) -> str:
        """Return a URL on the public endpoint that stores one part."""
        query: dict[str, str | int] = {"uploadId": upload_id, "partNumber": number}
        return self._public.sign("PUT", self.full(check_key(key)), expires_s, query=query)

    def presign_complete(self, key: str, upload_id: str, expires_s: int) -> str:
        """Return a URL on the public endpoint that completes the upload."""
        query = {"uploadId": upload_id}
        return self._public.sign("POST", self.full(check_key(key)), expires_s, query=query)

    def full(self, key: str) -> str:
        """Return the whole key in the bucket, with the site's prefix."""
        return f"{self.settings.root}{key}"

    def _object(self, key: str) -> _Object:
        return {"Bucket": self.settings.bucket, "Key": self.full(check_key(key))}

    def ensure_bucket(self) -> None:
        """Make the bucket unless it exists."""
        bucket = self.settings.bucket
        try:
            with self.errors(f"HEAD BUCKET {bucket}"):
                self.client.head_bucket(Bucket=bucket)
        except NotFound:
            with self.errors(f"CREATE BUCKET {bucket}"):
                self.client.create_bucket(Bucket=bucket, **_location(self.settings.region))

    def _delete_many(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        with self.errors(f"DELETE {keys[0]} and {len(keys) - 1} more"):
            answer = self.client.delete_objects(
                Bucket=self.settings.bucket,
                Delete={"Objects": [{"Key": self.full(key)} for key in keys], "Quiet": True},
            )
        for failure in answer.get("Errors", []):
            code = failure.get("Code", "")
            if code not in _MISSING:
                raise _error_of(code, self._where(f"DELETE {failure.get('Key', '')}"))

    def _put_parts(self, key: str, source: bytes | BinaryIO, total: int) -> None:
        with PartWriter(self, key, self.sizes.written_for(total)) as writer:
            if isinstance(source, bytes):
                writer.write(source)
            else:
                for block in _blocks(source, total, key):
                    writer.write(block)

    def _send_from(self, url: str, source: BinaryIO, start: int, total: int, key: str) -> str:
        source.seek(start)
        body = _blocks(source, total, key)
        return http.send(self.http, url, body, total, self.upload_headers)

    def _remove(self, key: str) -> None:
        http.remove(self.http, self._private.sign("DELETE", self.full(key), _OWN_URL_S))

    def _retry(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt``, which signs its URL, until it succeeds or the time is over.

        A date that the store refused is corrected once.
        """
        patiently = retrying((Unavailable,), attempts=ATTEMPTS, total_s=_TOTAL_S)
        try:
            return patiently(attempt)
        except AccessDenied as error:
            if not self._clock.learn(error.store_date):
                raise
        return patiently(attempt)

    def _where(self, what: str) -> str:
        return f"{what} in {self.settings.bucket} of {self.settings.endpoint}"

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Within the block, boto3's errors become ours, which name ``what`` and the endpoint."""
        from botocore.exceptions import (  # noqa: PLC0415  (boto3 is the server's alone)
            BotoCoreError,
            ClientError,
            ConnectionError,  # noqa: A004
            HTTPClientError,
            ParamValidationError,
        )

        where = self._where(what)
        try:
            yield
        except ClientError as error:
            raise _error_of(error.response.get("Error", {}).get("Code", ""), where) from error
        except (ConnectionError, HTTPClientError) as error:
            cause = error.kwargs.get("error")
            tls = http.tls_failure(cause, where) if isinstance(cause, BaseException) else None
            raise tls or Unavailable(f"{where}: {type(error).__name__}") from error
        except ParamValidationError as error:
            raise ConfigError(f"{where}: {error}") from error
        except BotoCoreError as error:
            raise StorageError(f"{where}: {type(error).__name__}") from error


def _location(region: str) -> dict[str, Any]:
    """Return the region parameter of a new bucket: AWS wants it for every region but its first."""
    if region == "us-east-1":
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _error_of(code: str, where: str) -> StorageError | ConfigError:
    text = f"{where}: the store answered {code or 'an error without a code'}"
    if code in _DENIED:
        return AccessDenied(text)
    if code in _MISSING:
        return NotFound(text)
    if code in _ELSEWHERE:
        return ConfigError(f"{text}: the bucket is in another region; set store.region to it")
    if code in _PRECONDITION:
        return PreconditionFailed(text)
    if code in _BUSY or (code.isdecimal() and int(code) >= 500 and code != "501"):
        return Unavailable(text)
    return StorageError(text)


def _blocks(source: BinaryIO, total: int, key: str) -> Iterator[bytes]:
    left = total
    while left:
        block = source.read(min(left, http.BLOCK_BYTES))
        if not block:
            raise Corrupt(f"{key}: the source ended after {total - left} of {total} bytes")
        left -= len(block)
        yield block


def _slices(data: Part) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), http.BLOCK_BYTES):
        yield view[start : start + http.BLOCK_BYTES]
