"""A folder of data with one sub-folder for each device, so that a fleet is tried on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ConfigError

_EVALUATOR = "evaluator"


@dataclass(frozen=True)
class DeviceFolders:
    """Where the devices' data lie.

    Attributes:
        trainers: a folder for each device that trains, by name.
        evaluator: the folder of this name, if there is one: data that no device trains on.
    """

    trainers: tuple[Path, ...]
    evaluator: Path | None = None


def device_folders(data: Path) -> DeviceFolders:
    """Return the sub-folders of a folder; hidden ones are none.

    Raises:
        ConfigError: there is no such folder, or it has no sub-folder.
    """
    try:
        found = sorted(
            path.absolute()
            for path in data.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise ConfigError(f"the folder {data} cannot be read: {error.strerror}") from error
    trainers = tuple(path for path in found if path.name != _EVALUATOR)
    if not trainers:
        raise ConfigError(f"{data} has no sub-folder: it needs one for each device that trains")
    evaluator = next((path for path in found if path.name == _EVALUATOR), None)
    return DeviceFolders(trainers, evaluator)
