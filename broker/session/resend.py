"""Which outbox rows to send now: each once per connection, and again while unconfirmed.

It has no thread, no clock and no network: the session's thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.session.outbox import Outbox, OutboxRow, Until

MAX_UNACKNOWLEDGED = 32
_STALLED_FACTOR = 3


@dataclass
class _SentRow:
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
        self._sent: dict[int, _SentRow] = {}
        self._seq_of_mid: dict[int, int] = {}
        self._cursor = 0

    def reset(self) -> None:
        """Begin a new connection: every pending row is to be sent once."""
        self._sent.clear()
        self._seq_of_mid.clear()
        self._cursor = 0

    @property
    def all_acknowledged(self) -> bool:
        """Whether the broker has acknowledged every row on this connection (any thread)."""
        return not self._seq_of_mid and self._cursor >= self._outbox.newest_seq

    def stalled(self, now_s: float) -> bool:
        """Whether the broker has kept a row unacknowledged for three times ``resend_s``."""
        limit_s = _STALLED_FACTOR * self._resend_s
        return any(
            now_s - sent.sent_at_s > limit_s for sent in self._sent.values() if sent.mid is not None
        )

    def next_due_s(self) -> float | None:
        """Return when the next row is due or the broker counts as stalled; None for never."""
        waits = (
            sent.sent_at_s + self._resend_s * (1 if sent.mid is None else _STALLED_FACTOR)
            for sent in self._sent.values()
        )
        return min(waits, default=None)

    def handle_acknowledged(self, mids: list[int], now_s: float) -> None:
        """Note the broker's acknowledgements; rows that needed no more are removed."""
        known = {mid: self._seq_of_mid[mid] for mid in mids if mid in self._seq_of_mid}
        done = [seq for seq in known.values() if self._sent[seq].until == "puback"]
        if done:
            self._outbox.discard(done)
        for seq in known.values():
            sent = self._sent.pop(seq)
            if sent.until == "confirm":
                self._sent[seq] = _SentRow("confirm", now_s, None)
        for mid in known:  # last: ``all_acknowledged`` says that the rows are removed
            del self._seq_of_mid[mid]

    def handle_refused(self, mid: int, now_s: float) -> None:
        """Note that the broker refused a row: it is sent again after ``resend_s``."""
        seq = self._seq_of_mid.pop(mid, None)
        if seq is not None:
            self._sent[seq] = _SentRow("confirm", now_s, None)

    def send_due(self, publish: Callable[[OutboxRow], int | None], now_s: float) -> None:
        """Send what is due, with at most ``MAX_UNACKNOWLEDGED`` rows unacknowledged.

        Args:
            publish: hands a row to the connection; returns its message id, None when the
                connection refused it, and then no more are sent now.
            now_s: monotonic time.
        """
        for seq, sent in list(self._sent.items()):
            if sent.mid is None and now_s - sent.sent_at_s >= self._resend_s:
                row = self._outbox.get(seq)
                del self._sent[seq]
                if row is not None and not self._send(row, publish, now_s):
                    self._sent[seq] = sent
                    return
        room = MAX_UNACKNOWLEDGED - len(self._seq_of_mid)
        newest = self._outbox.newest_seq
        if room <= 0 or self._cursor >= newest:
            return
        rows = self._outbox.pending(after=self._cursor, limit=room)
        for row in rows:
            if not self._send(row, publish, now_s):
                return
            self._cursor = row.seq
        if len(rows) < room:  # the rows in between are confirmed already
            self._cursor = max(self._cursor, newest)

    def _send(
        self, row: OutboxRow, publish: Callable[[OutboxRow], int | None], now_s: float
    ) -> bool:
        mid = publish(row)
        if mid is None:
            return False
        self._sent[row.seq] = _SentRow(row.until, now_s, mid)
        self._seq_of_mid[mid] = row.seq
        return True
