"""Bundles for tests: small ones, whole or wrong in one way."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

from runtime.security.signing import SecretKey
from storage.bundles.bundle import BundleManifest, PackedFile, sign, unsigned, write_bundle

KEY = SecretKey("a1" * 32)
SOURCE = b"""\
from rengo import Linear, Task


class Tiny(Task):
    def model(self):
        return [Linear(2, 2)]
"""


def manifest_of(files: Mapping[str, bytes] | None = None, **changes: Any) -> BundleManifest:
    """Return the manifest of a bundle that holds the files."""
    held = {"tiny.py": SOURCE} if files is None else files
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": "1",
        "entry": "tiny.py",
        "class_name": "Tiny",
        "files": [
            PackedFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
            for path, data in sorted(held.items())
        ],
        "created_ms": 1_700_000_000_000,
    }
    return BundleManifest(**{**fields, **changes})


def bundle(
    files: Mapping[str, bytes] | None = None, key: SecretKey | None = KEY, **changes: Any
) -> bytes:
    """Return a bundle's bytes; ``changes`` are fields of its manifest."""
    held = {"tiny.py": SOURCE} if files is None else files
    manifest = manifest_of(held, **changes)
    out = io.BytesIO()
    signed = unsigned(manifest) if key is None else sign(manifest, key)
    write_bundle(out, signed, [data for _, data in sorted(held.items())])
    return out.getvalue()
