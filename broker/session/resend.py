"""Which outbox rows to send now: each once per connection, and again while unanswered.

No thread, no clock and no network of its own: the session's own thread drives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.session.outbox import Outbox, OutboxRow, Until

WINDOW = 32
_STALLED_AFTER = 3


@dataclass
class _Flight:
    until: Until
    sent_at_s: float
    mid: int | None  # None once the broker acknowledged


class ResendQueue:
    """The sending side of one outbox.

    Args:
        outbox: where the rows are.
        resend_s: how long a row waits for its confirmation before it is sent again.
    """

    def __init__(self, outbox: Outbox, resend_s: float) -> None:
        self._outbox = outbox
        self._resend_s = resend_s
        self._flights: dict[int, _Flight] = {}
        self._seq_of_mid: dict[int, int] = {}
        self._cursor = 0

    def reset(self) -> None:
        """Begin a new connection: every pending row is to be sent once."""
        self._flights.clear()
        self._seq_of_mid.clear()
        self._cursor = 0

    @property
    def settled(self) -> bool:
        """Whether the broker has acknowledged every row on this connection (any thread)."""
        return not self._seq_of_mid and self._cursor >= self._outbox.newest_seq

    def stalled(self, now_s: float) -> bool:
        """Whether the broker has kept a row unacknowledged for three times ``resend_s``."""
        patience_s = _STALLED_AFTER * self._resend_s
        return any(
            now_s - flight.sent_at_s > patience_s
            for flight in self._flights.values()
            if flight.mid is not None
        )

    def next_due_s(self) -> float | None:
        """When there is something to do although nothing happens; None for never."""
        waits = (
            flight.sent_at_s + self._resend_s * (1 if flight.mid is None else _STALLED_AFTER)
            for flight in self._flights.values()
        )
        return min(waits, default=None)

    def acknowledged(self, mids: list[int], now_s: float) -> None:
        """Take the broker's acknowledgements; rows that waited for no more are removed."""
        known = {mid: self._seq_of_mid[mid] for mid in mids if mid in self._seq_of_mid}
        done = [seq for seq in known.values() if self._flights[seq].until == "puback"]
        if done:
            self._outbox.discard(done)
        for seq in known.values():
            flight = self._flights.pop(seq)
            if flight.until == "confirm":
                self._flights[seq] = _Flight("confirm", now_s, None)
        for mid in known:  # last, since ``settled`` promises that the rows are gone
            del self._seq_of_mid[mid]

    def refused(self, mid: int, now_s: float) -> None:
        """The broker answered with a failure: the row is sent again after ``resend_s``."""
        seq = self._seq_of_mid.pop(mid, None)
        if seq is not None:
            self._flights[seq] = _Flight("confirm", now_s, None)

    def pump(self, publish: Callable[[OutboxRow], int | None], now_s: float) -> None:
        """Send what is due within the window.

        Args:
            publish: hands a row to the connection; returns its message id, None when it was not
                taken, which ends this pump.
            now_s: monotonic time.
        """
        for seq, flight in list(self._flights.items()):
            if flight.mid is None and now_s - flight.sent_at_s >= self._resend_s:
                row = self._outbox.get(seq)
                del self._flights[seq]
                if row is not None and not self._send(row, publish, now_s):
                    self._flights[seq] = flight
                    return
        room = WINDOW - len(self._seq_of_mid)
        newest = self._outbox.newest_seq
        if room <= 0 or self._cursor >= newest:
            return
        rows = self._outbox.pending(after=self._cursor, limit=room)
        for row in rows:
            if not self._send(row, publish, now_s):
                return
            self._cursor = row.seq
        if len(rows) < room:  # what lay between was answered already
            self._cursor = max(self._cursor, newest)

    def _send(
        self, row: OutboxRow, publish: Callable[[OutboxRow], int | None], now_s: float
    ) -> bool:
        mid = publish(row)
        if mid is None:
            return False
        self._flights[row.seq] = _Flight(row.until, now_s, mid)
        self._seq_of_mid[mid] = row.seq
        return True
