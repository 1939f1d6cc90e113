"""An object that is stored in parts while its bytes are still being produced."""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from runtime.errors import NotFound, StorageError
from storage.store.objects import ObjectStore, Part

_SENDERS = 2


class PartWriter:
    """Writes an object part by part; each part is sent as soon as it is full.

    The object exists when the block ends, and does not when it ends with an error. Three parts are
    in memory: one is filled while two are sent.

    Raises:
        Unavailable: on entering, in ``write`` or at the end; the object does not exist.
    """

    def __init__(self, store: ObjectStore, key: str, part_bytes: int) -> None:
        self._store = store
        self._key = key
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(_SENDERS + 1):
            self._buffers.put(bytearray(part_bytes))
        self._buffer = self._buffers.get()
        self._filled = 0
        self._size = 0
        self._sent: list[Future[str]] = []
        self._upload_id = ""

    def __enter__(self) -> Self:
        self._upload_id = self._store.begin_upload(self._key)
        self._senders = ThreadPoolExecutor(_SENDERS, "parts")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as own:
            self._abort(own)
            raise
        if error is not None:
            self._abort(error)

    def write(self, data: Part) -> None:
        """Append bytes; waits while two parts are being sent."""
        view = memoryview(data).cast("B")
        while view:
            count = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == len(self._buffer):
                self._send()
                self._buffer = self._buffers.get()
                self._raise_early()

    def _send(self) -> None:
        part, size, number = self._buffer, self._filled, len(self._sent) + 1

        def send() -> str:
            try:
                with memoryview(part)[:size] as view:
                    return self._store.put_part(self._key, self._upload_id, number, view)
            finally:
                self._buffers.put(part)

        self._sent.append(self._senders.submit(send))
        self._size += size
        self._filled = 0

    def _raise_early(self) -> None:
        for each in self._sent:
            if each.done():
                each.result()

    def _finish(self) -> None:
        if self._filled or not self._sent:
            self._send()
        etags = [each.result() for each in self._sent]
        self._senders.shutdown()
        try:
            self._store.complete_upload(self._key, self._upload_id, etags)
        except NotFound:
            # an earlier attempt completed it and its answer was lost: the size tells
            if self._store.head(self._key).size != self._size:
                raise

    def _abort(self, error: BaseException) -> None:
        self._senders.shutdown(cancel_futures=True)
        try:
            self._store.abort_upload(self._key, self._upload_id)
        except StorageError as second:
            error.add_note(f"its parts remain until abort_uploads: {second}")
