"""What the agent sends about its data: the reports that training processes have written.

It imports no numpy: the figures are computed in the training process.
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
    """Return the file with the report of a task's data."""
    return folder / "report.json"


class DataReports:
    """The reports of an agent's tasks. Its owner thread calls it."""

    def __init__(self, places: Sequence[DataPlace]) -> None:
        self._places = places
        self._sent: DataReport | None = None

    def latest(self) -> DataReport | None:
        """Return the report for a new connection; None if no task has data of its own.

        An empty report replaces one that was sent before reports were switched off.
        """
        if not self._places:
            return None
        reports = [
            data
            for place in self._places
            if place.settings.drift.report and (data := _read(place)) is not None
        ]
        self._sent = DataReport(tasks=reports)
        return self._sent

    def changed(self) -> DataReport | None:
        """Return the report if it differs from the one returned last."""
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
        _LOG.warning("%s cannot be used until the next training: %s", path, error)
        return None
