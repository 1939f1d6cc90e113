"""Brings the broker's users up to date with the members."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.brokers.access_control import AccessControl
from broker.wire.access import BrokerUser
from runtime.errors import ConfigError


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
