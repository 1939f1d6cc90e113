"""Keeps a process that waits for months small, where the C library lets it (glibc)."""

from __future__ import annotations

import ctypes
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


def give_back() -> None:
    """Return to the kernel what was freed and lies between what is used."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)
