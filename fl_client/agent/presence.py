"""When a device publishes its presence: ``training`` at once, ``ready`` after a short delay.

Between two rounds a device is ready for a few milliseconds. If that were published, the server
would send the last order again, whose result is still on its way: two messages and a transfer for
nothing.
"""

from __future__ import annotations

from fl_client.session.events import Presence

READY_DELAY_S = 1.0


class PresenceDebouncer:
    """Decides what is published, by the monotonic clock that it is given."""

    def __init__(self) -> None:
        self._published: Presence | None = None
        self._due: tuple[Presence, float] | None = None

    def published(self, presence: Presence) -> None:
        """Note that this was published just now, as on every new connection."""
        self._published, self._due = presence, None

    def change(self, presence: Presence, now_s: float) -> Presence | None:
        """Return what to publish at once, None when it can wait or is published already."""
        if presence == self._published:
            self._due = None
            return None
        if presence == "ready":
            self._due = (presence, now_s + READY_DELAY_S)
            return None
        self.published(presence)
        return presence

    def left_s(self, now_s: float) -> float | None:
        """Return how long until something is due, None when nothing is."""
        return None if self._due is None else max(0.0, self._due[1] - now_s)

    def due(self, now_s: float) -> Presence | None:
        """Return what is to be published now, once; None when nothing is due."""
        if self._due is None or self._due[1] > now_s:
            return None
        presence = self._due[0]
        self.published(presence)
        return presence
