"""An object store in memory, for tests and trials."""

from __future__ import annotations

import io
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import BinaryIO

from runtime.errors import Corrupt, NotFound, StorageError
from storage.store.objects import (
    ObjectInfo,
    ObjectStream,
    Part,
    UnfinishedUpload,
    check_key,
    source_size,
)
from storage.transfer.multipart import PartSizes


class MemoryStore:
    """A bucket in this process; ``memory://`` URLs stand in for presigned ones."""

    def __init__(self, bucket: str = "rengo", sizes: PartSizes | None = None) -> None:
        self.sizes = sizes or PartSizes()
        self._bucket = bucket
        self._objects: dict[str, bytes] = {}
        self._parts: dict[UnfinishedUpload, dict[int, bytes]] = {}
        self._lock = threading.Lock()

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        """See :meth:`Objects.put`."""
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
        """See :meth:`Objects.open`."""
        data = self._get(key)
        if start and start >= len(data):
            raise Corrupt(f"memory://{self._bucket}/{key}: no byte {start}, it has {len(data)}")
        return io.BytesIO(data[start:end])

    def head(self, key: str) -> ObjectInfo:
        """See :meth:`Objects.head`."""
        return self._info(key, self._get(key))

    def delete(self, keys: Iterable[str]) -> None:
        """See :meth:`Objects.delete`."""
        with self._lock:
            for key in keys:
                self._objects.pop(check_key(key), None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See :meth:`Objects.list`."""
        with self._lock:
            found = sorted(item for item in self._objects.items() if item[0].startswith(prefix))
        return (self._info(key, data) for key, data in found)

    def presign_get(self, key: str, expires_s: int) -> str:
        """See :meth:`Presigner.presign_get`."""
        return f"memory://{self._bucket}/{check_key(key)}?method=GET&expires={expires_s}"

    @property
    def upload_headers(self) -> dict[str, str]:
        """See :meth:`Presigner.upload_headers`."""
        return {}

    def presign_put(self, key: str, expires_s: int, size: int | None = None) -> str:
        """See :meth:`Presigner.presign_put`."""
        return f"memory://{self._bucket}/{check_key(key)}?method=PUT&expires={expires_s}"

    def begin_upload(self, key: str) -> str:
        """See :meth:`MultipartUploads.begin_upload`."""
        upload = UnfinishedUpload(check_key(key), secrets.token_hex(8))
        with self._lock:
            self._parts[upload] = {}
        return upload.id

    def put_part(self, key: str, upload_id: str, number: int, data: Part) -> str:
        """See :meth:`MultipartUploads.put_part`."""
        part = bytes(data)
        with self._lock:
            self._unfinished(key, upload_id)[number] = part
        return _etag(part)

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """See :meth:`MultipartUploads.complete_upload`."""
        with self._lock:
            parts = self._unfinished(key, upload_id)
            chosen = [parts.get(number, b"") for number in range(1, len(etags) + 1)]
            if [_etag(part) for part in chosen] != list(etags):
                raise StorageError(f"memory://{self._bucket}/{key}: InvalidPart")
            self._objects[key] = b"".join(chosen)
            del self._parts[UnfinishedUpload(key, upload_id)]

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See :meth:`MultipartUploads.abort_upload`."""
        with self._lock:
            self._parts.pop(UnfinishedUpload(check_key(key), upload_id), None)

    def has_upload(self, key: str, upload_id: str) -> bool:
        """See :meth:`MultipartUploads.has_upload`."""
        with self._lock:
            return UnfinishedUpload(check_key(key), upload_id) in self._parts

    def uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """See :meth:`MultipartUploads.uploads`."""
        with self._lock:
            found = [upload for upload in self._parts if upload.key.startswith(prefix)]
        return iter(found)

    def presign_part(self, key: str, upload_id: str, number: int, expires_s: int) -> str:
        """See :meth:`Presigner.presign_part`."""
        url = f"memory://{self._bucket}/{check_key(key)}?method=PUT&expires={expires_s}"
        return f"{url}&uploadId={upload_id}&partNumber={number}"

    def presign_complete(self, key: str, upload_id: str, expires_s: int) -> str:
        """See :meth:`Presigner.presign_complete`."""
        url = f"memory://{self._bucket}/{check_key(key)}?method=POST&expires={expires_s}"
        return f"{url}&uploadId={upload_id}"

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
