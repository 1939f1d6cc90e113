"""HTTP requests to a store; its refusals and every failure are named errors.

Their texts have the method, host and path, never the query: that of a presigned URL is a
credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit, urlunsplit

from runtime.errors import (
    AccessDenied,
    AuthenticationFailed,
    Corrupt,
    NotFound,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from runtime.security.tls import Tls, tls_error
from storage.transfer.multipart import complete_body

# urllib3 is loaded with the first transfer: an idle agent is a megabyte smaller
if TYPE_CHECKING:
    import urllib3

BLOCK_BYTES = 1 << 20
# the socket's timeout is for a whole send, so a slow link needs small ones
PIECE_BYTES = 1 << 18
# a store may assemble a large object before it answers
_COMPLETE_CONNECT_S, _COMPLETE_READ_S = 5.0, 120.0
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_COMPLETED = b"CompleteMultipartUploadResult"
_MISSING_PARTS = {"InvalidPart", "InvalidPartOrder"}
Body = bytes | BinaryIO | Iterable[bytes] | Iterable[memoryview]


def pool(
    *,
    tls: Tls | None = None,
    connect_s: float = 3.0,
    read_s: float = 30.0,
    size: int = 16,
    proxy: str | None = None,
) -> urllib3.PoolManager:
    """Return a pool of connections that follows no redirect and retries nothing by itself.

    Args:
        tls: for https; None trusts the system's authorities, and loads them when needed.
        connect_s: the longest wait for a connection.
        read_s: the longest silence of the store, and of the link while a body is sent.
        proxy: the URL of an HTTP proxy; None connects directly, whatever the environment says.

    Raises:
        ConfigError: the TLS material is not usable.
    """
    import urllib3  # noqa: PLC0415

    kind = urllib3.PoolManager if proxy is None else partial(urllib3.ProxyManager, proxy)
    manager = kind(
        maxsize=size,
        retries=False,
        timeout=urllib3.Timeout(connect=connect_s, read=read_s),
        # how much of a body one send takes: http.client's 16 KiB costs a third of the rate
        blocksize=BLOCK_BYTES,
        ssl_context=None if tls is None else tls.context(),
        cert_reqs="CERT_REQUIRED",
    )
    manager.pool_classes_by_scheme = {
        "http": _with_send_timeout(urllib3.HTTPConnectionPool, read_s),
        "https": _with_send_timeout(urllib3.HTTPSConnectionPool, read_s),
    }
    return manager


def _with_send_timeout(kind: type[urllib3.HTTPConnectionPool], silence_s: float) -> Any:
    """Return the pool's class with ``silence_s`` as the timeout of each piece that is sent.

    urllib3 sends a body under the timeout for connecting, which a slow link exceeds.
    """

    class PiecewiseConnection(kind.ConnectionCls):  # type: ignore[name-defined,misc]
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(silence_s)

        def send(self, data: Any) -> None:
            if not isinstance(data, bytes) or len(data) <= PIECE_BYTES:
                super().send(data)
                return
            view = memoryview(data)
            for start in range(0, len(view), PIECE_BYTES):
                super().send(view[start : start + PIECE_BYTES])

    return type("PiecewisePool", (kind,), {"ConnectionCls": PiecewiseConnection})


def redacted(url: str) -> str:
    """Return the URL without its query and user, for messages."""
    # without the query first: urlsplit caches the last URLs
    parts = urlsplit(url.partition("?")[0])
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


@contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Within the block, urllib3's and the socket's errors become Unavailable.

    Raises:
        Unavailable: names ``what`` and the failure.
        StorageError: a certificate was refused, the store's or ours; says what to do.
    """
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except (HTTPError, OSError) as error:
        found = tls_failure(error, what)
        if found is not None:
            raise found from error
        reason = getattr(error, "reason", None) or error.__cause__ or error
        detail = getattr(reason, "strerror", None) or type(reason).__name__
        raise Unavailable(f"{what}: {type(error).__name__} ({detail})") from error


def tls_failure(error: BaseException, what: str) -> StorageError | None:
    """Return the error to raise when TLS failed, else None.

    It is Unavailable where trying again may help, as for an expired certificate and a wrong clock.
    """
    from urllib3.exceptions import SSLError  # noqa: PLC0415

    inner = error
    while isinstance(inner, SSLError) and inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    found = tls_error(inner, "the store")
    if found is None:
        return None
    kind = StorageError if isinstance(found, AuthenticationFailed) else Unavailable
    return kind(f"{what}: {found}")


def raise_for_status(status: int, what: str, date: str = "") -> None:
    """Return on 2xx, else raise the error for what the caller should do.

    Args:
        date: the time by the store's clock.
    """
    if 200 <= status < 300:
        return
    text = f"{what}: the store answered {status}"
    if status in {401, 403}:
        raise AccessDenied(text, date)
    if status in {404, 410}:
        raise NotFound(text)
    if status in {409, 412}:
        raise PreconditionFailed(text)
    if status == 416:
        raise Corrupt(f"{text}: the object is shorter than was asked for")
    # 501: not implemented, so not later either
    if status in {408, 429} or (status >= 500 and status != 501):
        raise Unavailable(text)
    raise StorageError(text)


def send(
    http: urllib3.PoolManager, url: str, body: Body, size: int, headers: Mapping[str, str]
) -> str:
    """PUT a body of known size and return the ETag.

    Raises:
        Unavailable, AccessDenied, NotFound, PreconditionFailed, StorageError.
    """
    what = f"PUT {redacted(url)}"
    with named_errors(what):
        # urllib3 sends a memoryview, but its types do not say so
        response = http.request(
            "PUT", url, body=cast("Any", body), headers={**headers, "Content-Length": str(size)}
        )
    raise_for_status(response.status, what, response.headers.get("Date", ""))
    return response.headers.get("ETag", "").strip('"')


def remove(http: urllib3.PoolManager, url: str) -> None:
    """DELETE an object, whether or not it exists, by its presigned URL.

    Raises:
        NotFound: no such bucket.
        Unavailable, AccessDenied, StorageError.
    """
    what = f"DELETE {redacted(url)}"
    with named_errors(what):
        response = http.request("DELETE", url)
    raise_for_status(response.status, what, response.headers.get("Date", ""))


def complete_upload(http: urllib3.PoolManager, url: str, etags: Sequence[str]) -> None:
    """Complete an upload in parts by its presigned POST; the ETags name the parts in order.

    Raises:
        NotFound: no such upload: it was aborted, or completed by a request whose answer was lost.
        Corrupt: the store does not have those parts.
        Unavailable, AccessDenied, StorageError.
    """
    what = f"POST {redacted(url)}"
    import urllib3  # noqa: PLC0415

    timeout = urllib3.Timeout(connect=_COMPLETE_CONNECT_S, read=_COMPLETE_READ_S)
    headers = {"Content-Type": "application/xml"}
    with named_errors(what):
        response = http.request(
            "POST", url, body=complete_body(etags), headers=headers, timeout=timeout
        )
    # a store may fail after the status 200, and says so in the body
    code = _CODE.search(response.data)
    name = "" if code is None else code[1].decode()
    if name in _MISSING_PARTS:
        raise Corrupt(f"{what}: the store answered {name}")
    if name == "NoSuchUpload":
        raise NotFound(f"{what}: the store answered {name}")
    raise_for_status(response.status, what, response.headers.get("Date", ""))
    if _COMPLETED not in response.data:
        raise Unavailable(f"{what}: the store answered {name or 'neither success nor an error'}")


class Download:
    """A response that is read forward, with the range of the object that it has.

    Attributes:
        start: its first byte; 0 when the store ignored the range.
        length: its size.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str) -> None:
        self._response = response
        self._what = what
        self.etag = response.headers.get("ETag", "").strip('"')
        self.start = _first_byte(response, what)
        self.length = _content_length(response, what)

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end; Unavailable when the connection breaks."""
        with named_errors(self._what):
            return self._response.read(size)

    def read_some(self, size: int) -> bytes:
        """Return what has arrived, at least a byte before the end: a cut then loses nothing."""
        with named_errors(self._what):
            return self._response.read1(size)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer`` and return how much; 0 at the end."""
        with named_errors(self._what):
            return self._response.readinto(buffer)

    def close(self) -> None:
        """Return the connection to the pool when all was read, else close it."""
        if self._response.length_remaining == 0:
            self._response.release_conn()
        else:
            self._response.close()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def fetch(
    http: urllib3.PoolManager, url: str, *, start: int = 0, end: int | None = None
) -> Download:
    """GET the bytes in ``[start, end)``.

    Raises:
        Corrupt: the object has no byte ``start``.
        Unavailable, AccessDenied, NotFound, StorageError.
    """
    what = f"GET {redacted(url)}"
    headers = {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    with named_errors(what):
        response = http.request("GET", url, headers=headers, preload_content=False)
    try:
        raise_for_status(response.status, what, response.headers.get("Date", ""))
        return Download(response, what)
    except StorageError:
        response.close()
        raise


def _first_byte(response: urllib3.BaseHTTPResponse, what: str) -> int:
    if response.status != 206:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise StorageError(f"{what}: a partial answer without a readable Content-Range")
    return int(first)


def _content_length(response: urllib3.BaseHTTPResponse, what: str) -> int:
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise StorageError(f"{what}: an answer without Content-Length")
    return int(length)
