"""One file on its way in parts: which part is next, and what its store's answers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtime.errors import AccessDenied, Corrupt, NotFound, StorageError
from storage.transfer import http
from storage.transfer.in_flight import InFlightLimit
from storage.transfer.multipart import ArrivedParts, PartsPlace, arrived_path

if TYPE_CHECKING:
    import urllib3

_MAX_LOSSES = 3
_SENDERS = 2
Blocks = Callable[[BufferedReader, int], Iterator[memoryview]]
RenewPlace = Callable[[], PartsPlace]


class MultipartUpload:
    """Sends a file part by part, then completes the upload; every step is tried again as it is.

    Leaving the block ends what is on its way. One thread calls it.

    Args:
        place: where the parts go.
        blocks: reads the next bytes of a file, and counts them; called on threads of its own.
        renew: asked for fresh URLs when the store refuses one, or has lost the upload.
    """

    def __init__(
        self,
        pool: urllib3.PoolManager,
        path: Path,
        place: PartsPlace,
        blocks: Blocks,
        renew: RenewPlace | None,
    ) -> None:
        self._pool = pool
        self._path = path
        self._size = path.stat().st_size
        self._place = place
        self._blocks = blocks
        self._renew = renew
        self._arrived = ArrivedParts(arrived_path(path))
        self._arrived.follow(place)
        self._sending: dict[Future[str], tuple[int, PartsPlace]] = {}
        self._senders = ThreadPoolExecutor(_SENDERS, "parts")
        self._window = InFlightLimit()
        self._began_again = False
        self._losses = 0
        self.completed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._window.leave()
        self._senders.shutdown(cancel_futures=True)
        for sent, (number, place) in self._sending.items():
            if not sent.cancelled() and sent.exception() is None:
                self._keep(number, place, sent.result())

    def renewed(self) -> str:
        """Take fresh URLs; those of another upload mean that it begins again."""
        if self._renew is not None:
            self._place = self._renew()
            self._arrived.follow(self._place)
        return self._place.complete_url

    def step(self) -> None:
        """Return when one more part has arrived, or the upload is completed."""
        self._fill()
        if not self._sending:
            self._complete()
            return
        done, _ = wait(self._sending, return_when=FIRST_COMPLETED)
        self._settle(done.pop())

    def _fill(self) -> None:
        """Send parts that have not arrived: one, and the next while its answer is awaited."""
        place = self._place
        busy = {number for number, _ in self._sending.values()}
        for number in range(1, -(-self._size // place.part_bytes) + 1):
            if len(self._sending) >= _SENDERS:
                return
            if number not in self._arrived.etags and number not in busy:
                sent = self._senders.submit(self._send, number, place)
                self._sending[sent] = (number, place)

    def _send(self, number: int, place: PartsPlace) -> str:
        start = (number - 1) * place.part_bytes
        size = min(place.part_bytes, self._size - start)
        with self._path.open("rb") as file, self._window.part() as paced:
            file.seek(start)
            blocks = paced(self._blocks(file, size))
            return http.send(self._pool, place.urls[number - 1], blocks, size, {})

    def _settle(self, sent: Future[str]) -> None:
        """Keep that a part has arrived, or raise why it has not."""
        number, place = self._sending.pop(sent)
        try:
            etag = sent.result()
        except AccessDenied:
            if place is self._place:
                raise
        except NotFound:
            if place is self._place and not self._has_another():
                raise
        else:
            self._keep(number, place, etag)

    def _keep(self, number: int, place: PartsPlace, etag: str) -> None:
        if not etag:
            where = http.place(place.urls[number - 1])
            raise StorageError(f"PUT {where}: the store gave the part no ETag")
        if place.upload_id == self._place.upload_id:
            self._arrived.add(number, etag)

    def _has_another(self) -> bool:
        """Ask for another upload in place of one that the store has lost."""
        lost = self._place.upload_id
        self._losses += 1
        if self._losses > _MAX_LOSSES:
            return False
        self.renewed()
        return self._place.upload_id != lost

    def _complete(self) -> None:
        was_tried = self._arrived.ended
        self._arrived.end()
        try:
            http.complete_upload(self._pool, self._place.complete_url, self._etags())
        except (NotFound, Corrupt) as error:
            # known no more after an earlier try: it is complete, and that answer was lost; whoever
            # reads the object verifies it
            if not (was_tried and isinstance(error, NotFound)):
                if self._began_again:
                    raise
                self._begin_again()
                return
        self.completed = True

    def _etags(self) -> list[str]:
        return [etag for _, etag in sorted(self._arrived.etags.items())]

    def _begin_again(self) -> None:
        """Send every part once more, to another upload if there is one: the store lost some."""
        self._began_again = True
        self.renewed()
        self._arrived.restart()
