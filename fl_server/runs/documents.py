"""The retained documents of runs, from which a late joiner or a dashboard learns everything.

Called on the owner's thread.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import ValidationError

from broker.wire.messages import Message, RunDocument
from broker.wire.topics import Topics
from fl_server.flows.flow import Flow

# every device reads a run's document: one for each of a round's facts would cost the square of them
_DELAY_S = 0.25
_KEPT = 20
_CLEARED_AGAIN = 200
_LOG = logging.getLogger(__name__)
Stored: TypeAlias = tuple[str, Mapping[str, Any] | None]


class RunDocuments:
    """The documents at ``run/{run}/state``: of all runs that go on, and the latest that ended.

    Args:
        runs: the server's, in their order.
        filed: returns the ids and documents of the latest runs that are history, oldest first; it
            is given how many.
        publish: sends a message to a topic and has it retained.
        clear: removes the retained document of a topic.
    """

    def __init__(
        self,
        runs: Mapping[str, Flow],
        filed: Callable[[int], Sequence[Stored]],
        topics: Topics,
        epoch: int,
        publish: Callable[[str, Message], None],
        clear: Callable[[str], None],
    ) -> None:
        self._runs = runs
        self._filed = filed
        self._topics = topics
        self._epoch = epoch
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
        document = run.document(self._epoch)
        if document is not None:
            self._publish(self._topics.run(run.run_id, "state"), document)

    def publish_all(self) -> None:
        """Publish every document, after the connection was gone."""
        # a broker that was killed may bring back what was cleared
        self._clear_old(_CLEARED_AGAIN)
        for run in self._runs.values():
            if not run.ended:
                self.publish(run)
        for run_id, document in self._ended(_KEPT):
            if run_id in self._runs:
                self.publish(self._runs[run_id])
            elif document is not None:
                self.publish_stored(run_id, document)

    def publish_stored(self, run_id: str, document: Mapping[str, Any]) -> None:
        """Publish the document of a run that is history, in this server's epoch."""
        try:
            known = RunDocument.model_validate_json(json.dumps({**document, "epoch": self._epoch}))
        except ValidationError as error:
            _LOG.error("the journal holds a damaged document of run %s: %s", run_id, error)
            return
        self._publish(self._topics.run(run_id, "state"), known)

    def _ended(self, latest: int) -> list[Stored]:
        """Return the latest runs that have ended, oldest first."""
        here: list[Stored] = [(run.run_id, None) for run in self._runs.values() if run.ended]
        return [*self._filed(latest), *here][-latest:]

    def _clear_old(self, latest: int) -> None:
        """Clear the latest documents among those that are not kept."""
        for run_id, _ in self._ended(_KEPT + latest)[:-_KEPT]:
            self._clear(self._topics.run(run_id, "state"))
