"""When a device says what it is at: ``training`` at once, ``ready`` after a breath.

Between two rounds a device is ready for a few milliseconds. Saying so would bring it its last
order again, since its result is still on the way: two messages and a transfer for nothing.
"""

from __future__ import annotations

from fl_client.session.events import Presence

BREATH_S = 1.0


class PresenceDebouncer:
    """Decides what is said, by the monotonic clock that it is given."""

    def __init__(self) -> None:
        self._said: Presence | None = None
        self._due: tuple[Presence, float] | None = None

    def said(self, presence: Presence) -> None:
        """Take that this was said just now, as on every new connection."""
        self._said, self._due = presence, None

    def want(self, presence: Presence, now_s: float) -> Presence | None:
        """Return what to say at once, None when it can wait or stands already."""
        if presence == self._said:
            self._due = None
            return None
        if presence == "ready":
            self._due = (presence, now_s + BREATH_S)
            return None
        self.said(presence)
        return presence

    def left_s(self, now_s: float) -> float | None:
        """Return how long until something is due, None when nothing is."""
        return None if self._due is None else max(0.0, self._due[1] - now_s)

    def overdue(self, now_s: float) -> Presence | None:
        """Return what is due now, and take it as said."""
        if self._due is None or self._due[1] > now_s:
            return None
        presence = self._due[0]
        self.said(presence)
        return presence
