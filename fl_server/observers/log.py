"""The observer that writes each fact to the server's log."""

from __future__ import annotations

import logging

from fl_server.observers.base import ObservedFact

_LOG = logging.getLogger(__name__)
# one line a round, not one a device
_OF_EACH_DEVICE = frozenset({"UpdateAccepted", "SideMeasured"})


class LogObserver:
    """Writes a line a fact: at debug level those that every device of a round causes."""

    name = "log"

    def observe(self, observed: ObservedFact) -> None:
        """Write one fact."""
        event = observed.event
        level = logging.DEBUG if event.name in _OF_EACH_DEVICE else logging.INFO
        _LOG.log(level, "run %s: %s %s", event.run_id, event.name, event.detail)
