"""The device that a task gives data to. Light: a waiting agent imports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from fl_client.datasets.dataset import Dataset
    from fl_client.datasets.settings import DataPlace

# which examples are held out depends on this name, wherever the folder lies
_OF_FOLDER = "folder"
# such a machine has more room than a device that gathers
_ROOM = {"max_mib": 1024.0, "max_examples": 1_000_000}

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
        partition: how a shared data set is divided, as ``dirichlet:0.1+turned``; empty: as the
            task has it.
    """

    id: str
    index: int = 0
    count: int = 1
    role: Role = "trainer"
    seed: int = 0
    profile: str = "cpu"
    folder: Path | None = None
    data: DataPlace | None = None
    partition: str = ""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ConfigError(
                f"device {self.id}: index {self.index} is not within 0..{self.count - 1}"
            )

    def dataset(self, described: Mapping[str, Any] | None = None) -> Dataset:
        """Return the task's data that this device gathers itself (``[data.<task>]``).

        Args:
            described: what such a section would say, for a device that has none but a ``folder``,
                which its source's ``path`` is then in; without one it is the folder itself.

        Raises:
            ConfigError: the device's settings have no such section, or ``described`` is none.
        """
        from fl_client.datasets.dataset import Dataset  # noqa: PLC0415  needs numpy

        if self.data is None and described is not None and self.folder is not None:
            return Dataset(_place_of(described, self.folder))
        if self.data is None:
            raise ConfigError(
                f"device {self.id} has no data of its own: its settings need a section [data.TASK]"
            )
        return Dataset(self.data)

    def part_of(
        self, labels: ArrayLike, owners: Sequence[Any] | None = None, default: str = "iid"
    ) -> NDArray[np.int64]:
        """Return which examples of a shared data set are this device's own, as sorted indices.

        Every device works them out by itself; together they have each example once.

        Args:
            labels: the class of each example.
            owners: whose each one is, for the partition ``natural``.
            default: the partition where the device's settings name none.

        Raises:
            ConfigError: there is no such partition, or the examples are too few.
        """
        # they need numpy
        from fl_client.datasets.splits.partitions import divided  # noqa: PLC0415
        from fl_client.datasets.splits.scheme import Examples, parse  # noqa: PLC0415

        scheme = parse(self.partition or default)
        return divided(scheme, Examples(labels, owners), self.count, self.seed)[self.index]


def _place_of(described: Mapping[str, Any], folder: Path) -> DataPlace:
    """Return the settings of data in a folder, of which nothing is reported."""
    from fl_client.datasets.settings import DataPlace, read_sections  # noqa: PLC0415  see above

    source = described.get("source")
    if not isinstance(source, Mapping):
        raise ConfigError("a dataset's source must be a dict with its kind, as in [data.TASK]")
    placed = {**source, "path": folder / str(source.get("path", ""))}
    section = {"store": _ROOM, **described, "source": placed, "drift": {"report": False}}
    try:
        (settings,) = read_sections({_OF_FOLDER: section}).values()
    except ValueError as error:
        raise ConfigError(f"the dataset that was described: {error}") from error
    return DataPlace(task=_OF_FOLDER, folder=folder.absolute(), settings=settings)
