"""What happens to a simulated run, one event after another. Pure: it reads no clock."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import TimerFired
from fl_server.rounds.events import Event
from rengo.simulation.virtual.orders import WorkDone

Happening: TypeAlias = Event | WorkDone


class Timeline(Protocol):
    """The events that are to come, in the order of their virtual time."""

    @property
    def now_s(self) -> float:
        """When the last event happened, in virtual seconds."""
        ...

    def add(self, event: Event) -> None:
        """Let an event happen now, after those that were added before."""
        ...

    def arm(self, timer: ArmTimer) -> None:
        """Let a timer fire; one that is armed again fires once."""
        ...

    def next(self) -> Happening | None:
        """Return the next event and go on to its time; None where nothing is to come."""
        ...


class AtOnce:
    """The time of clients that are always there and answer at once: only timers let it pass.

    A timer of an earlier round or attempt never fires.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self._now: deque[Event] = deque()
        self._timers: dict[TimerFired, float] = {}

    def add(self, event: Event) -> None:
        """See :class:`Timeline`."""
        self._now.append(event)

    def arm(self, timer: ArmTimer) -> None:
        """See :class:`Timeline`."""
        pair = (timer.round, timer.attempt)
        for each in [each for each in self._timers if (each.round, each.attempt) < pair]:
            del self._timers[each]
        self._timers[TimerFired(timer.timer, *pair)] = self.now_s + timer.seconds

    def next(self) -> Event | None:
        """See :class:`Timeline`."""
        if self._now:
            return self._now.popleft()
        if not self._timers:
            return None
        timer, at_s = min(self._timers.items(), key=lambda item: item[1])
        del self._timers[timer]
        self.now_s = max(self.now_s, at_s)
        return timer
