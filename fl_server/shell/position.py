"""Tells the domains below where they stand: what is above them, up to the root.

Called on the owner's thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.wire.messages import TREE_VERSION, Ancestor, DeviceState, TreePosition
from fl_server.shell.connection import ServerConnection


class TreePositions:
    """Each domain is told once a connection of its, and again when something above has changed.

    Args:
        own: this server as its domains see it.
    """

    def __init__(self, connection: ServerConnection, own: Ancestor) -> None:
        self._connection = connection
        self._own = own
        self._above: tuple[Ancestor, ...] = ()
        self._names = True
        self._told: dict[str, str] = {}

    def stand_below(self, above: Sequence[Ancestor], *, names: bool) -> None:
        """Note what is above this server, and tell the domains.

        Args:
            above: from this server's parent up to the root.
            names: whether domains below may tell what their devices are called.
        """
        if (tuple(above), names) == (self._above, self._names):
            return
        self._above, self._names = tuple(above), names
        domains, self._told = list(self._told), {}
        for device_id in domains:
            self._tell(device_id)

    def note(self, device_id: str, state: DeviceState) -> None:
        """Tell a domain that said that it is there where it stands."""
        if not state.domain or state.status in {"lost", "offline"}:
            return
        if self._told.get(device_id) != state.boot_id:
            self._told[device_id] = state.boot_id
            self._tell(device_id)

    def _tell(self, device_id: str) -> None:
        message = TreePosition(
            version=TREE_VERSION, ancestors=[self._own, *self._above], names=self._names
        )
        self._connection.publish(self._connection.topics.device(device_id, "task"), message)
