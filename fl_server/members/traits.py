"""What is known of each device when runs choose among them."""

from __future__ import annotations

from fl_server.members.labels import LabelRegistry
from fl_server.members.membership import Membership
from fl_server.members.presence import PresenceTable
from fl_server.selection.traits import DeviceTraits


class TraitsTable:
    """Puts together what devices say of themselves and what operators say of them."""

    def __init__(self, presence: PresenceTable, members: Membership, labels: LabelRegistry) -> None:
        self._presence, self._members, self._labels = presence, members, labels

    def of(self, device_id: str) -> DeviceTraits:
        """Return what is known of a device."""
        member = self._members.devices.get(device_id)
        return DeviceTraits(
            device_id,
            self._presence.info(device_id),
            "" if member is None else member.group,
            self._labels.of(device_id),
        )
