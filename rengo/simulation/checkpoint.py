"""A simulated run on disk, so that it goes on after a kill: one file, whole or absent.

It is written where a round has been committed and nothing of the next one has been computed. What
comes after is a function of what it holds, so a run that goes on ends with the same bits.
"""

from __future__ import annotations

import json
import math
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fl_server.aggregation.arithmetic.in_memory import MemoryVersion
from fl_server.rounds.ledger import Ledger
from rengo.simulation.coordinator import Coordinator
from rengo.simulation.history import RoundHistory
from rengo.simulation.states import ClientStates
from runtime.errors import ConfigError, Corrupt
from runtime.files import whole_file
from storage.weights import Array

FILE = "checkpoint.npz"
_FORMAT = 2
_SHARE = 20.0
_META, _VERSION, _VECTOR, _STATES = "meta", "version/", "vector/", "states"
# before each state: its client, the arrays that follow, and the length of their description
_RECORD = struct.Struct("<qqi")


@dataclass
class CheckpointPace:
    """When a checkpoint is due: every so many seconds, and for a small part of the time.

    Attributes:
        every_s: seconds from one to the next.
    """

    every_s: float
    last_s: float = 0.0
    cost_s: float = 0.0

    def __post_init__(self) -> None:
        self.last_s = time.monotonic()

    def is_due(self) -> bool:
        """Whether to write one now."""
        return time.monotonic() - self.last_s >= max(self.every_s, _SHARE * self.cost_s)

    def written(self, cost_s: float) -> None:
        """Note that one was written, in so many seconds."""
        self.last_s, self.cost_s = time.monotonic(), cost_s


@dataclass(frozen=True, eq=False)
class Saved:
    """What a checkpoint holds.

    Attributes:
        digest: of the simulation that it is of.
        began_at: when the run began, in Unix time.
    """

    digest: str
    began_at: float
    path: Path
    now_s: float
    ledger: Ledger
    history: Mapping[str, Any]
    arrays: Mapping[str, Array]

    def restore(
        self, coordinator: Coordinator, history: RoundHistory, states: ClientStates
    ) -> None:
        """Set what is saved; the coordinator was made with the saved ledger."""
        initial, arrays = coordinator.run.initial.weights, self.arrays
        versions = {
            int(name.removeprefix(_VERSION)): MemoryVersion(initial.with_vector(vector))
            for name, vector in arrays.items()
            if name.startswith(_VERSION)
        }
        vectors = {
            name.removeprefix(_VECTOR): vector
            for name, vector in arrays.items()
            if name.startswith(_VECTOR)
        }
        model = self.ledger.model
        latest = MemoryVersion(versions[model.version].weights, vectors, dict(model.scalars))
        # that of the best version is asked for again by its tag
        coordinator.restore(latest, {**versions, model.version: latest}, self.now_s)
        history.restore(self.history)
        for client, state in _read_states(self.path):
            states.put(client, state)


def save(
    path: Path,
    head: tuple[str, float],
    coordinator: Coordinator,
    history: RoundHistory,
    states: ClientStates,
) -> None:
    """Write the checkpoint of a run.

    Args:
        path: a file that is replaced as a whole.
        head: the digest of the simulation, and when it began.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    machine, version = coordinator.machine, coordinator.version
    digest, began_at = head
    meta = {
        "format": _FORMAT,
        "digest": digest,
        "began_at": began_at,
        "now_s": coordinator.timeline.now_s,
        # whose updates counted is asked only where messages are repeated
        "ledger": TypeAdapter(Ledger).dump_python(
            machine.ledger, mode="json", exclude={"_counted"}
        ),
        "history": history.saved(),
    }
    arrays: dict[str, Array] = {_META: np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    for number, each in coordinator.kept_versions().items():
        arrays[f"{_VERSION}{number}"] = each.weights.vector
    arrays |= {f"{_VECTOR}{name}": vector for name, vector in version.vectors.items()}
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            _write(archive, name, array)
        with archive.open(_STATES, "w", force_zip64=True) as out:
            for client in states.clients():
                _write_state(out, client, states.get(client))


def load(path: Path) -> Saved | None:
    """Return what a checkpoint holds, None where there is none.

    Raises:
        ConfigError: it is damaged, or of another release.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files if name != _STATES}
        meta = json.loads(arrays.pop(_META).tobytes())
        if meta["format"] != _FORMAT:
            raise Corrupt("it is of another release")
        ledger = TypeAdapter(Ledger).validate_python(meta["ledger"])
    except FileNotFoundError:
        return None
    except (
        *(OSError, ValueError, KeyError, TypeError, EOFError),
        *(zipfile.BadZipFile, ValidationError, Corrupt),
    ) as error:
        raise _damaged(path, error) from error
    return Saved(
        meta["digest"], meta["began_at"], path, meta["now_s"], ledger, meta["history"], arrays
    )


def _write(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
        np.lib.format.write_array(out, array, allow_pickle=False)


def _write_state(out: IO[bytes], client: int, state: Mapping[str, Array]) -> None:
    described = json.dumps([[name, each.dtype.str, each.shape] for name, each in state.items()])
    header, size = described.encode(), sum(each.nbytes for each in state.values())
    out.write(_RECORD.pack(client, size, len(header)))
    out.write(header)
    for each in state.values():
        out.write(each.tobytes())


def _read_states(path: Path) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield the states of a checkpoint, one in memory at a time.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_STATES) as file:
            while record := file.read(_RECORD.size):
                client, size, length = _RECORD.unpack(record)
                described, data = json.loads(file.read(length)), bytearray(file.read(size))
                state, start = {}, 0
                for name, kind, shape in described:
                    values = np.frombuffer(data, kind, math.prod(shape), start)
                    state[name], start = values.reshape(shape), start + values.nbytes
                yield client, state
    except (*(OSError, ValueError, KeyError, TypeError), zipfile.BadZipFile, struct.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ConfigError(f"{path} cannot be gone on with ({reason}): remove it to begin anew")
