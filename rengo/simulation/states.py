"""What virtual clients keep from round to round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from storage.weights import Array


class ClientStates(Protocol):
    """Keeps the state of each client by its number. One thread calls it."""

    def get(self, client: int) -> Mapping[str, Array]:
        """Return what the client keeps by name, empty where it keeps nothing."""
        ...

    def put(self, client: int, state: Mapping[str, Array]) -> None:
        """Keep a client's next state, or forget it where that is empty.

        The arrays are not changed afterwards and may be kept as they are.
        """
        ...

    def clients(self) -> Iterable[int]:
        """Return the clients that keep something: a checkpoint reads them one after the other."""
        ...

    def close(self) -> None:
        """Give memory and disk back."""
        ...


class MemoryStates:
    """Keeps all states in memory."""

    def __init__(self) -> None:
        self._kept: dict[int, Mapping[str, Array]] = {}

    def get(self, client: int) -> Mapping[str, Array]:
        """See :class:`ClientStates`."""
        return self._kept.get(client, {})

    def put(self, client: int, state: Mapping[str, Array]) -> None:
        """See :class:`ClientStates`."""
        if state:
            self._kept[client] = state
        else:
            self._kept.pop(client, None)

    def clients(self) -> Iterable[int]:
        """See :class:`ClientStates`."""
        return list(self._kept)

    def close(self) -> None:
        """See :class:`ClientStates`."""
        self._kept = {}
