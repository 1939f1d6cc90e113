"""How many examples of each class every device has, as its task's data tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from fl_client.tasks.user_code import splits_of


@dataclass(frozen=True)
class DeviceCounts:
    """What one device has.

    Attributes:
        held_out: how many of the examples are not trained on.
        classes: how many of all its examples are of each class, both splits together; empty where
            the targets are no class numbers, one for each example.
    """

    device_id: str
    examples: int
    held_out: int
    classes: Mapping[int, int]


def counts_of(task: Task, devices: list[Device]) -> Iterator[DeviceCounts]:
    """Yield what each device has; one device's data are in memory at a time.

    Raises:
        ConfigError: the task gives no data.
    """
    for device in devices:
        train, held_out = splits_of(task, device)
        sizes = [_size(split) for split in (train, held_out)]
        yield DeviceCounts(device.id, sum(sizes), sizes[1], _classes(task, train, held_out))


def _size(split: Split) -> int:
    if split is None:
        return 0
    arrays = _arrays(split)
    return len(cast("Any", split) if arrays is None else arrays[0])


def _arrays(split: Split) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return inputs and targets where a split is two arrays, None for a Dataset of torch's."""
    if not (isinstance(split, tuple | list) and len(split) == 2):
        return None
    return np.asarray(split[0]), np.asarray(split[1])


def _classes(task: Task, *splits: Split) -> dict[int, int]:
    pairs = [_arrays(split) for split in splits if split is not None]
    targets = [pair[1] for pair in pairs if pair is not None]
    if task.objective != "cross_entropy" or not targets or len(targets) != len(pairs):
        return {}
    if any(each.dtype.kind not in "iu" or each.size != len(each) for each in targets):
        return {}
    labels, numbers = np.unique(
        np.concatenate([each.reshape(-1) for each in targets]), return_counts=True
    )
    return dict(zip(labels.tolist(), numbers.tolist(), strict=True))
