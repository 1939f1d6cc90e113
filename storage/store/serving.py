"""Whether a store serves at all, where one of its objects fails: damage is no absence."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar

from runtime.errors import AccessDenied, Damaged, StorageError, Unavailable
from storage.store.objects import Objects

T = TypeVar("T")


def is_serving(store: Objects) -> bool:
    """Whether the store takes a small object and gives it back."""
    key, data = f"probe/{secrets.token_hex(8)}/serving", secrets.token_bytes(16)
    try:
        store.put(key, data)
        with store.open(key) as stream:
            found = stream.read(len(data))
        store.delete([key])
    except StorageError:
        return False
    return found == data


def damage_told(store: Objects, work: Callable[[], T]) -> T:
    """Return what ``work`` reads of one object, tried twice where the store serves others.

    Raises:
        Damaged: it failed both times.
    """
    try:
        return work()
    except (Unavailable, AccessDenied):
        if not is_serving(store):
            raise
    try:
        return work()
    except (Unavailable, AccessDenied) as error:
        if not is_serving(store):
            raise
        raise Damaged(f"{error}, while the store serves other objects") from error
