"""Task bundles of a site: pushing one, listing them, and building version 0 from one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_server.operations.catalogue import (
    BUNDLES_FIND,
    BUNDLES_KEEP,
    BUNDLES_LS,
    BUNDLES_PREPARE,
)
from fl_server.operations.results.bundles import BundleRow
from rengo.operator.bundle_files import distrust, extract, read
from rengo.operator.client import OperatorClient
from runtime.errors import ConfigError
from runtime.security.signing import PublicKey
from storage.bundles.bundle import FILES

_KEEP_S = 120.0


@dataclass(frozen=True)
class ChosenBundle:
    """The task that version 0 is built from, and the run definition's ``bundle``."""

    task: str
    definition: dict[str, Any]


def push(client: OperatorClient, path: Path) -> BundleRow:
    """Upload a signed bundle to the site; return its row in the site's list.

    Raises:
        ConfigError: it is not whole, or nobody has signed it.
    """
    signed, sha256 = read(path)
    if signed.signer is None:
        raise ConfigError(f"{path}: nobody has signed it; `rengo task sign` does")
    wanted = {"sha256": sha256, "size_bytes": path.stat().st_size}
    upload = client.request(BUNDLES_PREPARE, wanted)
    client.transfers().upload(upload.url, path, headers=upload.headers)
    return client.request(BUNDLES_KEEP, wanted, timeout_s=_KEEP_S)


def bundles(client: OperatorClient) -> list[BundleRow]:
    """Return every bundle of the site, the latest made first."""
    return client.request(BUNDLES_LS).bundles


@contextmanager
def chosen(
    client: OperatorClient, task: str | None, bundle: str, trusted: Sequence[PublicKey]
) -> Iterator[ChosenBundle]:
    """Yield what a run of a bundle is built from; its files are unpacked within the block.

    Args:
        task: the task that version 0 is built from; None for the bundle's own code, which then
            runs in this process.
        bundle: NAME[@SHA] of a bundle of the site.
        trusted: whose code may run here.

    Raises:
        ConfigError: there is no such bundle, or its code may not run here.
    """
    found = client.request(BUNDLES_FIND, {"name": bundle})
    definition = {"sha256": found.sha256, "size_bytes": found.size_bytes}
    if task is not None:
        yield ChosenBundle(task, definition)
        return
    with tempfile.TemporaryDirectory(prefix="rengo-bundle-") as folder:
        path = Path(folder) / "bundle.rtask"
        client.transfers().download(found.url, path, sha256=found.sha256, size=found.size_bytes)
        signed = extract(path, Path(folder) / "files")
        reason = distrust(signed, trusted)
        if reason:
            raise ConfigError(
                f"{found.name} would build version 0 here, and {reason}; name the task as "
                "FILE.py:CLASS, or trust the key by --trust"
            )
        manifest = signed.manifest
        entry = Path(folder) / "files" / FILES / manifest.entry
        yield ChosenBundle(f"{entry}:{manifest.class_name}", definition)
