"""What must be done now for a run in rounds: commands, imperative.

The two that every kind of flow has stand in ``fl_server.flows.commands``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import Action
from fl_server.rounds.model import Model, Update


@dataclass(frozen=True)
class SendOrder:
    """Order ``device_id`` to train from version ``round - 1``, or to evaluate version ``round``."""

    device_id: str
    action: Action
    round: int
    attempt: int


@dataclass(frozen=True)
class VerifyUpdate:
    """Fetch and check the update; ends in ``UpdateVerified`` or ``UpdateRejected``.

    ``width`` is how much of the model the device was ordered to train.
    """

    device_id: str
    round: int
    attempt: int
    update: Update
    width: float = 1.0


@dataclass(frozen=True)
class FoldUpdate:
    """Add an accepted update to the round's sum; ends in silence or ``UpdateVanished``.

    ``width``: see ``VerifyUpdate``.
    """

    device_id: str
    round: int
    attempt: int
    update: Update
    width: float = 1.0


@dataclass(frozen=True)
class Aggregate:
    """Make the next version of ``included``, all of which are folded or being folded.

    ``population`` is how many devices the run knows.
    """

    round: int
    attempt: int
    included: tuple[str, ...]
    population: int


@dataclass(frozen=True)
class ReportRound:
    """Report what a requested round committed; repeated after a restart."""

    round: int
    model: Model


@dataclass(frozen=True)
class DiscardUpdate:
    """Delete an update's object that will never count."""

    key: str


@dataclass(frozen=True)
class TagBest:
    """Give ``version`` the tag of the run's best, which keeps it; repeated after a restart."""

    version: int


@dataclass(frozen=True)
class SweepRound:
    """Delete what no longer serves: updates up to (round, attempt), versions beyond retention."""

    round: int
    attempt: int


@dataclass(frozen=True)
class SweepRun:
    """Leave nothing in the store but the run's retained versions."""


Command: TypeAlias = (
    SendOrder
    | ReportRound
    | SendReceipt
    | ArmTimer
    | VerifyUpdate
    | FoldUpdate
    | Aggregate
    | DiscardUpdate
    | TagBest
    | SweepRound
    | SweepRun
)
