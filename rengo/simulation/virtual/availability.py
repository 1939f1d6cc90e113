"""When a device is online and when it is charged: periods, one after another. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from rengo.simulation.virtual.draws import exponential, uniform
from rengo.simulation.virtual.fleet import VirtualFleet


@dataclass(frozen=True)
class Period:
    """A device is as this says up to ``until_s`` of virtual time."""

    until_s: float
    online: bool
    charging: bool = False


class Availability(Protocol):
    """The periods of every client's device."""

    @property
    def digest(self) -> str:
        """What two with the same periods share, beside the fleet."""
        ...

    def period(self, index: int, number: int, from_s: float) -> Period:
        """Return a device's period, counted from 0, which begins at ``from_s``.

        The numbers of one device are asked for in their order, each from the end of the last.
        """
        ...


class DrawnAvailability:
    """Periods drawn by each device's model: it is charged while it is offline.

    Times are exponential, so that what a device did before says nothing of when it leaves, and at
    time 0 as many are online as later.
    """

    def __init__(self, fleet: VirtualFleet) -> None:
        self._fleet = fleet

    @property
    def digest(self) -> str:
        """See ``Availability``."""
        return "drawn"

    def period(self, index: int, number: int, from_s: float) -> Period:
        """Return a device's period; see ``Availability``."""
        model, seed = self._fleet.kind(index).model, self._fleet.seed
        if not model.online_s:
            return Period(math.inf, online=True)
        share = model.online_s / (model.online_s + model.offline_s)
        began_online = uniform("online", seed, index) < share
        online = began_online == (number % 2 == 0)
        mean = model.online_s if online else model.offline_s
        until_s = from_s + exponential(mean, "period", seed, index, number)
        return Period(until_s, online, charging=not online)
