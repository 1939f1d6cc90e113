"""Which devices are online, by their retained presence and their answers. Pure.

What is retained says who was there. After a gap (a restart of the server or of the broker) a device
counts as online once it has said so since: devices answer when the server says that it is online. A
device that does not answer is late, then offline. Late wills are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from algorithms.base import DeviceFacts
from broker.wire.messages import Decline, DeviceInfo, DeviceState, Message
from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft

# after the server said that it is online
LATE_S = 7.0
OFFLINE_S = 30.0
# an answer may be lost, as NATS loses what comes while it makes a session's subscriptions; then
# after twice as long, and so on
ASK_AGAIN_S = 1.0

Silence: TypeAlias = Literal["", "asked", "late", "offline"]
_ONLINE = frozenset({"ready", "training", "draining"})


@dataclass
class DevicePresence:
    """What is known of one device.

    Attributes:
        silence: how long it has not answered since it was asked; "" once it has.
    """

    id: str
    state: DeviceState
    info: DeviceInfo | None = None
    silence: Silence = ""

    @property
    def online(self) -> bool:
        """Whether it accepts orders now, or after its present one."""
        return self.says_online and not self.silence

    @property
    def says_online(self) -> bool:
        """Whether it was online when it was last heard."""
        return self.state.status in _ONLINE

    @property
    def status(self) -> str:
        """What to show: its own word, where that still counts."""
        return self.silence if self.silence in {"late", "offline"} else self.state.status


@dataclass
class PresenceTable:
    """All devices of the domain, rebuilt from retained messages after any gap.

    Times are of the monotonic clock.
    """

    devices: dict[str, DevicePresence] = field(default_factory=dict)
    _infos: dict[str, DeviceInfo] = field(default_factory=dict)
    _reports: dict[str, dict[str, Message]] = field(default_factory=dict)
    _declines: dict[str, tuple[Decline, float]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _asked: dict[str, float] = field(default_factory=dict)
    _ask_again_s: float = 0.0
    _pause_s: float = ASK_AGAIN_S

    def reconnected(self, now_s: float = 0.0, members: Iterable[str] = ()) -> None:
        """Have every device's next presence message give an event, whatever it says.

        Args:
            now_s: since when the devices are asked.
            members: who is to answer, whether or not it was heard before.
        """
        self._seen.clear()
        self._asked = dict.fromkeys(members, now_s)
        self._pause_s = ASK_AGAIN_S
        self._ask_again_s = now_s + self._pause_s
        for device in self.devices.values():
            if device.says_online and device.state.process:
                device.silence = "asked"
                self._asked[device.id] = now_s

    def forget(self, device_id: str) -> None:
        """Forget a device that may not take part any more."""
        self.devices.pop(device_id, None)
        self._infos.pop(device_id, None)
        self._reports.pop(device_id, None)
        self._declines.pop(device_id, None)
        self._asked.pop(device_id, None)
        self._seen.discard(device_id)

    def store_info(self, device_id: str, info: DeviceInfo) -> None:
        """Store what a device can do."""
        self._infos[device_id] = info
        if device_id in self.devices:
            self.devices[device_id].info = info

    def info(self, device_id: str) -> DeviceInfo | None:
        """Return what a device said that it is, None where it has not yet."""
        return self._infos.get(device_id)

    def facts_of(self, device_id: str) -> DeviceFacts:
        """Return what an algorithm may know of a device."""
        info = self._infos.get(device_id)
        if info is None:
            return DeviceFacts(device_id)
        return DeviceFacts(device_id, info.profile, info.ram_bytes)

    def store_report(self, device_id: str, report: Message) -> None:
        """Store the latest report of its kind; it is for people alone."""
        self._reports.setdefault(device_id, {})[report.kind] = report

    def reports(self, device_id: str) -> Mapping[str, Message]:
        """Return a device's latest reports by kind."""
        return self._reports.get(device_id, {})

    def store_decline(self, device_id: str, decline: Decline, at: float) -> None:
        """Store the latest order that a device declined, and when (Unix time); for people alone."""
        self._declines[device_id] = (decline, at)

    def last_decline(self, device_id: str) -> tuple[Decline, float] | None:
        """Return the latest order that a device declined, and when; None if none is known."""
        return self._declines.get(device_id)

    def apply_state(
        self, device_id: str, state: DeviceState, *, retained: bool = False, now_s: float = 0.0
    ) -> DeviceJoined | DeviceBusy | DeviceLeft | None:
        """Apply a presence message and return the event that follows from it, if any.

        None follows from a late will, which comes after the device is back with a new boot id, and
        none from what is retained: such a device is asked first. Devices of earlier releases answer
        nothing, and are believed.

        Args:
            retained: the broker had it before this connection of the server's.
            now_s: when it came.
        """
        known = self.devices.get(device_id)
        if state.status not in _ONLINE:
            if known is not None and known.says_online and known.state.boot_id != state.boot_id:
                return None
            self._store(device_id, state)
            return DeviceLeft(device_id)
        if retained and state.process:
            if known is None or not known.online:
                self._await(device_id, state, now_s)
            return None
        was_online = known is not None and known.online and known.state.boot_id == state.boot_id
        is_news = not (state.status == "training" and was_online and device_id in self._seen)
        self._store(device_id, state)
        if not is_news:
            return DeviceBusy(device_id)
        accepting = state.status != "draining"
        return DeviceJoined(device_id, state.role, accepting, state.domain)

    def online(self, task: str, *, bundled: bool = False) -> list[DevicePresence]:
        """Return the devices that are online and have the task, or take its bundle, by id."""
        return [
            device
            for _, device in sorted(self.devices.items())
            if device.online and device.state.can_run(task, bundled=bundled)
        ]

    # --- who does not answer ------------------------------------------------------------------

    def due_s(self) -> float | None:
        """Return when :meth:`silent` must be called; None while everybody has answered."""
        if not self._asked:
            return None
        return min(self._ask_again_s, min(self._asked.values()) + OFFLINE_S)

    def silent(self, now_s: float) -> tuple[list[DeviceLeft], bool]:
        """Return who is offline since it did not answer, and whether to ask the others again."""
        left = [each for each, since_s in self._asked.items() if now_s >= since_s + OFFLINE_S]
        for device_id in left:
            del self._asked[device_id]
            self._mark(device_id, "offline")
        again = now_s >= self._ask_again_s
        if again:
            self._pause_s *= 2
            self._ask_again_s = now_s + self._pause_s
        for device_id, since_s in self._asked.items():
            if now_s >= since_s + LATE_S:
                self._mark(device_id, "late")
        waiting = any(each in self.devices for each in self._asked)
        return [DeviceLeft(each) for each in left], again and waiting

    def _mark(self, device_id: str, silence: Silence) -> None:
        device = self.devices.get(device_id)
        if device is not None and device.says_online:
            device.silence = silence

    def _await(self, device_id: str, state: DeviceState, now_s: float) -> None:
        asked = DevicePresence(device_id, state, self._infos.get(device_id), "asked")
        self.devices[device_id] = asked
        self._asked.setdefault(device_id, now_s)

    def _store(self, device_id: str, state: DeviceState) -> None:
        self._seen.add(device_id)
        self._asked.pop(device_id, None)
        self.devices[device_id] = DevicePresence(device_id, state, self._infos.get(device_id))
