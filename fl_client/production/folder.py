"""The production models that a device holds, whole and verified at every moment.

    production/{task}/{promotion}/model.safetensors, manifest.json
    production/{task}/incoming-{sha256}/...              what is on its way

A version gets its place by one rename, when its model is verified and on the disk; those before it
go after that. So the highest number is the last good version, whenever the power goes.
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
_LOOKS = 5


@dataclass(frozen=True)
class HeldModel:
    """A version that is held: under which number, and what it is."""

    promotion: int
    manifest: Manifest
    folder: Path


class ProductionFolder:
    """What one agent holds of the tasks that it follows. One thread at a time for one task.

    Args:
        root: the agent's data folder.
        server: whose signature a manifest must bear.
    """

    def __init__(self, root: Path, server: PublicKey) -> None:
        self._root = root / "production"
        self._server = server

    def held(self, task: str) -> HeldModel | None:
        """Return the last good version, None where there is none; its model is not read."""
        places = _places(self._root / task)
        if not places:
            return None
        try:
            return _read(places[-1], task, self._server)
        except (Corrupt, OSError):
            return None

    def is_whole(self, held: HeldModel) -> bool:
        """Whether the model on the disk is what its manifest says."""
        try:
            _require_whole(held.folder / MODEL, held.manifest)
        except (Corrupt, OSError):
            return False
        return True

    def incoming(self, task: str, sha256: str) -> Path:
        """Return where a version is to be fetched to; what came of others is removed."""
        place = self._root / task / f"{_INCOMING}{sha256}"
        make_folder(place)
        for other in self._root.joinpath(task).glob(f"{_INCOMING}*"):
            if other != place:
                shutil.rmtree(other)
        return place / MODEL

    def adopt(self, task: str, promotion: int, document: bytes, manifest: Manifest) -> HeldModel:
        """Put a fetched and verified version in the place of the one before, and return it.

        Args:
            document: the manifest's signed file.
        """
        incoming = self.incoming(task, manifest.sha256).parent
        _sync(incoming / MODEL)
        atomic_write(incoming / MANIFEST, document)
        return HeldModel(promotion, manifest, self._place(task, incoming, promotion))

    def promote_again(self, task: str, held: HeldModel, promotion: int) -> HeldModel:
        """Give the version that is held a higher number, and return it."""
        return HeldModel(promotion, held.manifest, self._place(task, held.folder, promotion))

    def _place(self, task: str, folder: Path, promotion: int) -> Path:
        place = self._root / task / f"{promotion:016d}"
        if place.exists():
            shutil.rmtree(place)  # damaged, or it would be held
        folder.rename(place)
        sync_folder(place.parent)
        self.tidy(task)
        return place

    def tidy(self, task: str) -> None:
        """Remove the versions before the last good one; a power cut may have left some."""
        for older in _places(self._root / task)[:-1]:
            shutil.rmtree(older)


def load(folder: Path, task: str, server: PublicKey) -> tuple[Manifest, Weights]:
    """Return the last good production model of a task; needs no network.

    Args:
        folder: the agent's data folder.
        server: the key of the site's server, as the device's identity file has it.

    Raises:
        ConfigError: that is no name of a task.
        NotFound: the device has followed no production of this task yet.
        Corrupt: a file is not what the server signed: do not use it.
    """
    # a device's agent must not carry numpy
    from storage.weights import read_safetensors  # noqa: PLC0415

    if _TASK.fullmatch(task) is None:
        raise ConfigError(f"{task!r} is no task's name")
    for look in range(_LOOKS):
        places = _places(folder / "production" / task)
        if not places:
            break
        try:
            held = _read(places[-1], task, server)
            _require_whole(held.folder / MODEL, held.manifest)
            return held.manifest, read_safetensors(held.folder / MODEL)
        except FileNotFoundError as error:
            # the agent may have put another version in its place meanwhile
            if look == _LOOKS - 1:
                raise Corrupt(f"{error.filename} is missing") from error
    raise NotFound(
        f"no production model of task {task!r} in {folder}: has its agent been connected since "
        "one was promoted?"
    )


def _places(folder: Path) -> list[Path]:
    """Return the folders of the versions that are held, the last promoted at the end."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if _NUMBER.fullmatch(each.name))


def _read(place: Path, task: str, server: PublicKey) -> HeldModel:
    # most agents hold no model
    from storage.versions.manifest import Manifest  # noqa: PLC0415

    path = place / MANIFEST
    manifest = Manifest.decode(path.read_bytes(), server, str(path))
    if manifest.task != task:
        raise Corrupt(f"{path} is of task {manifest.task!r}")
    return HeldModel(int(place.name), manifest, place)


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
