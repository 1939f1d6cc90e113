"""What virtual rounds took: time, energy and bytes, and who was dropped and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from fl_server.rounds.facts import (
    OrderDeclined,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    UpdateRefused,
)
from rengo.simulation.virtual.orders import OrderEnded
from rengo.simulation.virtual.work import Cost

_UNANSWERED = "its answer had not come when the round closed"


@dataclass
class VirtualRound:
    """One attempt of a round on the virtual clock.

    Attributes:
        started_s, closed_s: virtual times; ``closed_s`` is None while it collects updates.
        dropped: why those of the cohort that do not count do not, by device.
        cost: what its orders cost the devices, those that came to nothing included.
        wasted: the part of it that was spent on updates that do not count.
    """

    round: int
    attempt: int
    started_s: float
    cohort: tuple[str, ...]
    closed_s: float | None = None
    outcome: Literal["collecting", "committed", "abandoned"] = "collecting"
    included: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    wasted: Cost = field(default_factory=Cost)

    def document(self) -> dict[str, Any]:
        """Return it as plain data: a row of the results."""
        return {
            "round": self.round,
            "attempt": self.attempt,
            "outcome": self.outcome,
            "virtual_s": self.closed_s,
            "round_virtual_s": None if self.closed_s is None else self.closed_s - self.started_s,
            "invited": len(self.cohort),
            "included": len(self.included),
            "dropped": dict(sorted(self.dropped.items())),
            "energy_j": self.cost.joules,
            "wasted_energy_j": self.wasted.joules,
            "device_s": self.cost.seconds,
            "bytes_down": self.cost.bytes_down,
            "bytes_up": self.cost.bytes_up,
        }


class VirtualAccount:
    """The fold of a run's facts and of how its orders ended.

    Attributes:
        rounds: every attempt, in its order.
        evaluation: what evaluations cost the devices.
    """

    def __init__(self) -> None:
        self.rounds: list[VirtualRound] = []
        self.evaluation = Cost()
        # of the latest attempt: what each device's orders cost, and why they came to nothing
        self._costs: dict[str, Cost] = {}
        self._reasons: dict[str, str] = {}

    def add_fact(self, fact: object, now_s: float) -> None:
        """Note what the round machine decided at a virtual time."""
        match fact:
            case RoundStarted():
                self._costs, self._reasons = {}, {}
                started = VirtualRound(fact.round, fact.attempt, now_s, fact.cohort)
                self.rounds.append(started)
            case OrderDeclined() | UpdateRefused():
                self._reasons[fact.device_id] = fact.reason
            case RoundClosed():
                entry = self.rounds[-1]
                entry.closed_s, entry.included = now_s, fact.included
                self._settle(entry)
            case RoundCommitted():
                self.rounds[-1].outcome = "committed"
            case RoundAbandoned() if self.rounds and self._is_latest(fact.round, fact.attempt):
                entry = self.rounds[-1]
                entry.outcome, entry.included = "abandoned", ()
                entry.closed_s = now_s if entry.closed_s is None else entry.closed_s
                self._settle(entry)

    def add_ends(self, ended: Iterable[OrderEnded]) -> None:
        """Note how orders ended."""
        for each in ended:
            order = each.order
            if order.action != "train":
                self.evaluation += each.cost
            elif self._is_latest(order.round, order.attempt):
                entry, device_id = self.rounds[-1], order.device_id
                entry.cost += each.cost
                self._costs[device_id] = self._costs.get(device_id, Cost()) + each.cost
                if each.reason and each.end != "repeated":
                    self._reasons[device_id] = each.reason
                if entry.closed_s is not None:
                    self._settle(entry)

    def attempts(self, round_number: int) -> list[VirtualRound]:
        """Return the attempts of the latest round, or of one before."""
        found = []
        for entry in reversed(self.rounds):
            if entry.round == round_number:
                found.append(entry)
            elif found:
                break
        return found[::-1]

    def document(self) -> dict[str, Any]:
        """Return it as plain data, for the results."""
        total = self.total()
        return {
            "seconds": self.rounds[-1].closed_s if self.rounds else None,
            "energy_j": total.joules,
            "wasted_energy_j": sum(entry.wasted.joules for entry in self.rounds),
            "evaluation_energy_j": self.evaluation.joules,
            "bytes_down": total.bytes_down,
            "bytes_up": total.bytes_up,
            "rounds": [entry.document() for entry in self.rounds],
        }

    def total(self) -> Cost:
        """Return what the run cost the devices so far."""
        return sum((entry.cost for entry in self.rounds), self.evaluation)

    def _is_latest(self, round_number: int, attempt: int) -> bool:
        if not self.rounds:
            return False
        return (round_number, attempt) == (self.rounds[-1].round, self.rounds[-1].attempt)

    def _settle(self, entry: VirtualRound) -> None:
        """Work out who was dropped and what was wasted; ends may follow the round's close."""
        left_out = set(entry.cohort) - set(entry.included)
        entry.dropped = {name: self._reasons.get(name, _UNANSWERED) for name in left_out}
        wasted = (self._costs[name] for name in sorted(left_out) if name in self._costs)
        entry.wasted = sum(wasted, Cost())
