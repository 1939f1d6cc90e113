"""The task bundles on a device: fetched once, verified every time, run only if its policy allows.

    bundles/{sha256}.rtask             the bundle as it was downloaded
    bundles/{sha256}/task/…            unpacked, read-only
    bundles/{sha256}/venv/…            its environment

The signed manifest names a bundle's class, which is loaded from the bundle's own folder; nothing
received over the network is ever used as an import path.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from broker.wire.messages import BundleRef, Order
from fl_client.bundles.policy import (
    BundleHost,
    BundleSettings,
    refusal_of_bundle,
    refusal_of_order,
)
from runtime.clock import synced_ms
from runtime.errors import ConfigError, Corrupt, RengoError
from runtime.files import file_sha256, make_folder
from storage.transfer.files import Transfers

if TYPE_CHECKING:
    from storage.bundles.bundle import BundleManifest, SignedManifest


@dataclass(frozen=True)
class TaskEnvironment:
    """A task that is ready to run: what the training child loads, with which interpreter.

    Attributes:
        name: a unique one: the task's, or the bundle's sha256.
        spec: the argument for ``load_task``.
        python: the interpreter; None for the agent's own.
    """

    name: str
    spec: str
    python: Path | None = None


class DeviceBundles:
    """The bundles of one agent.

    The transfer thread calls ``prepare``, the owner's thread the other methods.

    Args:
        folder: that of the bundles; created when the first one arrives.
        installed: for each task that needs no bundle, its argument for ``load_task``.
        memory_bytes: what a training process may hold; 0 for no limit.
    """

    def __init__(
        self,
        settings: BundleSettings,
        folder: Path,
        transfers: Transfers,
        installed: Mapping[str, str],
        memory_bytes: int = 0,
        clock: Callable[[], int | None] = synced_ms,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._transfers = transfers
        self._installed = installed
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._ready: dict[str, TaskEnvironment] = {}
        self._server_ms = 0

    def set_server_time(self, sent_ms: int) -> None:
        """Set the server's time: when it signed the latest order."""
        self._server_ms = sent_ms

    def refusal(self, order: Order) -> str:
        """Return why an order for a task that is not installed is declined, "" if it is not."""
        return refusal_of_order(order, self._settings)

    def environment_of(self, order: Order) -> TaskEnvironment:
        """Return the environment of an order's task; a bundle must have been prepared.

        An installed task has precedence: it cannot be replaced over the network.
        """
        if order.task in self._installed:
            return TaskEnvironment(order.task, self._installed[order.task])
        assert order.bundle is not None
        return self._ready[order.bundle.sha256]

    def prepare(self, order: Order, renew: Callable[[], str], cancel: threading.Event) -> int:
        """Make an order's bundle ready to run, and return the bytes transferred for it.

        Raises:
            ConfigError: this device must not run it; says why.
            Corrupt: it is not the bundle that was announced or signed.
            StorageError: as :meth:`storage.transfer.files.Transfers.download` says.
        """
        reference = order.bundle
        if reference is None:
            raise ConfigError(f"task {order.task!r} is not installed here and has no bundle")
        make_folder(self._folder)
        transferred, path = self._fetch(reference, renew, cancel)
        try:
            self._unpack(order, path, cancel)
        except RengoError as error:
            self._ready.pop(reference.sha256, None)
            # one line for the operator: which bundle, and what is wrong with it
            text = f"bundle {order.task}@{reference.sha256[:12]} is refused: {error}"
            raise type(error)(text) if type(error) in {ConfigError, Corrupt} else error from error
        self._evict(reference.sha256)
        return transferred

    def _fetch(
        self, reference: BundleRef, renew: Callable[[], str], cancel: threading.Event
    ) -> tuple[int, Path]:
        path = self._folder / f"{reference.sha256}.rtask"
        transferred = self._transfers.download(
            reference.url,
            path,
            sha256=reference.sha256,
            size=reference.size_bytes,
            renew=renew,
            cancel=cancel,
        )
        os.utime(path)
        return transferred, path

    def _unpack(self, order: Order, path: Path, cancel: threading.Event) -> None:
        # imported here because most agents never need it
        from fl_client.bundles.environment import environment  # noqa: PLC0415
        from storage.bundles.bundle import FILES, read_bundle, unpack  # noqa: PLC0415

        with path.open("rb") as file:
            signed, members = read_bundle(file, path.name[:12])
            self._require_allowed(order, signed)
            folder = path.with_suffix("")
            if not _is_unpacked(folder, signed.manifest):
                fresh = self._folder / f"incoming-{folder.name}"
                shutil.rmtree(fresh, ignore_errors=True)
                unpack(file, members, fresh)
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
        manifest = signed.manifest
        python = environment(folder / "venv", manifest.dependencies, self._settings, cancel)
        spec = f"{folder / FILES / manifest.entry}:{manifest.class_name}"
        self._ready[folder.name] = TaskEnvironment(folder.name, spec, python)

    def _require_allowed(self, order: Order, signed: SignedManifest) -> None:
        if signed.manifest.name != order.task:
            raise ConfigError(f"it is of task {signed.manifest.name!r}")
        host = BundleHost(version("rengo"), self._memory_bytes, self._clock)
        reason = refusal_of_bundle(signed, self._settings, host, self._server_ms)
        if reason:
            raise ConfigError(reason)

    def _evict(self, latest: str) -> None:
        """Remove all but the bundles used last, and incomplete ones left by a power cut."""
        kept = sorted(self._folder.glob("*.rtask"), key=lambda path: path.stat().st_mtime)
        names = {path.stem for path in kept[-self._settings.keep :]} | {latest}
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] in names:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._ready = {name: each for name, each in self._ready.items() if name in names}


def _is_unpacked(folder: Path, manifest: BundleManifest) -> bool:
    """Return whether the folder has exactly the files that the bundle's manifest names."""
    from storage.bundles.bundle import FILES  # noqa: PLC0415  see ``_unpack``

    root = folder / FILES
    if not root.is_dir():
        return False
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    if there != {each.path for each in manifest.files}:
        return False
    return all(
        not (path := root / each.path).is_symlink()
        and path.stat().st_size == each.size_bytes
        and file_sha256(path) == each.sha256
        for each in manifest.files
    )
