"""What an object store does, and a store in memory that does all of it."""

from __future__ import annotations

import io
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, Protocol, TypeAlias

from runtime.errors import ConfigError, Corrupt, NotFound, StorageError
from storage.transfer.multipart import PartSizes

_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_MAX_KEY_CHARS = 512
Part: TypeAlias = bytes | memoryview


@dataclass(frozen=True)
class ObjectInfo:
    """An object's key and size; the ETag is the store's own, never a hash to rely on."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload in parts that was begun and neither completed nor aborted."""

    key: str
    id: str


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

    @property
    def sizes(self) -> PartSizes:
        """Which objects go in parts, and how large those are."""
        ...

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

    def begin_upload(self, key: str) -> str:
        """Begin an object that comes in parts and return the upload's id."""
        ...

    def put_part(self, key: str, upload_id: str, number: int, data: Part) -> str:
        """Store one part, numbered from 1, and return its ETag; NotFound when the upload is gone.

        Every part but the last has to have 5 MiB at least.
        """
        ...

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Make the object of its parts, which are named by their ETags in order.

        Raises:
            NotFound: no such upload: it was aborted, or completed before.
            StorageError: a part is not the one that the store has.
        """
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove an unfinished upload with its parts; one that is gone is as good as removed."""
        ...

    def has_upload(self, key: str, upload_id: str) -> bool:
        """Whether the upload still takes parts."""
        ...

    def uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Return the unfinished uploads whose keys begin with the prefix."""
        ...

    def presign_part(self, key: str, upload_id: str, number: int, expires_s: int) -> str:
        """Return a URL that stores one part without credentials."""
        ...

    def presign_complete(self, key: str, upload_id: str, expires_s: int) -> str:
        """Return a URL that completes the upload without credentials, by POST."""
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

    def __init__(self, bucket: str = "rengo", sizes: PartSizes | None = None) -> None:
        self.sizes = sizes or PartSizes()
        self._bucket = bucket
        self._objects: dict[str, bytes] = {}
        self._parts: dict[UnfinishedUpload, dict[int, bytes]] = {}
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

    def begin_upload(self, key: str) -> str:
        """See :meth:`ObjectStore.begin_upload`."""
        upload = UnfinishedUpload(check_key(key), secrets.token_hex(8))
        with self._lock:
            self._parts[upload] = {}
        return upload.id

    def put_part(self, key: str, upload_id: str, number: int, data: Part) -> str:
        """See :meth:`ObjectStore.put_part`."""
        part = bytes(data)
        with self._lock:
            self._unfinished(key, upload_id)[number] = part
        return _etag(part)

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """See :meth:`ObjectStore.complete_upload`."""
        with self._lock:
            parts = self._unfinished(key, upload_id)
            chosen = [parts.get(number, b"") for number in range(1, len(etags) + 1)]
            if [_etag(part) for part in chosen] != list(etags):
                raise StorageError(f"memory://{self._bucket}/{key}: InvalidPart")
            self._objects[key] = b"".join(chosen)
            del self._parts[UnfinishedUpload(key, upload_id)]

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See :meth:`ObjectStore.abort_upload`."""
        with self._lock:
            self._parts.pop(UnfinishedUpload(check_key(key), upload_id), None)

    def has_upload(self, key: str, upload_id: str) -> bool:
        """See :meth:`ObjectStore.has_upload`."""
        with self._lock:
            return UnfinishedUpload(check_key(key), upload_id) in self._parts

    def uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """See :meth:`ObjectStore.uploads`."""
        with self._lock:
            found = [upload for upload in self._parts if upload.key.startswith(prefix)]
        return iter(found)

    def presign_part(self, key: str, upload_id: str, number: int, expires_s: int) -> str:
        """See :meth:`ObjectStore.presign_part`."""
        place = f"memory://{self._bucket}/{check_key(key)}?method=PUT&expires={expires_s}"
        return f"{place}&uploadId={upload_id}&partNumber={number}"

    def presign_complete(self, key: str, upload_id: str, expires_s: int) -> str:
        """See :meth:`ObjectStore.presign_complete`."""
        place = f"memory://{self._bucket}/{check_key(key)}?method=POST&expires={expires_s}"
        return f"{place}&uploadId={upload_id}"

    def abort_uploads(self, prefix: str) -> int:
        """See :meth:`ObjectStore.abort_uploads`."""
        found = list(self.uploads(prefix))
        for upload in found:
            self.abort_upload(upload.key, upload.id)
        return len(found)

    def ensure_bucket(self) -> None:
        """See :meth:`ObjectStore.ensure_bucket`."""

    def _unfinished(self, key: str, upload_id: str) -> dict[int, bytes]:
        parts = self._parts.get(UnfinishedUpload(check_key(key), upload_id))
        if parts is None:
            raise NotFound(f"memory://{self._bucket}/{key}: no such upload")
        return parts

    def _get(self, key: str) -> bytes:
        with self._lock:
            data = self._objects.get(check_key(key))
        if data is None:
            raise NotFound(f"memory://{self._bucket}/{key}: no such object")
        return data

    def _info(self, key: str, data: bytes) -> ObjectInfo:
        return ObjectInfo(key, len(data), _etag(data))


def _etag(data: bytes) -> str:
    return sha256(data).hexdigest()[:32]
