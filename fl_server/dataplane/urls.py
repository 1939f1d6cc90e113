"""Presigned GETs that many devices share: signing one for each costs more than all else."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from storage.store.objects import ObjectStore

URL_LIFETIME_S = 900
_SHARED_S = 60.0
_CACHED_URLS = 64


@dataclass
class SharedUrls:
    """The latest presigned GETs by key. One thread uses it."""

    store: ObjectStore
    _signed: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)

    def of(self, key: str) -> str:
        """Return a URL of an object, signed a minute ago at most."""
        now_s = time.monotonic()
        url, signed_s = self._signed.get(key, ("", -_SHARED_S))
        if not url or now_s - signed_s > _SHARED_S:
            url = self.store.presign_get(key, URL_LIFETIME_S)
            self._signed.pop(key, None)
            self._signed[key] = (url, now_s)
            if len(self._signed) > _CACHED_URLS:
                del self._signed[next(iter(self._signed))]
        return url
