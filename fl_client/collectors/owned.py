"""The agent's own data: its collectors and its reports.

If its settings name no data, nothing else of this package is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fl_client.collectors.places import data_places

if TYPE_CHECKING:
    from broker.wire.messages import DataReport
    from fl_client.collectors.supervisor import Collectors
    from fl_client.datasets.reporting import DataReports
    from fl_client.settings import AgentSettings


class OwnData:
    """Gathers and reports an agent's data. The agent's owner thread calls it.

    Args:
        specs: the argument for ``load_task`` of each installed task.

    Raises:
        ConfigError: a section is of no task that may run here.
    """

    def __init__(self, device_id: str, settings: AgentSettings, specs: Mapping[str, str]) -> None:
        self._collectors: Collectors | None = None
        self._reports: DataReports | None = None
        if not settings.data:
            return
        from fl_client.collectors.supervisor import Collectors  # noqa: PLC0415  see above
        from fl_client.datasets.reporting import DataReports  # noqa: PLC0415

        found = data_places(settings, sorted(specs))
        self._collectors = Collectors(device_id, settings, found, specs)
        self._reports = DataReports(found)

    def start(self) -> None:
        """Start the collectors."""
        if self._collectors is not None:
            self._collectors.start()

    def stop(self) -> None:
        """Stop the collectors, after they have written their samples."""
        if self._collectors is not None:
            self._collectors.stop()

    def latest(self) -> DataReport | None:
        """Return the report for a new connection, if there is one."""
        return None if self._reports is None else self._reports.latest()

    def changed(self) -> DataReport | None:
        """Return the report if it differs from the one returned last."""
        return None if self._reports is None else self._reports.changed()
