"""The task bundles on a device: fetched once, verified every time, run only by its own policy.

    bundles/{sha256}.rtask             the bundle as it came
    bundles/{sha256}/task/…            unpacked, read-only
    bundles/{sha256}/venv/…            its environment

A bundle's class is found by the signed manifest and loaded from the bundle's own folder; nothing
that came over the network is ever an import path.
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
    """A task that may run: what the training child loads, by which interpreter.

    Attributes:
        name: tells it from all others: its own, or its bundle's sha256.
        python: None for the agent's own.
    """

    name: str
    spec: str
    python: Path | None = None


class DeviceBundles:
    """The bundles of one agent.

    ``refusal`` and ``placed`` belong to the owner's thread, ``prepare`` to the transfer thread.

    Args:
        folder: its own; made when the first bundle comes.
        installed: what the tasks that need no bundle are loaded by, by their names.
        memory_bytes: what a training process may hold; 0 where nothing limits it.
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
        self._placed: dict[str, TaskEnvironment] = {}
        self._server_ms = 0

    def heard(self, sent_ms: int) -> None:
        """Take when the server signed the order that came just now."""
        self._server_ms = sent_ms

    def refusal(self, order: Order) -> str:
        """Return why an order for a task that is not installed cannot be done, "" if it may be."""
        return refusal_of_order(order, self._settings)

    def placed(self, order: Order) -> TaskEnvironment:
        """Return what an order's task is run by; a bundle was prepared before.

        What is installed comes first: a device's own tasks are not replaced over the network.
        """
        if order.task in self._installed:
            return TaskEnvironment(order.task, self._installed[order.task])
        assert order.bundle is not None
        return self._placed[order.bundle.sha256]

    def prepare(self, order: Order, renew: Callable[[], str], cancel: threading.Event) -> int:
        """Make an order's bundle ready to run, and return the bytes that were moved for it.

        Raises:
            ConfigError: this device must not run it; says why.
            Corrupt: it is not what was announced or signed.
            StorageError: as :meth:`storage.transfer.files.Transfers.download` says.
        """
        reference = order.bundle
        if reference is None:
            raise ConfigError(f"task {order.task!r} is not installed here and has no bundle")
        make_folder(self._folder)
        moved, path = self._fetch(reference, renew, cancel)
        try:
            self._place(order, path, cancel)
        except RengoError as error:
            self._placed.pop(reference.sha256, None)
            # one line for the operator: which bundle, and what is wrong with it
            text = f"bundle {order.task}@{reference.sha256[:12]} is refused: {error}"
            raise type(error)(text) if type(error) in {ConfigError, Corrupt} else error from error
        self._evict(reference.sha256)
        return moved

    def _fetch(
        self, reference: BundleRef, renew: Callable[[], str], cancel: threading.Event
    ) -> tuple[int, Path]:
        path = self._folder / f"{reference.sha256}.rtask"
        moved = self._transfers.download(
            reference.url,
            path,
            sha256=reference.sha256,
            size=reference.size_bytes,
            renew=renew,
            cancel=cancel,
        )
        os.utime(path)
        return moved, path

    def _place(self, order: Order, path: Path, cancel: threading.Event) -> None:
        # loaded here alone: most agents never need it
        from fl_client.bundles.environment import environment  # noqa: PLC0415
        from storage.bundles.bundle import FILES, read_bundle, unpack  # noqa: PLC0415

        with path.open("rb") as file:
            signed, members = read_bundle(file, path.name[:12])
            self._require_right(order, signed)
            place = path.with_suffix("")
            if not _is_unpacked(place, signed.manifest):
                fresh = self._folder / f"incoming-{place.name}"
                shutil.rmtree(fresh, ignore_errors=True)
                unpack(file, members, fresh)
                shutil.rmtree(place, ignore_errors=True)
                fresh.rename(place)
        manifest = signed.manifest
        python = environment(place / "venv", manifest.dependencies, self._settings, cancel)
        spec = f"{place / FILES / manifest.entry}:{manifest.class_name}"
        self._placed[place.name] = TaskEnvironment(place.name, spec, python)

    def _require_right(self, order: Order, signed: SignedManifest) -> None:
        if signed.manifest.name != order.task:
            raise ConfigError(f"it is of task {signed.manifest.name!r}")
        machine = BundleHost(version("rengo"), self._memory_bytes, self._clock)
        reason = refusal_of_bundle(signed, self._settings, machine, self._server_ms)
        if reason:
            raise ConfigError(reason)

    def _evict(self, latest: str) -> None:
        """Remove all but the bundles that were used last, and what a power cut left."""
        kept = sorted(self._folder.glob("*.rtask"), key=lambda path: path.stat().st_mtime)
        names = {path.stem for path in kept[-self._settings.keep :]} | {latest}
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] in names:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._placed = {name: each for name, each in self._placed.items() if name in names}


def _is_unpacked(place: Path, manifest: BundleManifest) -> bool:
    """Whether the files of a bundle lie there as its manifest names them, and no others."""
    from storage.bundles.bundle import FILES  # noqa: PLC0415  see ``_place``

    root = place / FILES
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
