"""Who is there: the devices' retained presence, with wills of older connections left out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.wire.messages import DeviceInfo, DeviceState, Message
from fl_server.flows.events import DeviceJoined, DeviceLeft


@dataclass
class DevicePresence:
    """What is known of one device."""

    id: str
    state: DeviceState
    info: DeviceInfo | None = None

    @property
    def online(self) -> bool:
        """Whether it can take orders now or after its present one."""
        return self.state.status in {"ready", "training", "draining"}


@dataclass
class PresenceTable:
    """All devices of the domain, rebuilt from retained messages after any gap."""

    devices: dict[str, DevicePresence] = field(default_factory=dict)
    _infos: dict[str, DeviceInfo] = field(default_factory=dict)
    _reports: dict[str, dict[str, Message]] = field(default_factory=dict)
    _heard: set[str] = field(default_factory=set)

    def reconnected(self) -> None:
        """Take every device's next message as news, whatever it says."""
        self._heard.clear()

    def forget(self, device_id: str) -> None:
        """Drop a device that may not take part any more."""
        self.devices.pop(device_id, None)
        self._infos.pop(device_id, None)
        self._reports.pop(device_id, None)
        self._heard.discard(device_id)

    def store_info(self, device_id: str, info: DeviceInfo) -> None:
        """Keep what a device says of itself."""
        self._infos[device_id] = info
        if device_id in self.devices:
            self.devices[device_id].info = info

    def store_report(self, device_id: str, report: Message) -> None:
        """Keep the latest report of its kind; it is for people alone."""
        self._reports.setdefault(device_id, {})[report.kind] = report

    def reports(self, device_id: str) -> Mapping[str, Message]:
        """Return a device's latest reports by kind."""
        return self._reports.get(device_id, {})

    def apply_state(self, device_id: str, state: DeviceState) -> DeviceJoined | DeviceLeft | None:
        """Take a presence message and return the event that it means, if any.

        A will that comes late, after the device is back with a new boot id, means nothing.
        A device that is training, and was there before, means nothing new either.
        """
        known = self.devices.get(device_id)
        if state.status in {"lost", "offline"}:
            if known is not None and known.online and known.state.boot_id != state.boot_id:
                return None
            self._keep(device_id, state)
            return DeviceLeft(device_id)
        was_there = known is not None and known.online and known.state.boot_id == state.boot_id
        news = not (state.status == "training" and was_there and device_id in self._heard)
        self._keep(device_id, state)
        if not news:
            return None
        return DeviceJoined(device_id, state.role, accepting=state.status != "draining")

    def online(self, task: str, *, bundled: bool = False) -> list[DevicePresence]:
        """Return the devices that are there and have the task, or take its bundle, by id."""
        return [
            device
            for _, device in sorted(self.devices.items())
            if device.online and device.state.can_run(task, bundled=bundled)
        ]

    def _keep(self, device_id: str, state: DeviceState) -> None:
        self._heard.add(device_id)
        self.devices[device_id] = DevicePresence(device_id, state, self._infos.get(device_id))
