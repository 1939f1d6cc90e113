"""The retained documents of runs, from which a late joiner or a dashboard learns everything.

Called on the owner's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from broker.wire.topics import Topics
from fl_server.flows.flow import Flow

# every device reads a run's document: one for each of a round's facts would cost the square of them
_DELAY_S = 0.25
_KEPT = 20
_CLEARED_AGAIN = 200
Stored: TypeAlias = tuple[str, Mapping[str, Any] | None]


class RunDocuments:
    """The documents at ``run/{run}/state``: of all runs that go on, and the latest that ended.

    Args:
        runs: the server's, in their order.
        filed: returns the ids and documents of the latest runs that are history, oldest first; it
            is given how many.
        publish: publishes the document of a run by its id: the one that is given, of a run that is
            history, else that of its flow as it is now.
        clear: removes the retained document of a topic.
    """

    def __init__(
        self,
        runs: Mapping[str, Flow],
        filed: Callable[[int], Sequence[Stored]],
        topics: Topics,
        publish: Callable[[str, Mapping[str, Any] | None], None],
        clear: Callable[[str], None],
    ) -> None:
        self._runs = runs
        self._filed = filed
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
        self._publish(run.run_id, None)

    def publish_all(self) -> None:
        """Publish every document, after the connection was gone."""
        # a broker that was killed may bring back what was cleared
        self._clear_old(_CLEARED_AGAIN)
        for run in list(self._runs.values()):
            if not run.ended:
                self.publish(run)
        for run_id, document in self._ended(_KEPT):
            if run_id in self._runs:
                self.publish(self._runs[run_id])
            elif document is not None:
                self._publish(run_id, document)

    def _ended(self, latest: int) -> list[Stored]:
        """Return the latest runs that have ended, oldest first."""
        here: list[Stored] = [(run.run_id, None) for run in self._runs.values() if run.ended]
        return [*self._filed(latest), *here][-latest:]

    def _clear_old(self, latest: int) -> None:
        """Clear the latest documents among those that are not kept."""
        for run_id, _ in self._ended(_KEPT + latest)[:-_KEPT]:
            self._clear(self._topics.run(run_id, "state"))
