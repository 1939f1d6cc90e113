"""The site's task bundles: checked when they arrive, stored, and referred to in orders.

The store is the list of bundles: an object is put under a bundle's key after it was checked.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from broker.wire.messages import BundleRef
from fl_server.dataplane.urls import URL_LIFETIME_S, SharedUrls
from runtime.errors import ConfigError, Corrupt, NotFound
from storage.bundles.bundle import MAX_BUNDLE_BYTES, SignedManifest, read_bundle
from storage.store.objects import ObjectStore
from storage.versions.keys import BundleKeys

_BLOCK_BYTES = 1 << 20


class Named(Protocol):
    """A bundle as a run or a canary names it."""

    @property
    def sha256(self) -> str:
        """Of the whole file."""
        ...

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        ...


@dataclass(frozen=True)
class KeptBundle:
    """A bundle that the site has."""

    sha256: str
    size_bytes: int
    signed: SignedManifest

    @property
    def name(self) -> str:
        """How a person names it: the task, and the start of the sha256."""
        return f"{self.signed.manifest.name}@{self.sha256[:12]}"


class SiteBundles:
    """The bundles of one project. Thread-safe; all but ``known`` and ``reference`` ask the store.

    Args:
        folder: where a bundle is checked before it is stored; only this process uses it.
    """

    def __init__(self, store: ObjectStore, project: str, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._known: dict[str, KeptBundle] = {}
        self._awaited: dict[str, float] = {}
        self._urls = SharedUrls(store)
        self._lock = threading.Lock()
        self.keys = BundleKeys(project)

    def known(self, sha256: str) -> KeptBundle:
        """Return a bundle that this process has listed or stored.

        Raises:
            NotFound: there is none.
        """
        with self._lock:
            found = self._known.get(sha256)
        if found is None:
            raise NotFound(f"no bundle {sha256[:12]} on this site; `rengo task ls` lists them")
        return found

    def list(self) -> list[KeptBundle]:
        """Return every bundle, the latest made first."""
        found: dict[str, KeptBundle] = {}
        for info in self._store.list(self.keys.prefix):
            sha256 = self.keys.sha256_of(info.key)
            if sha256 is None:
                continue
            with self._lock:
                known = self._known.get(sha256)
            found[sha256] = known or self._fetch(sha256, info.key)
        with self._lock:
            self._known = found
        return sorted(found.values(), key=lambda each: -each.signed.manifest.created_ms)

    def find(self, name: str) -> KeptBundle:
        """Return the one bundle that a person means by ``NAME[@SHA]``.

        Raises:
            NotFound: there is none.
            ConfigError: there are several.
        """
        task, _, start = name.partition("@")
        found = [
            each
            for each in self.list()
            if each.signed.manifest.name == task and each.sha256.startswith(start)
        ]
        if not found:
            raise NotFound(f"no bundle {name!r} on this site; `rengo task ls` lists them")
        if len(found) > 1:
            choices = ", ".join(f"{each.name} ({each.signed.manifest.version})" for each in found)
            raise ConfigError(f"{name!r} may be any of {choices}; say which")
        return found[0]

    def upload_url(self, sha256: str) -> str:
        """Return a presigned PUT for a bundle that is to come; what never came is removed."""
        now = time.monotonic()
        with self._lock:
            self._awaited[sha256] = now
            self._awaited = {
                each: since for each, since in self._awaited.items() if now - since < URL_LIFETIME_S
            }
            awaited = {self.keys.incoming(each) for each in self._awaited}
        stray = [info.key for info in self._store.list(self.keys.arriving)]
        self._store.delete(key for key in stray if key not in awaited)
        return self._store.presign_put(self.keys.incoming(sha256), URL_LIFETIME_S)

    def accept(self, sha256: str) -> KeptBundle:
        """Check the bundle that came and store it under its sha256; it may be there already.

        Raises:
            NotFound: it did not come.
            Corrupt: it is not the bundle that was announced, or not signed; nothing is left of it.
        """
        incoming, final = self.keys.incoming(sha256), self.keys.bundle(sha256)
        try:
            kept = self._fetch(sha256, incoming, keep_as=final)
        except NotFound as error:
            kept = self._kept_before(sha256, final, error)
        except Corrupt:
            self._store.delete([incoming])
            raise
        self._store.delete([incoming])
        with self._lock:
            self._known[sha256] = kept
            self._awaited.pop(sha256, None)
        return kept

    def _kept_before(self, sha256: str, final: str, missing: NotFound) -> KeptBundle:
        try:
            return self._fetch(sha256, final)
        except NotFound:
            raise missing from None

    def remove(self, sha256: str) -> None:
        """Remove a bundle for good."""
        self._store.delete([self.keys.bundle(sha256)])
        with self._lock:
            self._known.pop(sha256, None)

    def reference(self, named: Named) -> BundleRef:
        """Return what an order says of a bundle. The owner's thread calls it."""
        url = self._urls.of(self.keys.bundle(named.sha256))
        return BundleRef(url=url, sha256=named.sha256, size_bytes=named.size_bytes)

    def _fetch(self, sha256: str, key: str, keep_as: str = "") -> KeptBundle:
        """Return what lies under a key, checked, and put what was checked under another."""
        size = self._store.head(key).size
        if size > MAX_BUNDLE_BYTES:
            raise Corrupt(f"a bundle of {size} bytes, at most {MAX_BUNDLE_BYTES}")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        where = f"bundle {sha256[:12]}"
        with tempfile.TemporaryFile(dir=self._folder) as file:
            left = size + 1
            with self._store.open(key) as stream:
                while left > 0 and (block := stream.read(min(_BLOCK_BYTES, left))):
                    left -= len(block)
                    file.write(block)
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise Corrupt(f"{where}: what was uploaded has another sha256")
            signed, _ = read_bundle(file, where)
            if signed.signer is None:
                raise Corrupt(f"{where}: nobody has signed it; `rengo task sign` does")
            if keep_as:
                file.seek(0)
                self._store.put(keep_as, file, size)
        return KeptBundle(sha256, size, signed)
