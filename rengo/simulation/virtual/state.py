"""What is known of one virtual device now. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rengo.simulation.virtual.fleet import Traits
from rengo.simulation.virtual.orders import TimedOrder, VirtualJob


@dataclass(slots=True)
class VirtualDevice:
    """A device: whether it is there, what it does, and what is in its battery.

    Attributes:
        period: the number of its period of availability.
        charge_j: what was in its battery at ``charged_at_s``.
        empty: whether it is away since its battery was empty.
        waiting: orders whose turn has not come.
    """

    traits: Traits
    online: bool
    charging: bool
    charge_j: float
    charged_at_s: float = 0.0
    period: int = 0
    empty: bool = False
    job: VirtualJob | None = None
    waiting: deque[TimedOrder] = field(default_factory=deque)

    @property
    def is_there(self) -> bool:
        """Whether it is connected."""
        return self.online and not self.empty

    @property
    def is_gone(self) -> bool:
        """Whether it will never be there again."""
        return self.empty and not self.traits.model.recharge_w

    @property
    def recharge_w(self) -> float:
        """What flows into its battery now."""
        return self.traits.model.recharge_w if self.charging else 0.0

    @property
    def is_low(self) -> bool:
        """Whether it declines orders for its battery's sake."""
        model = self.traits.model
        floor_j = model.battery_floor * model.battery_j
        return model.battery_j > 0 and (self.charge_j < floor_j or not self.charge_j)

    @property
    def charge(self) -> float:
        """How full its battery is, 0 to 1."""
        return self.charge_j / self.traits.model.battery_j

    def settle(self, now_s: float, recharge_w: float, spent_j: float = 0.0) -> None:
        """Bring the battery's charge up to now.

        Args:
            recharge_w: what flowed into it since it was settled last.
            spent_j: what was taken out of it.
        """
        capacity_j = self.traits.model.battery_j
        charge_j = self.charge_j + recharge_w * (now_s - self.charged_at_s) - spent_j
        self.charge_j, self.charged_at_s = min(capacity_j, max(0.0, charge_j)), now_s
