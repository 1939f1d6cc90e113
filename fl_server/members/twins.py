"""Finds two processes that use one device's identity at the same time. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from broker.wire.messages import DeviceState

_REMEMBERED = 16


def _latest() -> deque[tuple[str, str]]:
    return deque(maxlen=_REMEMBERED)


@dataclass
class ProcessHistory:
    """The connections of one device, as its presence told them.

    A broker gives a client id to whoever came last. So two machines with one identity, as those of
    a copied card, throw each other out for ever. Each process has a random id: one that makes a new
    connection after another process did lives beside that one. A device that starts again has a
    new id, and a broker that restarts changes none, so neither looks like this.
    """

    _connections: deque[tuple[str, str]] = field(default_factory=_latest)

    def shows_two(self, state: DeviceState) -> bool:
        """Note a presence message of a connected device; return whether it shows two processes."""
        connection = (state.process, state.boot_id)
        if not state.process or connection in self._connections:
            return False  # the same connection, or a message of it that came again
        earlier = [process for process, _ in self._connections]
        self._connections.append(connection)
        return state.process in earlier and earlier[-1] != state.process
