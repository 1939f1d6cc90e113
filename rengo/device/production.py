"""The production model on a device, from its own disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fl_client.production.folder import load
from runtime.errors import ConfigError
from runtime.security.identity import read_identity
from storage.versions.manifest import Manifest
from storage.weights import Weights


class ProductionModel(NamedTuple):
    """A model that the site's server has put into production, verified.

    ``weights.arrays()`` are its tensors by name.
    """

    manifest: Manifest
    weights: Weights


def production_model(
    task: str, *, data_dir: str | Path, identity: str | Path | None = None
) -> ProductionModel:
    """Return the last production model of a task that this device has followed.

    It works without a broker, a store or a server, and while the device's agent runs. The manifest
    and the model are verified each time, by the server's key in the device's identity file.

    Args:
        task: the task's name.
        data_dir: the agent's data folder.
        identity: the device's identity file; by default the one that belongs to the folder, where
            ``rengo enroll`` or ``rengo up`` made both.

    Raises:
        NotFound: no production of this task has reached this device yet.
        Corrupt: a file is not what the server signed: do not use it.
        ConfigError: the identity file cannot be read.
    """
    folder = Path(data_dir)
    path = _identity_of(folder.absolute()) if identity is None else Path(identity)
    return ProductionModel(*load(folder, task, read_identity(path).believed))


def _identity_of(folder: Path) -> Path:
    path = folder.parents[1] / "identities" / f"{folder.name}.json"
    if not path.is_file():
        raise ConfigError(
            f"there is no identity at {path}: name the device's identity file by identity="
        )
    return path
