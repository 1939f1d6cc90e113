"""The observer that counts what each device has moved for its orders since the server's start."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass

from fl_server.observers.base import ObservedFact
from runtime.bounds import total


@dataclass
class Moved:
    """Bytes over one link: ``up`` from the device, ``down`` to it."""

    up: int = 0
    down: int = 0


class LinkTraffic:
    """Adds up what devices report with their results. Any thread may ask."""

    name = "traffic"

    def __init__(self) -> None:
        self._moved: dict[str, Moved] = defaultdict(Moved)
        self._lock = threading.Lock()

    def observe(self, observed: ObservedFact) -> None:
        """Count a fact that says what a device's order took; of others nothing."""
        fact = observed.fact
        usage = getattr(getattr(fact, "update", fact), "usage", None)
        device_id = getattr(fact, "device_id", "")
        if not usage or not device_id:
            return
        with self._lock:
            moved = self._moved[device_id]
            moved.up = total((moved.up, int(usage.get("bytes_up", 0))))
            moved.down = total((moved.down, int(usage.get("bytes_down", 0))))

    def of(self, device_id: str) -> Moved:
        """Return what a device has moved."""
        with self._lock:
            found = self._moved.get(device_id)
            return Moved() if found is None else Moved(found.up, found.down)
