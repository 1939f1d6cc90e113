"""Keeps the memory of a process that waits for months small, where the C library is glibc."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from functools import cache

_M_ARENA_MAX = -8


@cache
def _function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, None where there is none of that name."""
    if sys.platform != "linux":
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found


def share_one_heap() -> None:
    """Have all threads allocate from one heap; before they start. They hold the GIL anyway."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def freeze_heap() -> None:
    """Free what a start no longer needs, and exempt the rest from garbage collection.

    The collector looks at old objects only when their number has grown by a quarter. Beside all the
    objects that a start makes, weeks of rounds would pass before that, and their reference cycles
    would stay in memory so long.
    """
    give_back()
    gc.freeze()


def give_back() -> None:
    """Collect garbage and return free pages of the heap to the kernel."""
    gc.collect()
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)
