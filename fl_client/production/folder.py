"""The production models that a device holds: at any time the last one that was verified.

    production/{task}/{promotion}/model.safetensors, manifest.json
    production/{task}/incoming-{sha256}/...              a download in progress

A version gets its folder by one rename, once its model is verified and on the disk; older versions
are removed after that. So the highest number is the last good version, also after a power cut.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ConfigError, Corrupt, NotFound
from runtime.files import atomic_write, make_folder, sync_folder
from runtime.security.signing import PublicKey

if TYPE_CHECKING:
    from storage.versions.manifest import Manifest
    from storage.weights import Weights

MODEL, MANIFEST = "model.safetensors", "manifest.json"
_NUMBER = re.compile(r"\d{16}")
_TASK = re.compile(r"[a-z0-9_-]{1,64}")
_INCOMING = "incoming-"
_BLOCK_BYTES = 1 << 20
_TRIES = 5


@dataclass(frozen=True)
class HeldModel:
    """A version that is held, with the number of its promotion."""

    promotion: int
    manifest: Manifest
    folder: Path


class ProductionFolder:
    """The versions that one agent holds. One thread at a time may use it for one task.

    Args:
        root: the agent's data folder.
        server: whose signature a manifest must have.
    """

    def __init__(self, root: Path, server: PublicKey) -> None:
        self._root = root / "production"
        self._server = server

    def held(self, task: str) -> HeldModel | None:
        """Return the last good version, None if there is none; its model is not read."""
        versions = _versions(self._root / task)
        if not versions:
            return None
        try:
            return _read(versions[-1], task, self._server)
        except (Corrupt, OSError):
            return None

    def is_whole(self, held: HeldModel) -> bool:
        """Return whether the model on the disk has the sha256 of its manifest."""
        try:
            _require_whole(held.folder / MODEL, held.manifest)
        except (Corrupt, OSError):
            return False
        return True

    def incoming(self, task: str, sha256: str) -> Path:
        """Return the path to download a version to; downloads of other versions are removed."""
        folder = self._root / task / f"{_INCOMING}{sha256}"
        make_folder(folder)
        for other in self._root.joinpath(task).glob(f"{_INCOMING}*"):
            if other != folder:
                shutil.rmtree(other)
        return folder / MODEL

    def store(self, task: str, promotion: int, document: bytes, manifest: Manifest) -> HeldModel:
        """Replace the held version by one that was downloaded and verified, and return it.

        Args:
            document: the manifest's signed file.
        """
        incoming = self.incoming(task, manifest.sha256).parent
        _sync(incoming / MODEL)
        atomic_write(incoming / MANIFEST, document)
        return HeldModel(promotion, manifest, self._rename(task, incoming, promotion))

    def renumber(self, task: str, held: HeldModel, promotion: int) -> HeldModel:
        """Give the held version the number of its latest promotion, and return it."""
        return HeldModel(promotion, held.manifest, self._rename(task, held.folder, promotion))

    def _rename(self, task: str, folder: Path, promotion: int) -> Path:
        numbered = self._root / task / f"{promotion:016d}"
        if numbered.exists():
            shutil.rmtree(numbered)  # damaged, or it would be held
        folder.rename(numbered)
        sync_folder(numbered.parent)
        self.remove_older(task)
        return numbered

    def remove_older(self, task: str) -> None:
        """Remove the versions before the last one; a power cut may have left some."""
        for older in _versions(self._root / task)[:-1]:
            shutil.rmtree(older)


def load(folder: Path, task: str, server: PublicKey) -> tuple[Manifest, Weights]:
    """Return the last good production model of a task; needs no network.

    Args:
        folder: the agent's data folder.
        server: the key of the site's server, as the device's identity file has it.

    Raises:
        ConfigError: that is not a task's name.
        NotFound: the device holds no production model of this task yet.
        Corrupt: a file is not what the server signed: do not use it.
    """
    # the agent must not load numpy
    from storage.weights import read_safetensors  # noqa: PLC0415

    if _TASK.fullmatch(task) is None:
        raise ConfigError(f"{task!r} is no task's name")
    for attempt in range(_TRIES):
        versions = _versions(folder / "production" / task)
        if not versions:
            break
        try:
            held = _read(versions[-1], task, server)
            _require_whole(held.folder / MODEL, held.manifest)
            return held.manifest, read_safetensors(held.folder / MODEL)
        except FileNotFoundError as error:
            # the agent may have replaced the version meanwhile
            if attempt == _TRIES - 1:
                raise Corrupt(f"{error.filename} is missing") from error
    raise NotFound(
        f"no production model of task {task!r} in {folder}: has its agent been connected since "
        "one was promoted?"
    )


def _versions(folder: Path) -> list[Path]:
    """Return the folders of the held versions, the last promoted at the end."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if _NUMBER.fullmatch(each.name))


def _read(folder: Path, task: str, server: PublicKey) -> HeldModel:
    # most agents hold no model
    from storage.versions.manifest import Manifest  # noqa: PLC0415

    path = folder / MANIFEST
    manifest = Manifest.decode(path.read_bytes(), server, str(path))
    if manifest.task != task:
        raise Corrupt(f"{path} is of task {manifest.task!r}")
    return HeldModel(int(folder.name), manifest, folder)


def _require_whole(path: Path, manifest: Manifest) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != manifest.sha256:
        raise Corrupt(
            f"{path} is not {manifest.name} as the server signed it: it has the sha256 "
            f"{digest.hexdigest()}, expected {manifest.sha256}"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
