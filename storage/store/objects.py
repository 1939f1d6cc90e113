"""What an object store does: objects, uploads in parts, presigned URLs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeAlias

from runtime.errors import ConfigError
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
    """An upload in parts that was neither completed nor aborted."""

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


class Objects(Protocol):
    """Whole objects by key.

    A reader sees an object whole or not at all: after a ``put`` that fails, the object is as it was
    before.

    Every method of this protocol and the others may be called by any thread, and raises Unavailable
    when the store cannot be reached after a few attempts, and AccessDenied when it refuses the
    credentials; the texts name the key and the endpoint.
    """

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        """Store the source, replacing what is there.

        Args:
            key: letters, digits, ``. _ -`` in parts between slashes, none a "folder" of another.
            source: the bytes, or a file, read from its position.
            size: how many bytes the file holds; needed where it cannot seek.

        Raises:
            Corrupt: the file ended before ``size``.
        """
        ...

    def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[ObjectStream]:
        """Return the bytes in ``[start, end)`` as a stream.

        Raises:
            NotFound: no such object.
            Corrupt: the object has no byte ``start``.
        """
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object; NotFound when there is none."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects that exist."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Return the objects whose keys begin with the prefix, ordered by key."""
        ...


class MultipartUploads(Protocol):
    """Objects that are uploaded in parts."""

    @property
    def sizes(self) -> PartSizes:
        """Which objects are uploaded in parts, and how large the parts are."""
        ...

    def begin_upload(self, key: str) -> str:
        """Begin an upload in parts and return its id."""
        ...

    def put_part(self, key: str, upload_id: str, number: int, data: Part) -> str:
        """Store one part, numbered from 1, and return its ETag; NotFound without such an upload.

        Every part but the last must have at least 5 MiB.
        """
        ...

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Assemble the object from its parts, which the ETags name in order.

        Raises:
            NotFound: no such upload: it was aborted, or completed before.
            StorageError: a part is not the one that the store has.
        """
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove an unfinished upload with its parts, if it exists."""
        ...

    def has_upload(self, key: str, upload_id: str) -> bool:
        """Whether the upload is unfinished."""
        ...

    def uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Return the unfinished uploads whose keys begin with the prefix."""
        ...


class Presigner(Protocol):
    """URLs that give access to one object for a while, without credentials."""

    def presign_get(self, key: str, expires_s: int) -> str:
        """Return a URL that reads the object without credentials."""
        ...

    @property
    def upload_headers(self) -> dict[str, str]:
        """The headers that a request to a presigned PUT must have."""
        ...

    def presign_put(self, key: str, expires_s: int, size: int | None = None) -> str:
        """Return a URL that writes the object without credentials.

        With ``size`` only a body of that size is accepted, where the store enforces it.
        """
        ...

    def presign_part(self, key: str, upload_id: str, number: int, expires_s: int) -> str:
        """Return a URL that stores one part without credentials."""
        ...

    def presign_complete(self, key: str, upload_id: str, expires_s: int) -> str:
        """Return a URL that completes the upload without credentials, by POST."""
        ...


class ObjectStore(Objects, MultipartUploads, Presigner, Protocol):
    """A bucket."""

    def ensure_bucket(self) -> None:
        """Make the bucket unless it exists."""
        ...


def abort_uploads(store: MultipartUploads, prefix: str) -> int:
    """Remove the unfinished uploads under the prefix with their parts; return how many."""
    found = list(store.uploads(prefix))
    for upload in found:
        store.abort_upload(upload.key, upload.id)
    return len(found)


def check_key(key: str) -> str:
    """Return the key, or raise ConfigError: some store would not accept it or would change it."""
    parts = key.split("/")
    if len(key) > _MAX_KEY_CHARS or not _KEY.fullmatch(key) or "." in parts or ".." in parts:
        raise ConfigError(f"object key {key[:64]!r} is not letters, digits and ._- between slashes")
    return key


def source_size(source: bytes | BinaryIO, size: int | None, key: str) -> int:
    """Return how many bytes the source holds from its position."""
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
