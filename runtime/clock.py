"""Whether this machine's clock is known to be right."""

from __future__ import annotations

import ctypes
import sys
import time

_TIME_ERROR = 5
_TIMEX_BYTES = 512  # more than any kernel's struct timex


def synced_ms() -> int | None:
    """Return the time in milliseconds since 1970 where something keeps it right, else None.

    The kernel knows: whoever keeps the clock (NTP, PTP) tells it. Elsewhere than on Linux the
    system's clock is taken for right.
    """
    if sys.platform == "linux":
        # all zero asks and changes nothing
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
        if state < 0 or state == _TIME_ERROR:
            return None
    return time.time_ns() // 1_000_000
