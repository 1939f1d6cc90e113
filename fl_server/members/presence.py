"""Which devices are online, by their retained presence; late wills are left out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.wire.messages import DeviceInfo, DeviceState, Message
from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft


@dataclass
class DevicePresence:
    """What is known of one device."""

    id: str
    state: DeviceState
    info: DeviceInfo | None = None

    @property
    def online(self) -> bool:
        """Whether it accepts orders now, or after its present one."""
        return self.state.status in {"ready", "training", "draining"}


@dataclass
class PresenceTable:
    """All devices of the domain, rebuilt from retained messages after any gap."""

    devices: dict[str, DevicePresence] = field(default_factory=dict)
    _infos: dict[str, DeviceInfo] = field(default_factory=dict)
    _reports: dict[str, dict[str, Message]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def reconnected(self) -> None:
        """Have every device's next presence message give an event, whatever it says."""
        self._seen.clear()

    def forget(self, device_id: str) -> None:
        """Forget a device that may not take part any more."""
        self.devices.pop(device_id, None)
        self._infos.pop(device_id, None)
        self._reports.pop(device_id, None)
        self._seen.discard(device_id)

    def store_info(self, device_id: str, info: DeviceInfo) -> None:
        """Store what a device can do."""
        self._infos[device_id] = info
        if device_id in self.devices:
            self.devices[device_id].info = info

    def store_report(self, device_id: str, report: Message) -> None:
        """Store the latest report of its kind; it is for people alone."""
        self._reports.setdefault(device_id, {})[report.kind] = report

    def reports(self, device_id: str) -> Mapping[str, Message]:
        """Return a device's latest reports by kind."""
        return self._reports.get(device_id, {})

    def apply_state(
        self, device_id: str, state: DeviceState
    ) -> DeviceJoined | DeviceBusy | DeviceLeft | None:
        """Apply a presence message and return the event that follows from it, if any.

        None follows from a late will, which comes after the device is back with a new boot id.
        """
        known = self.devices.get(device_id)
        if state.status in {"lost", "offline"}:
            if known is not None and known.online and known.state.boot_id != state.boot_id:
                return None
            self._store(device_id, state)
            return DeviceLeft(device_id)
        was_online = known is not None and known.online and known.state.boot_id == state.boot_id
        is_news = not (state.status == "training" and was_online and device_id in self._seen)
        self._store(device_id, state)
        if not is_news:
            return DeviceBusy(device_id)
        return DeviceJoined(device_id, state.role, accepting=state.status != "draining")

    def online(self, task: str, *, bundled: bool = False) -> list[DevicePresence]:
        """Return the devices that are online and have the task, or take its bundle, by id."""
        return [
            device
            for _, device in sorted(self.devices.items())
            if device.online and device.state.can_run(task, bundled=bundled)
        ]

    def _store(self, device_id: str, state: DeviceState) -> None:
        self._seen.add(device_id)
        self.devices[device_id] = DevicePresence(device_id, state, self._infos.get(device_id))
