"""The upload of one file in parts: which part is next, and what to do with the store's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtime.errors import AccessDenied, Corrupt, NotFound, StorageError
from storage.transfer import http
from storage.transfer.in_flight import InFlightLimit
from storage.transfer.multipart import MultipartTarget, UploadedParts, uploaded_parts_path

if TYPE_CHECKING:
    import urllib3

_MAX_LOSSES = 3
_SENDERS = 2
Blocks = Callable[[BufferedReader, int], Iterator[memoryview]]
RenewTarget = Callable[[], MultipartTarget]


class MultipartUpload:
    """Uploads a file part by part, then completes the upload; any step may be repeated.

    Leaving the block aborts what is being sent. One thread calls it.

    Args:
        target: where to upload the parts.
        blocks: reads the next bytes of a file, and counts them; called on its own threads.
        renew: called for new URLs when the store refuses one, or has lost the upload.
    """

    def __init__(
        self,
        pool: urllib3.PoolManager,
        path: Path,
        target: MultipartTarget,
        blocks: Blocks,
        renew: RenewTarget | None,
    ) -> None:
        self._pool = pool
        self._path = path
        self._size = path.stat().st_size
        self._target = target
        self._blocks = blocks
        self._renew = renew
        self._uploaded = UploadedParts(uploaded_parts_path(path))
        self._uploaded.load(target)
        self._sending: dict[Future[str], tuple[int, MultipartTarget]] = {}
        self._senders = ThreadPoolExecutor(_SENDERS, "parts")
        self._limit = InFlightLimit()
        self._restarted = False
        self._losses = 0
        self.completed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.abort()
        self._senders.shutdown(cancel_futures=True)
        for sent, (number, target) in self._sending.items():
            if not sent.cancelled() and sent.exception() is None:
                self._record(number, target, sent.result())

    def renew_target(self) -> str:
        """Get new URLs and return the one that completes; another upload begins from nothing."""
        if self._renew is not None:
            self._target = self._renew()
            self._uploaded.load(self._target)
        return self._target.complete_url

    def step(self) -> None:
        """Return when one more part was uploaded, or the upload is completed."""
        self._start_parts()
        if not self._sending:
            self._complete()
            return
        done, _ = wait(self._sending, return_when=FIRST_COMPLETED)
        self._handle_answer(done.pop())

    def _start_parts(self) -> None:
        """Send missing parts: one, and the next while its answer is awaited."""
        target = self._target
        busy = {number for number, _ in self._sending.values()}
        for number in range(1, -(-self._size // target.part_bytes) + 1):
            if len(self._sending) >= _SENDERS:
                return
            if number not in self._uploaded.etags and number not in busy:
                sent = self._senders.submit(self._send, number, target)
                self._sending[sent] = (number, target)

    def _send(self, number: int, target: MultipartTarget) -> str:
        start = (number - 1) * target.part_bytes
        size = min(target.part_bytes, self._size - start)
        with self._path.open("rb") as file, self._limit.part() as paced:
            file.seek(start)
            blocks = paced(self._blocks(file, size))
            return http.send(self._pool, target.urls[number - 1], blocks, size, {})

    def _handle_answer(self, sent: Future[str]) -> None:
        """Record that a part was uploaded, or raise why it was not."""
        number, target = self._sending.pop(sent)
        try:
            etag = sent.result()
        except AccessDenied:
            if target is self._target:
                raise
        except NotFound:
            if target is self._target and not self._replace_lost_upload():
                raise
        else:
            self._record(number, target, etag)

    def _record(self, number: int, target: MultipartTarget, etag: str) -> None:
        if not etag:
            where = http.redacted(target.urls[number - 1])
            raise StorageError(f"PUT {where}: the store gave the part no ETag")
        if target.upload_id == self._target.upload_id:
            self._uploaded.add(number, etag)

    def _replace_lost_upload(self) -> bool:
        """Ask for an upload instead of one that the store has lost; whether there is another."""
        lost = self._target.upload_id
        self._losses += 1
        if self._losses > _MAX_LOSSES:
            return False
        self.renew_target()
        return self._target.upload_id != lost

    def _complete(self) -> None:
        was_requested = self._uploaded.completing
        self._uploaded.mark_completing()
        try:
            http.complete_upload(self._pool, self._target.complete_url, self._etags())
        except (NotFound, Corrupt) as error:
            # unknown after an earlier request: that one completed it and its answer was lost; the
            # reader of the object verifies it
            if not (was_requested and isinstance(error, NotFound)):
                if self._restarted:
                    raise
                self._restart()
                return
        self.completed = True

    def _etags(self) -> list[str]:
        return [etag for _, etag in sorted(self._uploaded.etags.items())]

    def _restart(self) -> None:
        """Send every part once more, to another upload if there is one: the store has lost some."""
        self._restarted = True
        self.renew_target()
        self._uploaded.clear()
