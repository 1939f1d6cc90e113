"""Keeps a process that waits for months small, where the C library lets it (glibc)."""

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


def settle() -> None:
    """Take what a start has left to be there for good, and give back the rest.

    Python looks through all that is old when a quarter as much has come to it: beside a start's
    objects that would be after weeks of rounds, and what these left in circles would wait for it.
    """
    give_back()
    gc.freeze()


def give_back() -> None:
    """Return to the kernel what nothing holds any more and lies between what is used."""
    gc.collect()
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)
