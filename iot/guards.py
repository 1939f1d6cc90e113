"""When training must pause: limits with hysteresis, and which changes are worth a report. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.wire.messages import DeviceHealth
from iot.profile import Budget

_BATTERY_MARGIN = 10


@dataclass
class Hysteresis:
    """Closes at ``shut`` and opens again at ``open``; an unknown value changes nothing.

    ``shut`` above ``open`` guards against high values, below it against low ones.
    """

    shut: float
    open: float
    closed: bool = False

    def update(self, value: float | None) -> bool:
        """Apply a measured value and return whether the guard is closed."""
        if value is not None:
            sign = 1 if self.shut > self.open else -1
            limit = self.open if self.closed else self.shut
            over = sign * (value - limit)
            self.closed = over > 0 if self.closed else over >= 0
        return self.closed


@dataclass
class Guards:
    """What pauses training: heat and a low battery.

    Attributes:
        pause_reason: why training must pause, "" when it may go on.
    """

    budget: Budget
    heat: Hysteresis = field(init=False)
    battery: Hysteresis = field(init=False)
    pause_reason: str = ""

    def __post_init__(self) -> None:
        self.heat = Hysteresis(self.budget.pause_at_c, self.budget.resume_at_c)
        low = self.budget.battery_percent
        self.battery = Hysteresis(low - 1, min(100, low + _BATTERY_MARGIN))

    def update(self, health: DeviceHealth) -> str:
        """Apply measured values and return ``pause_reason``."""
        hot = self.heat.update(health.temperature_c)
        # on mains power the charge does not matter
        low = self.battery.update(100 if health.on_battery is False else health.battery_percent)
        if hot:
            self.pause_reason = (
                f"{_degrees(health.temperature_c)}: training rests from "
                f"{self.budget.pause_at_c:g} °C until {self.budget.resume_at_c:g} °C"
            )
        elif low:
            until = min(100, self.budget.battery_percent + _BATTERY_MARGIN)
            self.pause_reason = (
                f"the battery has {health.battery_percent} %: training rests below "
                f"{self.budget.battery_percent} % until {until} %"
            )
        else:
            self.pause_reason = ""
        return self.pause_reason


def _degrees(value: float | None) -> str:
    return "the temperature is not known" if value is None else f"the processor is at {value:g} °C"


def is_worth_reporting(before: DeviceHealth | None, now: DeviceHealth) -> bool:
    """Return whether health has changed enough since ``before`` for a message."""
    if before is None:
        return True
    for name in ("throttled", "under_voltage", "link", "metered", "on_battery", "clock_synced"):
        if getattr(before, name) != getattr(now, name):
            return True
    if bool(before.paused) != bool(now.paused):
        return True
    steps = {"temperature_c": 5.0, "disk_wear_percent": 1.0, "link_dbm": 10.0, "battery_percent": 5}
    return any(
        _changed(getattr(before, name), getattr(now, name), step) for name, step in steps.items()
    ) or any(
        _halved(getattr(before, name), getattr(now, name))
        for name in ("memory_available_bytes", "disk_free_bytes", "data_left_bytes")
    )


def _changed(before: float | None, now: float | None, step: float) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) >= step


def _halved(before: int | None, now: int | None) -> bool:
    if before is None or now is None:
        return before is not now
    return now < before / 2 or now > before * 2
