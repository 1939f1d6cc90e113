"""Which devices are there for a run. Never journalled: after a restart devices say it again."""

from __future__ import annotations

from collections.abc import Iterable

from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft, Role


class Roster:
    """The devices that said that they are online, and those that said or showed that they left.

    Attributes:
        left: who left and has not come back.
        removed: who among them may not come back.
    """

    def __init__(self) -> None:
        self.left: set[str] = set()
        self.removed: set[str] = set()
        self._online: dict[str, Role] = {}
        self._draining: set[str] = set()
        self._busy: set[str] = set()
        self._domains: set[str] = set()
        # sorted once for all rounds in which nobody comes or goes
        self._accepting: dict[Role, tuple[str, ...]] = {}

    def joined(self, event: DeviceJoined) -> bool:
        """Add a device, or what it says anew; returns whether it was away or took no orders."""
        device_id = event.device_id
        is_back = device_id not in self._online or device_id in self._draining
        if is_back or not event.accepting or self._online[device_id] != event.role:
            self._accepting.clear()
        self._online[device_id] = event.role
        if event.domain:
            self._domains.add(device_id)
        else:
            self._domains.discard(device_id)
        self.left.discard(device_id)
        self.removed.discard(device_id)
        self._busy.discard(device_id)
        if event.accepting:
            self._draining.discard(device_id)
        else:
            self._draining.add(device_id)
        return is_back

    def busy(self, event: DeviceBusy) -> None:
        """Note that a device carries out an order; it says when it has ended."""
        self._busy.add(event.device_id)

    def went(self, event: DeviceLeft) -> None:
        """Remove a device."""
        self._accepting.clear()
        self._online.pop(event.device_id, None)
        self._draining.discard(event.device_id)
        self._busy.discard(event.device_id)
        self.left.add(event.device_id)
        if event.for_good:
            self.removed.add(event.device_id)

    def accepting(self, role: Role) -> tuple[str, ...]:
        """Return the online devices of a role that take orders, sorted."""
        if role not in self._accepting:
            self._accepting[role] = tuple(
                sorted(
                    device_id
                    for device_id, its_role in self._online.items()
                    if its_role == role and device_id not in self._draining
                )
            )
        return self._accepting[role]

    def population(self, known: Iterable[str]) -> int:
        """Return how many trainers take orders or are among the known."""
        online, draining = self._online, self._draining
        away = (
            device_id
            for device_id in known
            if online.get(device_id) != "trainer" or device_id in draining
        )
        return len(self.accepting("trainer")) + sum(1 for _ in away)

    def is_domain(self, device_id: str) -> bool:
        """Whether there are devices below a device, as it said when it was here last."""
        return device_id in self._domains

    def evaluators(self) -> list[str]:
        """Return who may have evaluators: those of this server, and the domains; sorted."""
        domains = [each for each in self.accepting("trainer") if each in self._domains]
        return sorted({*self.accepting("evaluator"), *domains})

    def is_idle(self, device_id: str) -> bool:
        """Whether a device is online and carries out no order."""
        return device_id in self._online and device_id not in self._busy
