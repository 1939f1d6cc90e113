"""Versions for tests of the registry: models of a few bytes with their manifests."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.security.signing import SecretKey
from storage.registry.registry import Document
from storage.store.objects import ObjectStore
from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest
from storage.weights import Weights, write_safetensors

PROJECT = "p"
KEY = SecretKey("5a" * 32)
OTHER_KEY = SecretKey("a5" * 32)


def manifest_of(run_id: str, version: int, body: bytes = b"", **changes: Any) -> Manifest:
    """Return a manifest of a model that is these bytes."""
    project = changes.get("project", PROJECT)
    fields: dict[str, Any] = {
        "project": project,
        "run_id": run_id,
        "version": version,
        "attempt": min(version, 1),
        "task": "digits",
        "algorithm": "fedavg",
        "algorithm_settings": {"server_optimizer": "sgd", "learning_rate": 1.0},
        "training": {"epochs": 1},
        "seed": 7,
        "parent": None,
        "cohort": ["d-1", "d-2"],
        "cohort_size": 2,
        "num_examples": 300,
        "key": RunKeys(project, run_id).version(version),
        "sha256": hashlib.sha256(body).hexdigest(),
        "size_bytes": len(body),
        "layout_hash": "0d" * 32,
        "created_ms": 1_000 + version,
    }
    return Manifest(**(fields | changes))


def model_file(name: bytes, values: Sequence[float] = (0.0,)) -> bytes:
    """Return the file of a model that has these values and, beside them, its name."""
    arrays = {"w": np.array(values, np.float32), "name": np.frombuffer(name, np.uint8)}
    data = io.BytesIO()
    write_safetensors(Weights.from_arrays(arrays), data)
    return data.getvalue()


def stored(store: ObjectStore, run_id: str, version: int, **changes: Any) -> Manifest:
    """Put a model into the store and return its manifest, which is not there yet."""
    body = changes.pop("body", None)
    if body is None:
        body = model_file(f"{run_id} {version}".encode())
    manifest = manifest_of(run_id, version, body, **changes)
    store.put(manifest.key, body)
    return manifest


class DictCache:
    """A cache of documents in this process; ``asked`` and ``held`` are for tests to look at."""

    def __init__(self) -> None:
        self.held: dict[str, Document] = {}
        self.found = 0

    def get(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """See :class:`storage.registry.scan.DocumentCache`."""
        found = {
            key: self.held[key].data
            for key, etag in wanted.items()
            if key in self.held and self.held[key].etag == etag
        }
        self.found += len(found)
        return found

    def put(self, documents: Iterable[Document]) -> None:
        """See :class:`storage.registry.scan.DocumentCache`."""
        self.held |= {document.key: document for document in documents}

    def forget(self, keys: Iterable[str]) -> None:
        """See :class:`storage.registry.scan.DocumentCache`."""
        for key in keys:
            self.held.pop(key, None)
