"""The retained documents of runs, from which a late joiner or a dashboard learns everything.

Called on the owner's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from broker.wire.topics import Topics
from fl_server.flows.flow import Flow

# every device reads a run's document: one for each of a round's facts would cost the square of them
_DELAY_S = 0.25
_KEPT = 20
_CLEARED_AGAIN = 200


class RunDocuments:
    """The documents at ``run/{run}/state``: of all runs that go on, and the latest that ended.

    Args:
        runs: the server's, in their order.
        publish: publishes a run's document as it is now, if it has one.
        clear: removes the retained document of a topic.
    """

    def __init__(
        self,
        runs: Mapping[str, Flow],
        topics: Topics,
        publish: Callable[[Flow], None],
        clear: Callable[[str], None],
    ) -> None:
        self._runs = runs
        self._topics = topics
        self._publish = publish
        self._clear = clear
        self._due: dict[str, float] = {}

    def changed(self, run: Flow) -> None:
        """Publish the changed document: a little later, or at once where the run has ended."""
        if run.ended:
            self.publish(run)
            self._clear_old(1)
        else:
            self._due.setdefault(run.run_id, time.monotonic() + _DELAY_S)

    def due_s(self) -> float:
        """Return when ``publish_due`` must be called, by the monotonic clock."""
        return min(self._due.values(), default=math.inf)

    def publish_due(self) -> None:
        """Publish the documents that have waited long enough."""
        now_s = time.monotonic()
        for run_id in [each for each, due_s in self._due.items() if due_s <= now_s]:
            self.publish(self._runs[run_id])

    def publish(self, run: Flow) -> None:
        """Publish a run's document as it is now, if it has one."""
        self._due.pop(run.run_id, None)
        self._publish(run)

    def publish_all(self) -> None:
        """Publish every document, after the connection was gone."""
        # a broker that was killed may bring back what was cleared
        self._clear_old(_CLEARED_AGAIN)
        kept = self._ended()[-_KEPT:]
        for run in list(self._runs.values()):
            if not run.ended or run in kept:
                self.publish(run)

    def _ended(self) -> list[Flow]:
        return [run for run in self._runs.values() if run.ended]

    def _clear_old(self, latest: int) -> None:
        """Clear the latest documents among those that are not kept."""
        for run in self._ended()[:-_KEPT][-latest:]:
            self._clear(self._topics.run(run.run_id, "state"))
