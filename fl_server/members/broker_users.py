"""Brings the broker's users up to date with the members."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.brokers.access_control import AccessControl
from broker.wire.access import BrokerUser, Role, grants
from fl_server.members.rules import DeviceRecord, TokenRecord
from runtime.errors import ConfigError
from runtime.security.identity import Identity


@dataclass
class BrokerUserSync:
    """The broker's users: many changes at once cost one reload, and the latest counts."""

    access: AccessControl
    users: Callable[[], list[BrokerUser]]
    _wanted: int = 1
    _done: int = 0
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def require_ours(self, what: str) -> None:
        """Raise ConfigError where the server cannot change the broker's users."""
        if not self.access.manages_users:
            raise ConfigError(f"{what}: the users of this broker are made by the broker's operator")

    def set_users(self, users: Callable[[], list[BrokerUser]]) -> None:
        """Set the users; one thread calls it."""
        self.users = users
        self._wanted += 1

    @property
    def current(self) -> bool:
        """Whether the broker has the latest users: who connected with others was cut off."""
        return self._done >= self._wanted

    def apply(self) -> None:
        """Give the broker the latest users unless that was done; any thread may call it."""
        asked = self._wanted
        with self._busy:
            if self._done >= asked:
                return
            # users is set before the number grows, so that it is at least as new as the number
            number = self._wanted
            self.access.apply(self.users())
            self._done = number


def users_of(
    staff: Sequence[Identity], devices: Sequence[DeviceRecord], tokens: Sequence[TokenRecord]
) -> Callable[[], list[BrokerUser]]:
    """Return a function that makes the users of these identities, for any thread.

    Args:
        staff: the server and its operators, all of one domain.
        devices: those that are active become users.
        tokens: their holders may claim.
    """
    domain = staff[0].domain
    wanted = [(each.id, each.password.get_secret_value(), Role(each.role)) for each in staff]
    active = [each for each in devices if each.status == "active"]
    wanted += [(each.id, each.password, Role.DEVICE) for each in active]
    wanted += [(each.id, each.broker_password, Role.CLAIMANT) for each in tokens]

    def make() -> list[BrokerUser]:
        return [
            BrokerUser(name, password, grants(role, domain, name))
            for name, password, role in wanted
        ]

    return make
