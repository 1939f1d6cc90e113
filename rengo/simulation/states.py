"""What virtual clients keep from round to round, in bounded memory."""

from __future__ import annotations

import math
import os
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from runtime.errors import RunNotCompleted
from storage.weights import Array

MEMORY_BYTES = 64 << 20

_Layout: TypeAlias = "tuple[tuple[str, str, tuple[int, ...]], ...]"
"""The name, type and shape of each array of a state."""

_NOWHERE = -1


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


class BoundedStates:
    """Keeps the latest states in memory, and the others in a file without a name.

    The file is gone with the process, however that ends: what outlives it is in a checkpoint. A
    client takes 12 bytes of memory beside its state, and none before the first that has one.

    Args:
        memory_bytes: what the states in memory may take together.
        folder: where the file lies.

    Raises:
        RunNotCompleted: by ``get`` and ``put``: the file cannot be written or read.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES, folder: Path | None = None) -> None:
        self._bound, self._held = memory_bytes, 0
        self._latest: OrderedDict[int, Mapping[str, Array]] = OrderedDict()
        self._file = _StateFile(folder)

    def get(self, client: int) -> Mapping[str, Array]:
        """See :class:`ClientStates`."""
        found = self._latest.get(client)
        return self._file.read(client) if found is None else found

    def put(self, client: int, state: Mapping[str, Array]) -> None:
        """See :class:`ClientStates`."""
        self._held -= _bytes_of(self._latest.pop(client, {}))
        # what lies in the file is of an earlier round
        self._file.forget(client)
        if not state:
            return
        self._latest[client] = state
        self._held += _bytes_of(state)
        while self._held > self._bound:
            oldest, kept = self._latest.popitem(last=False)
            self._held -= _bytes_of(kept)
            self._file.write(oldest, kept)

    def clients(self) -> Iterable[int]:
        """See :class:`ClientStates`."""
        yield from sorted({*self._latest, *self._file.clients()})

    def close(self) -> None:
        """See :class:`ClientStates`."""
        self._latest, self._held = OrderedDict(), 0
        self._file.close()


class _StateFile:
    """States in a file, in places that are used again by states of the same size."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._end = 0
        # by client: where its state begins, and the number of its layout
        self._offsets, self._layouts = array("q"), array("i")
        self._known: list[_Layout] = []
        self._free: dict[int, list[int]] = {}

    def read(self, client: int) -> dict[str, Array]:
        """Return the state of a client, empty where there is none."""
        if self._descriptor is None or self._offset(client) == _NOWHERE:
            return {}
        layout = self._known[self._layouts[client]]
        data = bytearray(_size_of(layout))
        try:
            count = os.preadv(self._descriptor, [data], self._offsets[client])
        except OSError as error:
            raise _unusable("read", error) from error
        if count < len(data):
            raise RunNotCompleted("the file of the clients' states was cut short")
        state, start = {}, 0
        for name, kind, shape in layout:
            values = np.frombuffer(data, kind, math.prod(shape), start)
            state[name] = values.reshape(shape)
            start += values.nbytes
        return state

    def write(self, client: int, state: Mapping[str, Array]) -> None:
        """Write the state of a client that has none here."""
        layout = tuple((name, each.dtype.str, each.shape) for name, each in state.items())
        size = _size_of(layout)
        places = self._free.get(size)
        offset = places.pop() if places else self._end
        data = memoryview(b"".join(each.tobytes() for each in state.values()))
        try:
            while data:
                written = os.pwrite(self._open(), data, offset + size - len(data))
                data = data[written:]
        except OSError as error:
            raise _unusable("written", error) from error
        self._end = max(self._end, offset + size)
        self._note(client, offset, layout)

    def forget(self, client: int) -> None:
        """Give a client's place to whoever comes next."""
        offset = self._offset(client)
        if offset != _NOWHERE:
            size = _size_of(self._known[self._layouts[client]])
            self._free.setdefault(size, []).append(offset)
            self._offsets[client] = _NOWHERE

    def clients(self) -> Iterable[int]:
        """Return whose states are here."""
        return (client for client, offset in enumerate(self._offsets) if offset != _NOWHERE)

    def close(self) -> None:
        """Close the file, which ends it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._offsets, self._layouts = array("q"), array("i")

    def _open(self) -> int:
        if self._descriptor is None:
            # it has no name, so that a kill leaves nothing behind
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                self._descriptor = os.dup(file.fileno())
        return self._descriptor

    def _offset(self, client: int) -> int:
        return self._offsets[client] if client < len(self._offsets) else _NOWHERE

    def _note(self, client: int, offset: int, layout: _Layout) -> None:
        if client >= len(self._offsets):
            more = client + 1 - len(self._offsets)
            self._offsets.extend([_NOWHERE] * more)
            self._layouts.extend([0] * more)
        if layout not in self._known:
            self._known.append(layout)
        self._offsets[client], self._layouts[client] = offset, self._known.index(layout)


def _bytes_of(state: Mapping[str, Array]) -> int:
    return sum(each.nbytes for each in state.values())


def _size_of(layout: _Layout) -> int:
    return sum(np.dtype(kind).itemsize * math.prod(shape) for _, kind, shape in layout)


def _unusable(done: str, error: OSError) -> RunNotCompleted:
    return RunNotCompleted(
        f"what clients keep cannot be {done} in the folder for temporary files "
        f"({tempfile.gettempdir()}): {error.strerror}; TMPDIR names another"
    )
