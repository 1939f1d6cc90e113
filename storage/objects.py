"""What an object store does, and a store in memory that does all of it."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, Protocol

from runtime.errors import ConfigError, Corrupt, NotFound

_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_MAX_KEY_CHARS = 512


@dataclass(frozen=True)
class ObjectInfo:
    """An object's key and size; the ETag is the store's own, never a hash to rely on."""

    key: str
    size: int
    etag: str


class ObjectStream(Protocol):
    """An object's bytes, read forward."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer`` and return how much; 0 at the end."""
        ...


class ObjectStore(Protocol):
    """A bucket: whole objects by key. Safe for use by many threads.

    A reader sees an object whole or not at all: a ``put`` that fails leaves what was there before.
    Every method raises Unavailable when the store cannot be reached after a few tries, and
    AccessDenied when it refuses the credentials; the texts name the key and the endpoint.
    """

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        """Store the source, replacing what is there.

        Args:
            key: letters, digits, ``. _ -`` in parts between slashes, none a "folder" of another.
            source: the bytes, or a file read from where it stands.
            size: how many bytes the file holds; needed where it cannot seek.

        Raises:
            Corrupt: the file ended before ``size``.
        """
        ...

    def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[ObjectStream]:
        """Return the bytes from ``start`` up to but without ``end`` as a stream.

        Raises:
            NotFound: no such object.
            Corrupt: the object has no byte ``start``.
        """
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object; NotFound when there is none."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects; a key that is not there is as good as removed."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Return the objects whose keys begin with the prefix, in the keys' order."""
        ...

    def presign_get(self, key: str, expires_s: int) -> str:
        """Return a URL that reads the object without credentials."""
        ...

    @property
    def upload_headers(self) -> dict[str, str]:
        """Headers that a presigned PUT has to bring."""
        ...

    def presign_put(self, key: str, expires_s: int, size: int | None = None) -> str:
        """Return a URL that writes the object without credentials.

        With ``size`` only a body of that size is taken, where the store enforces it.
        """
        ...

    def abort_uploads(self, prefix: str) -> int:
        """Remove unfinished uploads under the prefix with their parts; return how many."""
        ...

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is there."""
        ...


def check_key(key: str) -> str:
    """Return the key, or raise ConfigError: it would not be the same on every store."""
    parts = key.split("/")
    if len(key) > _MAX_KEY_CHARS or not _KEY.fullmatch(key) or "." in parts or ".." in parts:
        raise ConfigError(f"object key {key[:64]!r} is not letters, digits and ._- between slashes")
    return key


def source_size(source: bytes | BinaryIO, size: int | None, key: str) -> int:
    """Return how many bytes the source holds from where it stands."""
    if isinstance(source, bytes):
        return len(source)
    if size is not None:
        return size
    if not source.seekable():
        raise ConfigError(f"{key}: the size of a stream that cannot seek must be given")
    here = source.tell()
    end = source.seek(0, io.SEEK_END)
    source.seek(here)
    return end - here


class MemoryStore:
    """A bucket in this process; ``memory://`` URLs stand in for presigned ones."""

    def __init__(self, bucket: str = "rengo") -> None:
        self._bucket = bucket
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        """See :meth:`ObjectStore.put`."""
        wanted = source_size(source, size, check_key(key))
        data = source if isinstance(source, bytes) else source.read(wanted)
        if len(data) != wanted:
            raise Corrupt(f"{key}: the source ended after {len(data)} of {wanted} bytes")
        with self._lock:
            self._objects[key] = bytes(data)
        return self._info(key, data)

    def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[ObjectStream]:
        """See :meth:`ObjectStore.open`."""
        data = self._get(key)
        if start and start >= len(data):
            raise Corrupt(f"memory://{self._bucket}/{key}: no byte {start}, it has {len(data)}")
        return io.BytesIO(data[start:end])

    def head(self, key: str) -> ObjectInfo:
        """See :meth:`ObjectStore.head`."""
        return self._info(key, self._get(key))

    def delete(self, keys: Iterable[str]) -> None:
        """See :meth:`ObjectStore.delete`."""
        with self._lock:
            for key in keys:
                self._objects.pop(check_key(key), None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See :meth:`ObjectStore.list`."""
        with self._lock:
            found = sorted(item for item in self._objects.items() if item[0].startswith(prefix))
        return (self._info(key, data) for key, data in found)

    def presign_get(self, key: str, expires_s: int) -> str:
        """See :meth:`ObjectStore.presign_get`."""
        return f"memory://{self._bucket}/{check_key(key)}?method=GET&expires={expires_s}"

    @property
    def upload_headers(self) -> dict[str, str]:
        """See :meth:`ObjectStore.upload_headers`."""
        return {}

    def presign_put(self, key: str, expires_s: int, size: int | None = None) -> str:
        """See :meth:`ObjectStore.presign_put`."""
        return f"memory://{self._bucket}/{check_key(key)}?method=PUT&expires={expires_s}"

    def abort_uploads(self, prefix: str) -> int:
        """See :meth:`ObjectStore.abort_uploads`: nothing here is ever unfinished."""
        return 0

    def ensure_bucket(self) -> None:
        """See :meth:`ObjectStore.ensure_bucket`."""

    def _get(self, key: str) -> bytes:
        with self._lock:
            data = self._objects.get(check_key(key))
        if data is None:
            raise NotFound(f"memory://{self._bucket}/{key}: no such object")
        return data

    def _info(self, key: str, data: bytes) -> ObjectInfo:
        return ObjectInfo(key, len(data), sha256(data).hexdigest()[:32])
