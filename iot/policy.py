"""The resource policy of a real machine: declines what does not fit, pauses and limits training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker.wire.messages import DeviceHealth, Order
from fl_client.agent.resource_policy import Need
from iot.budgets import Clocks, DataBudget
from iot.guards import Guards, is_worth_reporting
from iot.health import Sensors
from iot.limits import Limiter
from iot.profile import Budget, budget_of
from iot.settings import DeviceSettings, HealthSettings
from runtime.clock import synced_ms

_LOG = logging.getLogger(__name__)
_FASTER = 4
_RECENT_S = 1.0
# weights, gradient, momentum and update, beside a process that has loaded its engine
_COPIES = 4
_ENGINE_BYTES = 40 << 20
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def machine_policy(
    settings: DeviceSettings, device_id: str, *, root: Path = Path("/")
) -> MachinePolicy:
    """Return the policy of this machine.

    Raises:
        ConfigError: there is no such profile, or the budget contradicts it.
    """
    budget = budget_of(settings.profile, settings.budget, root)
    sensors = Sensors(settings.data_dir, root=root, metered_links=budget.metered_links)
    # other time services than systemd's tell the kernel
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
    """Implements ``fl_client.agent.resource_policy.ResourcePolicy``."""

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
        self._measured: DeviceHealth | None = None
        self._measured_s = 0.0
        self._reported: DeviceHealth | None = None
        self._reported_s = 0.0

    # --- orders ---------------------------------------------------------------------------------

    def refusal(self, order: Order, need: Need) -> str:
        """Return why this order must be declined now, "" when it fits."""
        health = self._recent_health()
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
        """Return why a production model must not be fetched now, "" when it may."""
        health = self._measure()
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
        if free is not None and wanted > free and not self._limiter.has_process:
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

    def limit_process(self, pid: int) -> None:
        """Keep a training process within its limits, from its start to its end."""
        self._limiter.limit(pid)

    def killed_for_memory(self) -> bool:
        """Return whether a process was killed for its memory since the last call."""
        return self._limiter.killed_for_memory()

    def count_bytes(self, count: int) -> None:
        """Count bytes that went over the network."""
        if self._data is not None:
            self._data.spend(count)

    # --- health ---------------------------------------------------------------------------------

    def poll(self, now_s: float) -> DeviceHealth | None:
        """Measure health if that is due, pause or resume training, and return what to publish."""
        if now_s < self._due_s:
            return None
        health = self._measure()
        soon = self._guards.pause_reason or self._limiter.has_process
        self._due_s = now_s + self._pace.look_s / (_FASTER if soon else 1)
        silence_s = now_s - self._reported_s
        paused = self._reported is not None and bool(self._reported.paused) != bool(health.paused)
        overdue = silence_s >= self._pace.report_s
        changed = silence_s >= self._pace.quiet_s and is_worth_reporting(self._reported, health)
        if not (self._reported is None or paused or overdue or changed):
            return None
        self._reported, self._reported_s = health, now_s
        return health

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``poll`` is due."""
        return max(0.0, self._due_s - now_s)

    def health(self) -> DeviceHealth | None:
        """Return what a new connection publishes."""
        self._reported = self._measured or self._measure()
        return self._reported

    def _measure(self) -> DeviceHealth:
        read = self._sensors.read()
        before, reason = self._guards.pause_reason, self._guards.update(read)
        if bool(before) != bool(reason):
            _LOG.warning("%s", reason or "training may go on")
            self._limiter.set_paused(paused=bool(reason))
        self._measured, self._measured_s = (
            read.model_copy(update={"paused": reason}),
            self._clocks.boot_s(),
        )
        return self._with_data_left(self._measured)

    def _recent_health(self) -> DeviceHealth:
        """Return health measured within the last second: a measurement reads twenty files."""
        if (
            self._measured is None
            or not 0.0 <= self._clocks.boot_s() - self._measured_s < _RECENT_S
        ):
            return self._measure()
        return self._with_data_left(self._measured)

    def _with_data_left(self, health: DeviceHealth) -> DeviceHealth:
        left = None if self._data is None else self._data.left_bytes()
        self._measured = health.model_copy(update={"data_left_bytes": left})
        return self._measured

    def status(self) -> dict[str, Any]:
        """Return budgets and health as plain data, for a person."""
        health = self._measured or self._measure()
        return {
            "health": health.model_dump(exclude={"kind"}),
            "budget": self._budget.model_dump(mode="json"),
            "limits_by": self._limiter.method,
        }

    def close(self) -> None:
        """Write what must outlive the agent."""
        self._limiter.close()
        if self._data is not None:
            self._data.close()


def is_within(window: str, minute: int) -> bool:
    """Return whether a minute of the day lies in a window, which may span midnight.

    >>> is_within("22:00-06:00", 23 * 60), is_within("22:00-06:00", 12 * 60)
    (True, False)
    """
    start, end = (int(part[:2]) * 60 + int(part[3:]) for part in window.split("-"))
    if start <= end:
        return start <= minute < end
    return minute >= start or minute < end


def used_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
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
