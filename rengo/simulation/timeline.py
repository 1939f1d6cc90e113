"""Virtual time: what happens to a simulated run, and when. Pure: it reads no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import TimerFired
from fl_server.rounds.events import DevicesJoined, Event
from rengo.simulation.backend import Trained, VirtualOrder


class Timeline:
    """The events that are to come, in the order of their virtual time.

    Events of one time come in the order in which they were added. A timer that is armed again fires
    once, and one of an earlier round or attempt never.

    Attributes:
        now_s: when the last event happened, in virtual seconds.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self._now: deque[Event] = deque()
        self._later: list[tuple[float, int, Event]] = []
        self._timers: dict[TimerFired, float] = {}
        self._count = 0

    def add(self, event: Event, delay_s: float = 0.0) -> None:
        """Let an event happen in so many seconds."""
        if delay_s <= 0:
            self._now.append(event)
            return
        self._count += 1
        heapq.heappush(self._later, (self.now_s + delay_s, self._count, event))

    def arm(self, timer: ArmTimer) -> None:
        """Let a timer fire."""
        pair = (timer.round, timer.attempt)
        for each in [each for each in self._timers if (each.round, each.attempt) < pair]:
            del self._timers[each]
        self._timers[TimerFired(timer.timer, *pair)] = self.now_s + timer.seconds

    def next(self) -> Event | None:
        """Return the next event and go on to its time; None where nothing is to come."""
        if self._now:
            return self._now.popleft()
        timer = min(self._timers.items(), key=lambda item: item[1], default=None)
        if self._later and (timer is None or self._later[0][0] <= timer[1]):
            at_s, _, event = heapq.heappop(self._later)
        elif timer is not None:
            event, at_s = timer
            del self._timers[event]
        else:
            return None
        self.now_s = max(self.now_s, at_s)
        return event


class FleetTiming(Protocol):
    """When virtual clients are there, and how long what they do takes."""

    def begin(self, timeline: Timeline, clients: Sequence[str]) -> None:
        """Add who joins the run when, and who leaves."""
        ...

    def training_s(self, order: VirtualOrder, result: Trained) -> float | None:
        """Return after how many seconds the server has the update, None where it never comes."""
        ...

    def evaluation_s(self, order: VirtualOrder) -> float | None:
        """Return after how many seconds the server has the metrics, None where they never come."""
        ...


class AtOnce:
    """A fleet of clients that are always there and answer at once: every round is complete."""

    def begin(self, timeline: Timeline, clients: Sequence[str]) -> None:
        """See :class:`FleetTiming`."""
        timeline.add(DevicesJoined(tuple(clients)))

    def training_s(self, order: VirtualOrder, result: Trained) -> float | None:
        """See :class:`FleetTiming`."""
        return 0.0

    def evaluation_s(self, order: VirtualOrder) -> float | None:
        """See :class:`FleetTiming`."""
        return 0.0
