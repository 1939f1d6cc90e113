"""Which devices are there for a run. Never journalled: after a restart devices say it again."""

from __future__ import annotations

from fl_server.flows.events import DeviceJoined, Role


class Roster:
    """The devices that said that they are online, and those that said or showed that they left.

    Attributes:
        left: who left and has not come back.
    """

    def __init__(self) -> None:
        self.left: set[str] = set()
        self._online: dict[str, Role] = {}
        self._draining: set[str] = set()

    def joined(self, event: DeviceJoined) -> None:
        """Add a device, or what it says anew."""
        self._online[event.device_id] = event.role
        self.left.discard(event.device_id)
        if event.accepting:
            self._draining.discard(event.device_id)
        else:
            self._draining.add(event.device_id)

    def went(self, device_id: str) -> None:
        """Remove a device."""
        self._online.pop(device_id, None)
        self._draining.discard(device_id)
        self.left.add(device_id)

    def accepting(self, role: Role) -> list[str]:
        """Return the online devices of a role that take orders, sorted."""
        return sorted(
            device_id
            for device_id, its_role in self._online.items()
            if its_role == role and device_id not in self._draining
        )
