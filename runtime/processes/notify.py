"""What a service manager is told: ready, still alive, stopping (systemd's ``sd_notify``)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

_LOG = logging.getLogger(__name__)
_SEND_S = 1.0


class Notifier:
    """Tells the service manager, or nobody where there is none.

    Args:
        address: the manager's datagram socket, "" for none; ``@`` begins an abstract one.
        watchdog_s: within which the manager wants a sign of life, None when it does not.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._failed = False
        # twice in the time, so that one that comes late does no harm
        self.beat_every_s = None if watchdog_s is None else watchdog_s / 2

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """Return the notifier of this process, whose children shall not speak for it."""
        given = os.environ if environment is None else environment
        address = given.pop("NOTIFY_SOCKET", "")
        watchdog_us, pid = given.pop("WATCHDOG_USEC", ""), given.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        watchdog_s = int(watchdog_us) / 1e6 if mine and watchdog_us.isdecimal() else None
        return cls(address, watchdog_s or None)

    def ready(self, status: str) -> None:
        """The service has started."""
        self._say(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._say(f"STATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog; only the thread that must not hang calls it."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The service ends in order."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(_SEND_S)
                out.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._failed:
                _LOG.warning("the service manager cannot be told anything: %s", error)
            self._failed = True
        else:
            self._failed = False
