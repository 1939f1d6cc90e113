"""The device that a task gives data to. Light: a waiting agent imports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from runtime.errors import ConfigError

if TYPE_CHECKING:
    from fl_client.datasets.dataset import Dataset
    from fl_client.datasets.settings import DataPlace

Role: TypeAlias = Literal["trainer", "evaluator"]


@dataclass(frozen=True)
class Device:
    """The device that a task gives data to.

    Attributes:
        index: this device's number among the ``count`` devices of the run, from 0.
        role: a trainer trains on its data, an evaluator has data that no trainer sees.
        seed: the same for all devices of a site, so that they can partition one data set.
        profile: ``gpu``, ``cpu`` or ``pi``.
        folder: the folder of the device's own data, if any.
        data: the device's settings of the task's data; see ``dataset``.
    """

    id: str
    index: int = 0
    count: int = 1
    role: Role = "trainer"
    seed: int = 0
    profile: str = "cpu"
    folder: Path | None = None
    data: DataPlace | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ConfigError(
                f"device {self.id}: index {self.index} is not within 0..{self.count - 1}"
            )

    def dataset(self) -> Dataset:
        """Return the task's data that this device gathers itself (``[data.<task>]``).

        Raises:
            ConfigError: the device's settings have no such section.
        """
        from fl_client.datasets.dataset import Dataset  # noqa: PLC0415  needs numpy

        if self.data is None:
            raise ConfigError(
                f"device {self.id} has no data of its own: its settings need a section [data.TASK]"
            )
        return Dataset(self.data)
