"""What happened to an agent lately: its connection, the last rounds, the orders it declined."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fl_client.session.events import JobKey

_KEPT = 10


@dataclass(frozen=True)
class _HistoryEntry:
    at_s: float
    what: dict[str, Any]


def _latest() -> deque[_HistoryEntry]:
    return deque(maxlen=_KEPT)


@dataclass
class History:
    """Kept in memory alone. Times are monotonic and shown as ages.

    Attributes:
        trouble: why there is no connection, "" while there is one.
        server_trouble: what keeps the server and this device from working together, or "".
    """

    clock: Callable[[], float] = time.monotonic
    connected: bool = False
    trouble: str = "not connected yet"
    server_trouble: str = ""
    _started_s: float = 0.0
    _changed_s: float = 0.0
    _rounds: deque[_HistoryEntry] = field(default_factory=_latest)
    _declines: deque[_HistoryEntry] = field(default_factory=_latest)

    def __post_init__(self) -> None:
        self._started_s = self._changed_s = self.clock()

    @property
    def started_s(self) -> float:
        """When the agent started."""
        return self._started_s

    def record_connected(self) -> None:
        """Note that the broker has admitted this device."""
        self.connected, self.trouble, self._changed_s = True, "", self.clock()
        self.server_trouble = ""

    def record_disconnected(self, reason: str) -> bool:
        """Note that there is no connection, and why; returns whether there was one until now."""
        lost = self.connected
        if lost:
            self._changed_s = self.clock()
        self.connected, self.trouble = False, reason
        return lost

    def record_decline(self, key: JobKey, reason: str) -> None:
        """Note an order that was not taken."""
        self._record(self._declines, key, {"reason": reason})

    def record_end(self, key: JobKey, result: dict[str, Any]) -> None:
        """Note a job that has ended, and what came of it."""
        self._record(self._rounds, key, result)

    def _record(self, entries: deque[_HistoryEntry], key: JobKey, more: dict[str, Any]) -> None:
        step = {"phase": key.phase, "seq": key.seq} if key.action == "exchange" else {}
        what = {"run": key.run_id, "action": key.action, "round": key.round, **step, **more}
        entries.append(_HistoryEntry(self.clock(), what))

    def document(self) -> dict[str, Any]:
        """Return all of it as plain data, the latest first."""
        now_s = self.clock()

        def aged(entries: deque[_HistoryEntry]) -> list[dict[str, Any]]:
            return [
                {**each.what, "ago_s": round(now_s - each.at_s, 1)} for each in reversed(entries)
            ]

        return {
            "up_s": round(now_s - self._started_s, 1),
            "connection": {
                "connected": self.connected,
                "for_s": round(now_s - self._changed_s, 1),
                "trouble": self.trouble,
            },
            "server_trouble": self.server_trouble,
            "rounds": aged(self._rounds),
            "declines": aged(self._declines),
        }
