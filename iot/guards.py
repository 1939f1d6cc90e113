"""Guards that do not flutter: what stops at one figure goes on only at another. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.wire.messages import DeviceHealth
from iot.profile import Budget

_BATTERY_MARGIN = 10


@dataclass
class Hysteresis:
    """Closes at ``shut`` and opens again at ``open``; an unknown figure leaves it as it is.

    ``shut`` above ``open`` guards against high figures, below it against low ones.
    """

    shut: float
    open: float
    closed: bool = False

    def see(self, value: float | None) -> bool:
        """Take a figure and return whether the guard is closed."""
        if value is not None:
            sign = 1 if self.shut > self.open else -1
            limit = self.open if self.closed else self.shut
            over = sign * (value - limit)
            self.closed = over > 0 if self.closed else over >= 0
        return self.closed


@dataclass
class Guards:
    """All that makes training rest, and what forbids a new order."""

    budget: Budget
    heat: Hysteresis = field(init=False)
    battery: Hysteresis = field(init=False)
    resting: str = ""

    def __post_init__(self) -> None:
        self.heat = Hysteresis(self.budget.pause_at_c, self.budget.resume_at_c)
        low = self.budget.battery_percent
        self.battery = Hysteresis(low - 1, min(100, low + _BATTERY_MARGIN))

    def see(self, health: DeviceHealth) -> str:
        """Return why training must rest now, "" when it may go on."""
        hot = self.heat.see(health.temperature_c)
        # at the charger nothing is low
        low = self.battery.see(100 if health.on_battery is False else health.battery_percent)
        if hot:
            self.resting = (
                f"{_degrees(health.temperature_c)}: training rests from "
                f"{self.budget.pause_at_c:g} °C until {self.budget.resume_at_c:g} °C"
            )
        elif low:
            until = min(100, self.budget.battery_percent + _BATTERY_MARGIN)
            self.resting = (
                f"the battery has {health.battery_percent} %: training rests below "
                f"{self.budget.battery_percent} % until {until} %"
            )
        else:
            self.resting = ""
        return self.resting

    @property
    def near(self) -> bool:
        """Whether the next look should come soon: something rests."""
        return bool(self.resting)


def _degrees(value: float | None) -> str:
    return "the temperature is not known" if value is None else f"the processor is at {value:g} °C"


def is_news(before: DeviceHealth | None, now: DeviceHealth) -> bool:
    """Whether a report says something that is worth a message; small changes are not."""
    if before is None:
        return True
    for name in ("throttled", "under_voltage", "link", "metered", "on_battery", "clock_synced"):
        if getattr(before, name) != getattr(now, name):
            return True
    if bool(before.paused) != bool(now.paused):
        return True
    steps = {"temperature_c": 5.0, "disk_wear_percent": 1.0, "link_dbm": 10.0, "battery_percent": 5}
    return any(
        _moved(getattr(before, name), getattr(now, name), step) for name, step in steps.items()
    ) or any(
        _halved(getattr(before, name), getattr(now, name))
        for name in ("memory_available_bytes", "disk_free_bytes", "data_left_bytes")
    )


def _moved(before: float | None, now: float | None, step: float) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) >= step


def _halved(before: int | None, now: int | None) -> bool:
    if before is None or now is None:
        return before is not now
    return now < before / 2 or now > before * 2
