"""Orders on virtual devices, and how each one ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fl_server.flows.events import Action
from rengo.simulation.virtual.work import Cost, OrderSize, Phase

End: TypeAlias = Literal[
    "answered", "declined", "late", "left", "empty", "lost", "repeated", "replaced"
]


@dataclass(frozen=True)
class TimedOrder:
    """An order to a device: to train from version ``round - 1``, or to evaluate ``round``."""

    device_id: str
    action: Action
    round: int
    attempt: int
    size: OrderSize

    @property
    def key(self) -> tuple[str, Action, int, int]:
        """What an order that is sent again shares with the first."""
        return (self.device_id, self.action, self.round, self.attempt)


@dataclass(frozen=True)
class OrderEnded:
    """An order ended at ``at_s``; each order that was sent does so once.

    ``late``: its round closed before the answer came. ``left`` and ``empty``: the device went
    offline, or its battery was empty. ``lost``: the device was offline when it came.
    ``repeated``: the device had it already. ``replaced``: a newer order came.

    Attributes:
        reason: what is said of it to a person.
        cost: what the device did for it, wasted or not.
    """

    order: TimedOrder
    end: End
    reason: str
    at_s: float
    cost: Cost


@dataclass(frozen=True)
class WorkDone:
    """A device's answer reached the server: what is in it comes from the backend."""

    order: TimedOrder


@dataclass
class VirtualJob:
    """An order that a device carries out.

    Attributes:
        recharge_w: what flows into its battery meanwhile, as it was when the job began.
        serial: tells a job from those that the device had before.
    """

    order: TimedOrder
    work: tuple[Phase, ...]
    began_s: float
    recharge_w: float
    serial: int
