"""Uploads in parts: begun here, filled by devices and submitters, and none is left behind.

Only this process knows which upload belongs to a key. After a restart a sender gets a new one, and
those that the former process began are found in the store's own list.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from broker.wire.messages import MAX_PARTS, PartsRef
from fl_server.dataplane.urls import URL_LIFETIME_S
from storage.store.objects import ObjectStore, abort_uploads
from storage.versions.keys import RunKeys

# of a message of 256 KiB: what else an order or a reply says has room beside it
_URLS_BYTES = 150_000


@dataclass(frozen=True)
class _Begun:
    id: str
    part_bytes: int
    count: int


class Uploads:
    """The unfinished uploads that this process began, by their objects' keys. Thread-safe."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._sizes = store.sizes
        self._begun: dict[str, _Begun] = {}
        self._listed: set[str] = set()
        self._lock = threading.Lock()

    def is_large(self, size: int) -> bool:
        """Whether a file of that size goes in parts."""
        return self._sizes.is_large(size)

    def parts_for(self, key: str, size: int) -> PartsRef:
        """Return the upload of a file of at most ``size`` bytes, the same one as long as it lives.

        Blocks: asks the store.
        """
        with self._lock:
            begun = self._begun.get(key)
        if begun is None or not self._store.has_upload(key, begun.id):
            begun = self._begin(key, size)
        numbers = range(1, begun.count + 1)
        return PartsRef(
            upload_id=begun.id,
            part_bytes=begun.part_bytes,
            urls=[
                self._store.presign_part(key, begun.id, number, URL_LIFETIME_S)
                for number in numbers
            ],
            complete_url=self._store.presign_complete(key, begun.id, URL_LIFETIME_S),
        )

    def _begin(self, key: str, size: int) -> _Begun:
        upload_id = self._store.begin_upload(key)
        longest = self._store.presign_part(key, upload_id, MAX_PARTS, URL_LIFETIME_S)
        most = min(MAX_PARTS, _URLS_BYTES // len(longest))
        part_bytes = self._sizes.part_for(size, most)
        begun = _Begun(upload_id, part_bytes, max(1, -(-size // part_bytes)))
        with self._lock:
            self._begun[key] = begun
        return begun

    def abort(self, key: str) -> None:
        """End the key's upload, whether it was completed or not; its object stays."""
        with self._lock:
            begun = self._begun.get(key)
        if begun is None:
            return
        self._store.abort_upload(key, begun.id)
        with self._lock:
            if self._begun.get(key) == begun:
                del self._begun[key]

    def abort_spent(self, keys: RunKeys, round_number: int, attempt: int) -> None:
        """End the uploads of a run's updates up to a round and attempt."""
        if keys.run_id not in self._listed:
            for upload in list(self._store.uploads(keys.updates)):
                if keys.is_spent_update(upload.key, round_number, attempt):
                    self._store.abort_upload(upload.key, upload.id)
            self._listed.add(keys.run_id)
        with self._lock:
            spent = [key for key in self._begun if keys.is_spent_update(key, round_number, attempt)]
        for key in spent:
            self.abort(key)

    def abort_all(self, keys: RunKeys) -> None:
        """End all uploads of a run, those of a former process included."""
        abort_uploads(self._store, keys.prefix)
        self.forget(keys)

    def forget(self, keys: RunKeys) -> None:
        """Take note that the run is over and all its uploads were aborted."""
        with self._lock:
            for key in [key for key in self._begun if key.startswith(keys.prefix)]:
                del self._begun[key]
        self._listed.discard(keys.run_id)
