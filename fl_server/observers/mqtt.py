"""The observer that publishes each fact at ``run/{run}/events``."""

from __future__ import annotations

from collections.abc import Callable

from broker.wire.messages import Message
from broker.wire.topics import Topics
from fl_server.observers.base import ObservedFact


class MqttObserver:
    """Publishes the live stream for dashboards and commands that follow a run.

    Args:
        publish: sends a message to a topic; any thread may call it.
    """

    name = "mqtt"

    def __init__(self, topics: Topics, publish: Callable[[str, Message], None]) -> None:
        self._topics = topics
        self._publish = publish

    def observe(self, observed: ObservedFact) -> None:
        """Publish one fact."""
        event = observed.event
        self._publish(self._topics.run(event.run_id, "events"), event)
