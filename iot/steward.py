"""The steward of a real machine: asks the sensors, keeps the budgets, and says no in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker.wire.messages import DeviceHealth, Order
from fl_client.agent.resource_policy import Need
from iot.budgets import Clocks, DataBudget
from iot.guards import Guards, is_news
from iot.health import Sensors
from iot.limits import Limiter
from iot.profile import Budget, budget_of
from iot.settings import DeviceSettings, HealthSettings
from runtime.clock import synced_ms

_LOG = logging.getLogger(__name__)
_FASTER = 4
_LATELY_S = 1.0
# weights, gradient, momentum and update beside a process that has loaded its engine
_COPIES = 4
_ENGINE_BYTES = 40 << 20
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def steward_of(
    settings: DeviceSettings, device_id: str, *, root: Path = Path("/")
) -> MachinePolicy:
    """Return the steward of this machine.

    Raises:
        ConfigError: there is no such profile, or the budget contradicts it.
    """
    budget = budget_of(settings.profile, settings.budget, root)
    sensors = Sensors(settings.data_dir, root=root, metered_links=budget.metered_links)
    # beside systemd's service, whoever else keeps the clock tells the kernel
    clocks = Clocks(synced=lambda: sensors.clock_synced() is True or synced_ms() is not None)
    return MachinePolicy(
        budget,
        settings.health,
        settings.data_dir,
        sensors,
        Limiter(budget, device_id, root=root),
        clocks,
    )


class MachinePolicy:
    """See ``fl_client.agent.resource_policy.ResourcePolicy``, whose shape this has."""

    def __init__(
        self,
        budget: Budget,
        health: HealthSettings,
        folder: Path,
        sensors: Sensors,
        limiter: Limiter,
        clocks: Clocks,
    ) -> None:
        self._budget = budget
        self._pace = health
        self._folder = folder
        self._sensors = sensors
        self._limiter = limiter
        self._clocks = clocks
        self._guards = Guards(budget)
        self._data = (
            None
            if budget.data_per_day is None
            else DataBudget(folder / "data.json", budget.data_per_day, clocks)
        )
        self._due_s = 0.0
        self._seen: DeviceHealth | None = None
        self._seen_s = 0.0
        self._said: DeviceHealth | None = None
        self._said_s = 0.0

    # --- orders ---------------------------------------------------------------------------------

    def refusal(self, order: Order, need: Need) -> str:
        """Return why this order must be declined now, "" when it fits."""
        health = self._seen_lately()
        reasons: tuple[Callable[[], str], ...] = (
            lambda: health.paused,
            lambda: _power(health),
            lambda: self._hours(health),
            lambda: self._link(health),
            lambda: self._traffic(health, need),
            lambda: self._memory(health, 0 if order.model is None else order.model.size_bytes),
            lambda: self._disk(health, need.disk_bytes),
        )
        return next((text for reason in reasons if (text := reason())), "")

    def memory_bytes(self) -> int:
        """Return what a training process may hold, 0 where nothing limits it."""
        return int(self._budget.memory or 0)

    def download_refusal(self, size_bytes: int) -> str:
        """Return why a model for use must not be fetched now, "" when it may."""
        health = self._look_now()
        need = Need(download_bytes=size_bytes)
        return self._link(health) or self._traffic(health, need) or self._disk(health, size_bytes)

    def _hours(self, health: DeviceHealth) -> str:
        if not self._budget.hours:
            return ""
        at = ", ".join(self._budget.hours)
        if health.clock_synced is False:
            return f"this device works at {at} only, and its clock is not set yet"
        now = time.localtime(self._clocks.wall_s())
        if any(is_within(window, now.tm_hour * 60 + now.tm_min) for window in self._budget.hours):
            return ""
        return f"this device works at {at} only (here it is {now.tm_hour:02}:{now.tm_min:02})"

    def _link(self, health: DeviceHealth) -> str:
        if health.metered and self._budget.metered == "decline":
            return f"the link {health.link} is metered, and this device takes no orders over one"
        return ""

    def _traffic(self, health: DeviceHealth, need: Need) -> str:
        if health.data_left_bytes is None:
            return ""
        left = health.data_left_bytes - need.promised_bytes
        wanted = need.download_bytes + need.upload_bytes
        if wanted <= left:
            return ""
        return (
            f"{_mib(wanted)} would go over the network, {_mib(max(0, left))} of today's "
            f"{_mib(self._budget.data_per_day or 0)} are left"
        )

    def _memory(self, health: DeviceHealth, model_bytes: int) -> str:
        wanted = _COPIES * model_bytes + _ENGINE_BYTES
        limit = self._budget.memory
        if limit is not None and wanted > limit:
            return f"training takes {_mib(wanted)} of memory at least, the budget is {_mib(limit)}"
        free = health.memory_available_bytes
        if free is not None and wanted > free and not self._limiter.holds:
            return f"training takes {_mib(wanted)} of memory at least, {_mib(free)} are free"
        return ""

    def _disk(self, health: DeviceHealth, wanted: int) -> str:
        free = health.disk_free_bytes
        if free is not None and free - wanted < self._budget.disk_free:
            return (
                f"{_mib(wanted)} of disk are needed, {_mib(free)} are free and "
                f"{_mib(self._budget.disk_free)} must stay so"
            )
        limit = self._budget.disk
        if limit is not None and (used := used_bytes(self._folder)) + wanted > limit:
            return (
                f"{_mib(wanted)} of disk are needed, the agent uses {_mib(used)} of its "
                f"{_mib(limit)}"
            )
        return ""

    # --- the training process -------------------------------------------------------------------

    def environment(self) -> Mapping[str, str]:
        """Return what a training process is started with, over the agent's own environment."""
        return dict.fromkeys(_THREADS, str(self._budget.threads))

    def adopt(self, pid: int) -> None:
        """Keep a training process within its limits, from its start to its end."""
        self._limiter.adopt(pid)

    def ran_short(self) -> bool:
        """Return whether the adopted process was ended because of its memory, asked once."""
        return self._limiter.ran_short()

    def spent(self, count: int) -> None:
        """Take that so many bytes went over the network."""
        if self._data is not None:
            self._data.spend(count)

    # --- health ---------------------------------------------------------------------------------

    def look(self, now_s: float) -> DeviceHealth | None:
        """Look at the machine where that is due; return what is worth a message."""
        if now_s < self._due_s:
            return None
        health = self._look_now()
        hurry = self._guards.near or self._limiter.holds
        self._due_s = now_s + self._pace.look_s / (_FASTER if hurry else 1)
        silent_s = now_s - self._said_s
        paused = self._said is not None and bool(self._said.paused) != bool(health.paused)
        overdue = silent_s >= self._pace.report_s
        news = silent_s >= self._pace.quiet_s and is_news(self._said, health)
        if not (self._said is None or paused or overdue or news):
            return None
        self._said, self._said_s = health, now_s
        return health

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``look`` is due."""
        return max(0.0, self._due_s - now_s)

    def health(self) -> DeviceHealth | None:
        """Return what a new connection publishes."""
        self._said = self._seen or self._look_now()
        return self._said

    def _look_now(self) -> DeviceHealth:
        seen = self._sensors.read()
        before, resting = self._guards.resting, self._guards.see(seen)
        if bool(before) != bool(resting):
            _LOG.warning("%s", resting or "training may go on")
            self._limiter.rest(resting=bool(resting))
        self._seen, self._seen_s = (
            seen.model_copy(update={"paused": resting}),
            self._clocks.boot_s(),
        )
        return self._with_data_left(self._seen)

    def _seen_lately(self) -> DeviceHealth:
        """Return what was seen a moment ago: each look reads twenty files, and an order waits."""
        if self._seen is None or not 0.0 <= self._clocks.boot_s() - self._seen_s < _LATELY_S:
            return self._look_now()
        return self._with_data_left(self._seen)

    def _with_data_left(self, seen: DeviceHealth) -> DeviceHealth:
        left = None if self._data is None else self._data.left()
        self._seen = seen.model_copy(update={"data_left_bytes": left})
        return self._seen

    def status(self) -> dict[str, Any]:
        """Return budgets and health as plain data, for a person."""
        seen = self._seen or self._look_now()
        return {
            "health": seen.model_dump(exclude={"kind"}),
            "budget": self._budget.model_dump(mode="json"),
            "limits_by": self._limiter.how,
        }

    def close(self) -> None:
        """Write down what must outlive the agent."""
        self._limiter.close()
        if self._data is not None:
            self._data.close()


def is_within(window: str, minute: int) -> bool:
    """Whether a minute of the day lies in a window, which may go over midnight.

    >>> is_within("22:00-06:00", 23 * 60), is_within("22:00-06:00", 12 * 60)
    (True, False)
    """
    start, end = (int(part[:2]) * 60 + int(part[3:]) for part in window.split("-"))
    if start <= end:
        return start <= minute < end
    return minute >= start or minute < end


def used_bytes(folder: Path) -> int:
    """Return what the files of a folder take."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _power(health: DeviceHealth) -> str:
    if health.under_voltage:
        return "the power supply is too weak: the firmware says under-voltage"
    if health.throttled and "throttled" in health.throttled:
        return "the firmware holds the processor back (throttled)"
    return ""


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
