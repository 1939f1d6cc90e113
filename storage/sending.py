"""One file on its way in parts: which part is next, and what its store's answers mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import urllib3

from runtime.errors import Corrupt, NotFound, StorageError
from storage import http
from storage.parts import ArrivedParts, PartsPlace

_MAX_LOSSES = 3
Blocks = Callable[[BinaryIO, int], Iterator[bytes]]
RenewPlace = Callable[[], PartsPlace]


def arrived_path(path: Path) -> Path:
    """Return where it is kept which parts of a file have arrived."""
    return path.with_name(f"{path.name}.parts")


class FileInParts:
    """Sends a file part by part, then completes the upload; every step is tried again as it is.

    Args:
        place: where the parts go.
        blocks: reads the next bytes of the file, and counts them.
        renew: asked for fresh URLs when the store refuses one, or has lost the upload.
    """

    def __init__(
        self,
        pool: urllib3.PoolManager,
        file: BinaryIO,
        place: PartsPlace,
        blocks: Blocks,
        renew: RenewPlace | None,
    ) -> None:
        self._pool = pool
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._place = place
        self._blocks = blocks
        self._renew = renew
        self._arrived = ArrivedParts(arrived_path(Path(file.name)))
        self._arrived.follow(place)
        self._began_again = False
        self._losses = 0
        self.completed = False

    def renewed(self) -> str:
        """Take fresh URLs; those of another upload mean that it begins again."""
        if self._renew is not None:
            self._place = self._renew()
            self._arrived.follow(self._place)
        return self._place.complete_url

    def step(self) -> None:
        """Send the next part, or complete the upload."""
        number, part_bytes = len(self._arrived.etags), self._place.part_bytes
        start = number * part_bytes
        if start >= self._size:
            self._complete()
            return
        self._file.seek(start)
        size = min(part_bytes, self._size - start)
        url = self._place.urls[number]
        try:
            etag = http.send(self._pool, url, self._blocks(self._file, size), size, {})
        except NotFound:
            if not self._has_another():
                raise
            return
        if not etag:
            raise StorageError(f"PUT {http.place(url)}: the store gave the part no ETag")
        self._arrived.add(etag)

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
            http.complete_upload(self._pool, self._place.complete_url, self._arrived.etags)
        except (NotFound, Corrupt) as error:
            # known no more after an earlier try: it is complete, and that answer was lost; whoever
            # reads the object verifies it
            if not (was_tried and isinstance(error, NotFound)):
                if self._began_again:
                    raise
                self._begin_again()
                return
        self.completed = True

    def _begin_again(self) -> None:
        """Send every part once more, to another upload if there is one: the store lost some."""
        self._began_again = True
        self.renewed()
        self._arrived.restart()
