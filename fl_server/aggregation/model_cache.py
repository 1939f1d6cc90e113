"""Local copies of committed versions, so that the next round need not fetch its base again."""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from fl_server.rounds.model import Model
from runtime.errors import Corrupt
from runtime.files import file_sha256
from storage.store.objects import Objects
from storage.weights import Weights, write_safetensors

_LOG = logging.getLogger(__name__)
_READ_BYTES = 1 << 20


class ModelCache:
    """Verified copies in one folder, by sha256; the store stays the truth. Thread-safe.

    At most ``keep`` copies stay: two versions, each with the server's vectors where it has some.
    What a former process left half-written is removed at start; its whole copies are hashed before
    their first use, since none is forced to the disk.
    """

    def __init__(self, folder: Path, store: Objects, keep: int = 4) -> None:
        self.folder = folder
        self._store = store
        self._keep = keep
        self._lock = threading.Lock()
        self._sound: set[str] = set()
        for leftover in folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def fetch(self, model: Model) -> Path:
        """Return the path of a verified copy.

        Raises:
            NotFound: the store has lost the version.
            Corrupt: the object is not what was committed.
            Unavailable: the store cannot be reached now; try again.
        """
        with self._lock:
            path = self._path(model)
            if self._is_sound(path, model):
                path.touch()
                return path
            temporary = self.temporary()
            try:
                self._download(model, temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._sound.add(model.sha256)
            self._evict()
            return path

    def _is_sound(self, path: Path, model: Model) -> bool:
        """Whether the copy is there and, once a process, whether it is what was committed."""
        if not path.exists():
            return False
        if model.sha256 not in self._sound:
            if file_sha256(path) != model.sha256:
                _LOG.warning("the local copy of %s is damaged and fetched again", model.key)
                path.unlink()
                return False
            self._sound.add(model.sha256)
        return True

    def has(self, model: Model) -> bool:
        """Whether there is a verified copy."""
        with self._lock:
            return self._is_sound(self._path(model), model)

    def verify(self, model: Model) -> None:
        """Read the version in the store to its end; raises as ``fetch`` does."""
        self._read(model, lambda _: None)

    def _download(self, model: Model, path: Path) -> None:
        with path.open("wb") as file:
            self._read(model, file.write)

    def _read(self, model: Model, write: Callable[[bytes], object]) -> None:
        digest = hashlib.sha256()
        with self._store.open(model.key) as stream:
            while part := stream.read(_READ_BYTES):
                digest.update(part)
                write(part)
        if digest.hexdigest() != model.sha256:
            raise Corrupt(f"{model.key} has sha256 {digest.hexdigest()}, expected {model.sha256}")

    def adopt(self, path: Path, model: Model) -> None:
        """Take a file that holds ``model`` as its copy."""
        with self._lock:
            path.replace(self._path(model))
            self._sound.add(model.sha256)
            self._evict()

    def temporary(self) -> Path:
        """Return a new path for a file in the making."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.folder / f"{secrets.token_hex(8)}.tmp"

    def write(self, path: Path, weights: Weights) -> None:
        """Write weights to a file in the making."""
        with path.open("wb") as file:
            write_safetensors(weights, file)

    def forget(self) -> None:
        """Remove every copy and the folder."""
        with self._lock:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._sound.clear()

    def _path(self, model: Model) -> Path:
        return self.folder / f"{model.sha256}.safetensors"

    def _evict(self) -> None:
        copies = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in copies[: -self._keep]:
            path.unlink(missing_ok=True)
            self._sound.discard(path.stem)
