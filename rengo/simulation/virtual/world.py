"""A virtual fleet in motion: which device is there, works, and answers when. Sans-IO, no real time.

The caller hands over orders and timers, and takes one event after another with ``next``: those that
the server's shell would give the run's flow, and ``WorkDone`` where a device's result has arrived.
A device does one order at a time, as the agent does: one to train ends when its round closes or a
newer one comes, and evaluations wait for their turn. A device that goes offline gives up what it
does, and begins anew when the order is sent again.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import (
    DeviceBusy,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    TimerFired,
)
from fl_server.rounds.events import DevicesJoined, Event
from rengo.simulation.virtual.availability import Availability
from rengo.simulation.virtual.clock import VirtualClock
from rengo.simulation.virtual.draws import lognormal, uniform
from rengo.simulation.virtual.fleet import VirtualFleet
from rengo.simulation.virtual.orders import End, OrderEnded, TimedOrder, VirtualJob, WorkDone
from rengo.simulation.virtual.state import VirtualDevice
from rengo.simulation.virtual.work import Cost, duration, empty_after, part_at, phases, spent

WAITING_EVALUATIONS = 2
STANDSTILL_S = 30 * 86_400.0
"""When nothing happens for so long, nothing is expected any more."""

WorldEvent: TypeAlias = Event | WorkDone
_NOTHING = Cost()
_WHY: dict[End, str] = {
    "left": "it went offline",
    "empty": "its battery was empty",
    "late": "the round closed without it",
    "replaced": "a newer order came",
}


@dataclass(frozen=True)
class _Turned:
    """A device's period is over."""

    index: int


@dataclass(frozen=True)
class _Arrived:
    """An order reaches its device."""

    index: int
    order: TimedOrder


@dataclass(frozen=True)
class _Over:
    """A device's work is done, or its battery is empty."""

    index: int
    serial: int
    end: End


@dataclass(frozen=True)
class _Due:
    """A timer's time is over, unless it was armed again since."""

    timer: TimerFired
    serial: int


class VirtualWorld:
    """The devices of a run's clients on the virtual clock. One owner calls it.

    Attributes:
        ended: the orders that ended since the caller last took them.
    """

    def __init__(
        self,
        fleet: VirtualFleet,
        availability: Availability,
        ids: Sequence[str],
        standstill_s: float = STANDSTILL_S,
    ) -> None:
        self.ended: list[OrderEnded] = []
        self._fleet, self._availability, self._ids = fleet, availability, ids
        self._places = {device_id: index for index, device_id in enumerate(ids)}
        self._clock: VirtualClock[_Turned | _Arrived | _Over | _Due] = VirtualClock()
        self._devices: dict[int, VirtualDevice] = {}
        self._working: dict[int, None] = {}
        self._timers: dict[TimerFired, int] = {}
        self._closed = (0, 0)
        self._serial = 0
        self._standstill_s, self._happened_s = standstill_s, 0.0
        self._events: deque[WorldEvent] = deque()

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self._clock.now_s

    def description(self) -> dict[str, Any]:
        """Return all that the fleet's history depends on, as plain data."""
        return {**self._fleet.description(), "availability": self._availability.digest}

    # --- what the server does -----------------------------------------------------------------

    def begin(self) -> None:
        """Let those join who are online at time 0, and plan when devices leave and come."""
        online = []
        for index, device_id in enumerate(self._ids):
            first = self._availability.period(index, 0, 0.0)
            if first.online:
                online.append(device_id)
            if not first.online or math.isfinite(first.until_s):
                # the others need no memory before their first order
                self._state(index)
                self._plan_turn(index, first.until_s)
        if online:
            self._events.append(DevicesJoined(tuple(online)))

    def add(self, event: Event) -> None:
        """Let something happen on the server now: it takes no time there."""
        self._events.append(event)

    def send(self, order: TimedOrder) -> None:
        """Send an order to its device."""
        index = self._places[order.device_id]
        latency_s = self._fleet.kind(index).model.latency_s
        self._clock.at(self.now_s + latency_s, _Arrived(index, order))

    def arm(self, timer: ArmTimer) -> None:
        """Bring the timer's event after its time, in place of what it was armed to before."""
        fires = TimerFired(timer.timer, timer.round, timer.attempt)
        self._timers[fires] = self._next_serial()
        self._clock.at(self.now_s + timer.seconds, _Due(fires, self._timers[fires]))

    def close(self, round_number: int, attempt: int) -> None:
        """Tell the devices that a round takes no more updates: who still trains for it stops."""
        self._closed = max(self._closed, (round_number, attempt))
        for index in list(self._working):
            job = self._devices[index].job
            if job is not None and self._is_over(job.order):
                self._end_job(index, "late")
                self._ready(index)

    def finish(self) -> None:
        """End all orders: the run is over."""
        for index in list(self._working):
            self._end_job(index, "late")
        for device in self._devices.values():
            while device.waiting:
                self._note(device.waiting.popleft(), "late", "the run ended before it began")
        for due in self._clock.planned():
            if isinstance(due, _Arrived):
                self._note(due.order, "late", "the run ended before the order came")

    def next(self) -> WorldEvent | None:
        """Go on to the next event and return it; None where none is to be expected."""
        while not self._events:
            due = self._clock.advance()
            if self.now_s > self._happened_s + self._standstill_s:
                return None
            match due:
                case None:
                    return None
                case _Turned():
                    self._turn(due.index)
                case _Arrived():
                    self._receive(due.index, due.order)
                case _Over():
                    self._over(due)
                case _Due() if self._timers.get(due.timer) == due.serial:
                    del self._timers[due.timer]
                    self._events.append(due.timer)
        self._happened_s = self.now_s
        return self._events.popleft()

    def next_answers(self, count: int) -> list[TimedOrder]:
        """Return the orders to train whose answers come next, if nothing comes between."""
        jobs = [self._devices[index].job for index in self._working]
        coming = [job for job in jobs if job is not None and job.order.action == "train"]
        return [job.order for job in heapq.nsmallest(count, coming, key=_answered_at)]

    # --- presence -----------------------------------------------------------------------------

    def _turn(self, index: int) -> None:
        device = self._state(index)
        was_there = device.is_there
        device.period += 1
        period = self._availability.period(index, device.period, self.now_s)
        if not period.online and device.job is not None:
            self._end_job(index, "left")
        if device.job is None:
            device.settle(self.now_s, device.recharge_w)
        device.online, device.charging = period.online, period.charging
        device.empty = device.empty and device.is_low
        if not device.is_gone:
            self._plan_turn(index, period.until_s)
        if was_there and not device.is_there:
            self._leave(index, "left")
        elif device.is_there and not was_there:
            self._events.append(DeviceJoined(self._ids[index]))

    def _leave(self, index: int, end: End) -> None:
        waiting = self._devices[index].waiting
        while waiting:
            self._note(waiting.popleft(), end, f"{_WHY[end]} before it began")
        self._events.append(DeviceLeft(self._ids[index]))

    def _ready(self, index: int) -> None:
        """Say that the device has nothing to do, or go on with what waits."""
        waiting = self._devices[index].waiting
        while waiting:
            if self._begin_job(index, waiting.popleft()):
                return
        self._events.append(DeviceJoined(self._ids[index]))

    def _plan_turn(self, index: int, until_s: float) -> None:
        if math.isfinite(until_s):
            self._clock.at(until_s, _Turned(index))

    # --- orders -------------------------------------------------------------------------------

    def _receive(self, index: int, order: TimedOrder) -> None:
        device = self._state(index)
        held = [device.job.order, *device.waiting] if device.job else []
        if not device.is_there:
            self._note(order, "lost", "it was offline when the order came")
        elif self._is_over(order):
            self._note(order, "late", "the round closed before the order came")
        elif any(other.key == order.key for other in held):
            self._note(order, "repeated", "it had the order already")
        elif device.job is None:
            self._begin_job(index, order)
        elif order.action == "evaluate":
            self._wait(device, order)
        elif device.job.order.action == "evaluate":
            device.waiting.appendleft(order)
        else:
            self._end_job(index, "replaced")
            self._begin_job(index, order)

    def _wait(self, device: VirtualDevice, order: TimedOrder) -> None:
        evaluations = [other for other in device.waiting if other.action == "evaluate"]
        if len(evaluations) >= WAITING_EVALUATIONS:
            device.waiting.remove(evaluations[0])
            self._note(evaluations[0], "replaced", f"{_WHY['replaced']} before it began")
        device.waiting.append(order)

    def _begin_job(self, index: int, order: TimedOrder) -> bool:
        """Begin with an order, or decline it; returns whether it has begun."""
        device = self._devices[index]
        device.settle(self.now_s, device.recharge_w)
        if device.is_low:
            self._decline(index, order)
            return False
        model, place = device.traits.model, (self._fleet.seed, index, order.round, order.attempt)
        jitter = lognormal(model.jitter_sigma, "jitter", *place)
        work = phases(order.size, device.traits, jitter)
        device.job = VirtualJob(order, work, self.now_s, device.recharge_w, self._next_serial())
        self._working[index] = None
        empty_s = empty_after(work, device.charge_j, device.recharge_w) if model.battery_j else None
        end: End = "answered" if empty_s is None else "empty"
        lasts_s = duration(work) if empty_s is None else empty_s
        self._clock.at(self.now_s + lasts_s, _Over(index, device.job.serial, end))
        self._events.append(DeviceBusy(self._ids[index]))
        return True

    def _decline(self, index: int, order: TimedOrder) -> None:
        device = self._devices[index]
        floor = device.traits.model.battery_floor
        reason = f"the battery is at {device.charge:.0%}, below {floor:.0%}"
        self._note(order, "declined", reason)
        place = (self._ids[index], order.action, order.round, order.attempt)
        self._events.append(DeviceDeclined(*place, reason))

    def _over(self, due: _Over) -> None:
        device = self._devices[due.index]
        if device.job is None or device.job.serial != due.serial:
            return
        order = device.job.order
        self._end_job(due.index, due.end)
        if due.end == "empty":
            # the rest that a rounding leaves would let it come back
            device.empty, device.charge_j = True, 0.0
            self._leave(due.index, "empty")
        else:
            self._events.append(WorkDone(order))
            self._ready(due.index)

    def _end_job(self, index: int, end: End) -> None:
        device = self._devices[index]
        job = device.job
        assert job is not None
        passed_s = self.now_s - job.began_s
        # of work that was planned to end now, no rounding leaves a rest
        cost = spent(job.work, math.inf if end == "answered" else passed_s)
        device.settle(self.now_s, job.recharge_w, cost.joules)
        device.job = None
        del self._working[index]
        during = f" during the {part_at(job.work, passed_s)}"
        self._note(job.order, end, "" if end == "answered" else _WHY[end] + during, cost)

    def _is_over(self, order: TimedOrder) -> bool:
        return order.action == "train" and (order.round, order.attempt) <= self._closed

    def _note(self, order: TimedOrder, end: End, reason: str, cost: Cost = _NOTHING) -> None:
        self.ended.append(OrderEnded(order, end, reason, self.now_s, cost))

    # --- small parts --------------------------------------------------------------------------

    def _state(self, index: int) -> VirtualDevice:
        device = self._devices.get(index)
        if device is None:
            first = self._availability.period(index, 0, 0.0)
            traits, seed = self._fleet.traits(index), self._fleet.seed
            model = traits.model
            # between the floor and full, as likely everywhere
            share = model.battery_floor + (1 - model.battery_floor) * uniform("charge", seed, index)
            charge_j = share * model.battery_j
            device = VirtualDevice(traits, first.online, first.charging, charge_j)
            self._devices[index] = device
        return device

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial


def _answered_at(job: VirtualJob) -> tuple[float, int]:
    return (job.began_s + duration(job.work), job.serial)
