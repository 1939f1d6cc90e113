"""What the agent sends of its data: the reports that training left, read when they may be new.

Light: the figures were worked out where the data were read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from broker.wire.messages import DataReport, TaskData
from fl_client.datasets.settings import DataPlace

_LOG = logging.getLogger(__name__)


def report_path(folder: Path) -> Path:
    """Return the file of what may be sent of a task's data."""
    return folder / "report.json"


class DataReports:
    """The reports of an agent's tasks. Its owner thread calls it."""

    def __init__(self, places: Sequence[DataPlace]) -> None:
        self._places = places
        self._sent: DataReport | None = None

    def latest(self) -> DataReport | None:
        """Return what a new connection publishes; None where no task has data of its own.

        An empty report takes the place of one that was sent before a person forbade it.
        """
        if not self._places:
            return None
        told = [
            data
            for place in self._places
            if place.settings.drift.report and (data := _read(place)) is not None
        ]
        self._sent = DataReport(tasks=told)
        return self._sent

    def news(self) -> DataReport | None:
        """Return the reports if they differ from those returned last."""
        before = self._sent
        latest = self.latest()
        return None if latest == before else latest


def _read(place: DataPlace) -> TaskData | None:
    path = report_path(place.folder)
    try:
        return TaskData.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _LOG.warning("%s is of no use until the next training: %s", path, error)
        return None
