"""A device's own data as a task reads them: bounded, and always split the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets import csv_files, figures, folder, parquet_files, sqlite_table
from fl_client.datasets.sample import NoData, Sample
from fl_client.datasets.settings import (
    CsvSource,
    DataPlace,
    FolderSource,
    MqttSource,
    ParquetSource,
    SensorSource,
    SqliteSource,
)
from fl_client.datasets.splits.held_out import is_held_out
from fl_client.datasets.store import store_path, stored_refusals, stored_samples

Arrays: TypeAlias = tuple[NDArray[Any], NDArray[Any]]


class Dataset:
    """Reads a device's data; every call reads the current state of the source.

    Attributes:
        refused: how many records could not be used at the last reading, by reason.
    """

    def __init__(self, place: DataPlace) -> None:
        self._place = place
        self._settings = place.settings
        self.refused: Counter[str] = Counter()

    def samples(self) -> list[Sample]:
        """Return the newest examples within the bounds, the oldest of them first.

        Raises:
            NoData, Unavailable: the source cannot be read now.
            ConfigError: the source does not fit the settings.
        """
        self.refused.clear()
        bounds = self._settings.store
        left = int(bounds.max_mib * (1 << 20))
        found: list[Sample] = []
        shape: tuple[int, ...] | None = None
        for sample in self._newest_first():
            left -= sample.size_bytes
            if left < 0 or len(found) == bounds.max_examples:
                break
            own = np.shape(sample.features)
            shape = own if shape is None else shape
            if own == shape:
                found.append(sample)
            else:
                self.refused["shape"] += 1
        found.reverse()
        return found

    def splits(self) -> tuple[Arrays | None, Arrays | None]:
        """Return inputs and targets to train on, and those that are held out.

        Inputs are float32, targets the classes' numbers (int64), or float32 without classes. None
        stands for no examples. The report of the data is updated if it is due.

        Raises:
            NoData: there are no examples yet; else as ``samples``.
        """
        samples = self.samples()
        if not samples:
            raise NoData(
                f"task {self._place.task} has no data on this device yet "
                f"({self._settings.source.kind}; {self._refusals()})"
            )
        task, share = self._place.task, self._settings.held_out
        sides = [is_held_out(task, sample, share) for sample in samples]
        kept = [sample for sample, held in zip(samples, sides, strict=True) if not held]
        held_out = [sample for sample, held in zip(samples, sides, strict=True) if held]
        figures.update(self._place, samples, len(held_out), sum(self.refused.values()))
        return self._arrays(kept), self._arrays(held_out)

    def _refusals(self) -> str:
        """Return how many records were refused, and for which reasons."""
        count = sum(self.refused.values())
        reasons = ", ".join(f"{each} {reason}" for reason, each in self.refused.most_common())
        return f"{count} records refused" + (f": {reasons}" if count else "")

    def _arrays(self, samples: list[Sample]) -> Arrays | None:
        if not samples:
            return None
        inputs = np.stack([np.asarray(sample.features, np.float32) for sample in samples])
        labels = np.array([sample.label for sample in samples])
        return inputs, labels.astype(np.int64 if self._settings.classes else np.float32)

    def _newest_first(self) -> Iterator[Sample]:
        settings = self._settings
        match settings.source:
            case FolderSource() as source:
                return folder.newest_first(source, settings, self.refused)
            case CsvSource() as source:
                return csv_files.newest_first(source, settings, self.refused)
            case ParquetSource() as source:
                return parquet_files.newest_first(source, settings, self.refused)
            case SqliteSource() as source:
                return sqlite_table.newest_first(source, settings, self.refused)
            case SensorSource() | MqttSource():
                path = store_path(self._place.folder)
                self.refused["collector"] = stored_refusals(path)
                return stored_samples(path, settings.store.max_examples)
