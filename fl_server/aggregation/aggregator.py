"""A run's byte work: verify an update, add it to the exact sum, make the next version.

Nothing is added before the whole update is verified and finite, and what was verified is what is
added: the verified values wait in a spool. Memory holds at most the spools' budget, the sums of a
small model and a few blocks; the sums of a large model and larger spools are files.

``verify`` may run on several threads at once; ``fold``, ``aggregate`` and ``sweep`` on one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np

from algorithms.base import Algorithm, Flat
from fl_server.aggregation.arithmetic.changes import Changes
from fl_server.aggregation.arithmetic.exact import BLOCK, Float32s
from fl_server.aggregation.base_models import BaseModels
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.spool import MemoryBudget, Spool
from fl_server.aggregation.sums import RoundSum, sum_for
from fl_server.rounds.model import Model, Update
from runtime.errors import Corrupt, NotFound
from runtime.files import file_sha256
from storage.store.multipart_writer import PartWriter
from storage.store.objects import ObjectStore, abort_uploads
from storage.transfer.byte_ranges import Range
from storage.updates.header import read_header, require_origin
from storage.updates.info import Origin
from storage.updates.stream import verified_blocks
from storage.versions.keys import RunKeys
from storage.weights import (
    Layout,
    NotFinite,
    Weights,
    encode_header,
    next_values,
    read_layout,
    read_safetensors,
)

_HEADER_ALLOWANCE = 2 << 20
_COPY_BYTES = 1 << 20

RoundKey: TypeAlias = tuple[int, int]


class Refused(Corrupt):
    """The update cannot count; the text is the reason that the operator reads."""


@dataclass(frozen=True)
class SubmittedUpdate:
    """One device's update for one (round, attempt)."""

    device_id: str
    round: int
    attempt: int
    update: Update


@dataclass
class _OpenRound:
    key: RoundKey
    sum: RoundSum
    folded: set[str]


class Retention(Protocol):
    """Which of a run's versions stay in the store."""

    def retained(self, latest: int) -> Collection[int]:
        """Return the versions that stay when ``latest`` is the last that was committed."""
        ...

    def forget_others(self, retained: Collection[int]) -> None:
        """Take note that all other versions are gone."""
        ...

    def unchanged(self) -> AbstractContextManager[None]:
        """Within the block no version of the run gets or loses a tag or a stage."""
        ...


class RunAggregator:
    """The byte work of one run.

    Args:
        keys: the run's object keys.
        algorithm: its server half makes the next version.
        cohort_size: how many updates a round's sum should find room for at first.
        retention: which committed versions stay in the store.
    """

    def __init__(
        self,
        keys: RunKeys,
        algorithm: Algorithm,
        cohort_size: int,
        retention: Retention,
        store: ObjectStore,
        models: ModelCache,
        budget: MemoryBudget,
    ) -> None:
        self.keys = keys
        self._algorithm = algorithm
        self._cohort_size = cohort_size
        self._retention = retention
        self._store = store
        self.base = BaseModels(models, store)
        self._budget = budget
        self._folder = models.folder
        self._lock = threading.Lock()
        self._spools: dict[tuple[RoundKey, str], Spool] = {}
        self._round: _OpenRound | None = None

    # --- verify -------------------------------------------------------------------------------

    def verify(self, submission: SubmittedUpdate, base: Model) -> None:
        """Fetch and check an update and keep its values for ``fold``.

        Raises:
            Refused: the update can never count; says why.
            Unavailable: the store cannot be reached now; try again.
        """
        layout = self.base.layout(base)
        spool = Spool(layout.size, self._budget, self._folder)
        try:
            self._fill(spool, submission, base, layout)
        except NotFound as error:
            spool.close()
            raise Refused(f"no object at {submission.update.key}") from error
        except Refused:
            spool.close()
            raise
        except Corrupt as error:
            spool.close()
            raise Refused(str(error)) from error
        except BaseException:
            spool.close()
            raise
        self._keep(submission, spool)

    def _fill(self, spool: Spool, submission: SubmittedUpdate, base: Model, layout: Layout) -> None:
        update = submission.update
        expected = Origin(
            run_id=self.keys.run_id,
            round=submission.round,
            attempt=submission.attempt,
            device_id=submission.device_id,
            base_sha256=base.sha256,
            layout_hash=layout.hash,
            kind=self._algorithm.kind,
        )
        most = 4 * layout.size + _HEADER_ALLOWANCE
        if update.size_bytes > most:
            raise Refused(f"{update.key}: {update.size_bytes} bytes, at most {most}")
        with self._store.open(update.key) as stream:
            header = read_header(
                stream, header_sha256=update.header_sha256, max_bytes=most, key=update.key
            )
            require_origin(header, expected, update.key)
            if header.num_examples != update.num_examples:
                raise Refused(f"{update.key}: num_examples differs from the result message")
            for block in verified_blocks(stream, header, layout.size, key=update.key):
                spool.append(block)

    def _keep(self, submission: SubmittedUpdate, spool: Spool) -> None:
        key = ((submission.round, submission.attempt), submission.device_id)
        with self._lock:
            old = self._spools.pop(key, None)
            self._spools[key] = spool
        if old is not None:
            old.close()

    # --- fold and aggregate -------------------------------------------------------------------

    def fold(self, submission: SubmittedUpdate, base: Model) -> None:
        """Add an accepted update to its round's sum, once; fetch it again when it is not spooled.

        Raises:
            Refused: it was to be fetched again and is no longer what was accepted.
            Unavailable: the store cannot be reached now; try again.
        """
        key = (submission.round, submission.attempt)
        round_ = self._open_round(key, self.base.layout(base).size)
        if submission.device_id in round_.folded:
            return
        spool = self._take(key, submission.device_id)
        if spool is None:
            self.verify(submission, base)
            spool = self._take(key, submission.device_id)
        assert spool is not None
        try:
            round_.sum.add(spool, submission.update.num_examples)
        except BaseException:
            self._close_round()  # half an update is in the sum: it must never become a model
            raise
        round_.folded.add(submission.device_id)

    def _take(self, key: RoundKey, device_id: str) -> Spool | None:
        with self._lock:
            return self._spools.pop((key, device_id), None)

    def _open_round(self, key: RoundKey, size: int) -> _OpenRound:
        if self._round is not None and self._round.key == key:
            return self._round
        self._close_round()
        self._round = _OpenRound(key, sum_for(size, self._cohort_size, self._folder), set())
        return self._round

    def _close_round(self) -> None:
        if self._round is not None:
            self._round.sum.close()
            self._round = None

    def aggregate(self, key: RoundKey, included: tuple[str, ...], base: Model) -> Model:
        """Make the next version of exactly the included updates and put it into the store.

        Raises:
            Corrupt: not exactly the included updates were folded.
            NotFinite: the next version would have values that are not finite.
            Unavailable: the store cannot be reached now; try again.
        """
        round_ = self._round
        if round_ is None or round_.key != key or round_.folded != set(included):
            folded = sorted(round_.folded) if round_ is not None and round_.key == key else []
            raise Corrupt(f"round {key}: folded {folded}, to include {sorted(included)}")
        temporary = self.base.copies.temporary()
        try:
            model = self._make_version(temporary, key[0], base, round_.sum)
            self.base.copies.adopt(temporary, model)
            return model
        finally:
            temporary.unlink(missing_ok=True)

    def _make_version(self, path: Path, version: int, base: Model, total: RoundSum) -> Model:
        """Write the next version to ``path`` and put it into the store, with its server state.

        A large one goes out in parts while it is written.
        """
        key, state = self.keys.version(version), self._load_state(base)
        with self._parts_of(key, base) as parts:
            sha256, next_state, changed = self._write_version(path, base, total, state, parts)
            state_key = state_sha256 = ""
            if next_state:
                state_key = self.keys.state(version)
                state_sha256 = self._put_state(state_key, next_state)
        size = path.stat().st_size
        if parts is None:
            with path.open("rb") as file:
                self._store.put(key, file, size)
        return Model(version, key, sha256, size, state_key, state_sha256, changed)

    def _parts_of(self, key: str, base: Model) -> AbstractContextManager[PartWriter | None]:
        sizes = self._store.sizes
        if not sizes.is_large(base.size_bytes):
            return nullcontext()
        return PartWriter(self._store, key, sizes.written_for(base.size_bytes))

    def _write_version(
        self,
        path: Path,
        base: Model,
        total: RoundSum,
        state: dict[str, Flat],
        parts: PartWriter | None,
    ) -> tuple[str, dict[str, Flat], tuple[Range, ...] | None]:
        """Write the next version block by block, to a file and to the store where it is large.

        Returns:
            Its sha256, the next server state, and the bytes that differ from the base, where it
            pays to know them.
        """
        next_state = {name: np.empty_like(values) for name, values in state.items()}
        with self.base.fetch(base).open("rb") as old, path.open("wb") as new:
            layout, offset = read_layout(old)
            out = _HashedFile(new, parts)
            header = encode_header(layout)
            old.seek(0)
            changes = Changes(old.read(offset), header, 4 * layout.size)
            out.write(header)
            for start in range(0, layout.size, BLOCK):
                count = min(BLOCK, layout.size - start)
                part = slice(start, start + count)
                weights = _read_floats(old, count)
                blocks = {name: values[part] for name, values in state.items()}
                # what overflows is found by next_values
                with np.errstate(all="ignore"):
                    result, after = self._algorithm.aggregate(weights, total.mean(start), blocks)
                    values = np.ascontiguousarray(result, np.float32)
                values = next_values(weights, values, layout, start)
                changes.compare(weights, values)
                out.write(values.data)
                for name, block in after.items():
                    if not np.isfinite(block).all():
                        raise NotFinite(f"the algorithm's {name!r} would not be finite")
                    next_state[name][part] = block
            while tail := old.read(_COPY_BYTES):
                out.write(tail)
            size = new.tell()
        return out.digest.hexdigest(), next_state, changes.found(size)

    def _load_state(self, base: Model) -> dict[str, Flat]:
        size = self.base.layout(base).size
        if not base.state_key:
            return self._algorithm.init(size)
        reference = Model(base.version, base.state_key, base.state_sha256, 0)
        path = self.base.fetch(reference)
        try:
            return dict(read_safetensors(path).arrays())
        finally:
            path.unlink(missing_ok=True)

    def _put_state(self, key: str, state: dict[str, Flat]) -> str:
        path = self.base.copies.temporary()
        try:
            self.base.copies.write(path, Weights.from_arrays(state))
            with path.open("rb") as file:
                self._store.put(key, file, path.stat().st_size)
            return file_sha256(path)
        finally:
            path.unlink(missing_ok=True)

    # --- sweep --------------------------------------------------------------------------------

    def sweep(self, key: RoundKey, model: Model) -> int:
        """Delete spent updates and versions beyond retention; return how many objects.

        Args:
            key: updates up to this (round, attempt) no longer serve.
            model: the latest committed version.
        """
        self.forget(key)
        listed = [info.key for info in self._store.list(self.keys.prefix)]
        with self._retention.unchanged():
            retained = self._retention.retained(model.version)
            spent = [
                each
                for each in listed
                if self.keys.is_spent_update(each, *key)
                or self.keys.version_of(each) not in {None, *retained}
            ]
            return self._drop(spent, retained)

    def sweep_run(self, model: Model) -> int:
        """Leave nothing but the retained versions, unfinished uploads included."""
        self._close_round()
        self.forget(None)
        abort_uploads(self._store, self.keys.prefix)
        listed = [info.key for info in self._store.list(self.keys.prefix)]
        self.base.forget()
        with self._retention.unchanged():
            retained = self._retention.retained(model.version)
            stray = [each for each in listed if self.keys.version_of(each) not in retained]
            return self._drop(stray, retained)

    def _drop(self, keys: list[str], retained: Collection[int]) -> int:
        self._store.delete(keys)
        self._retention.forget_others(retained)
        return len(keys)

    def forget(self, key: RoundKey | None) -> None:
        """Free what verified updates up to a round and attempt take on this machine; None: all."""
        with self._lock:
            spent = [each for each in self._spools if key is None or each[0] <= key]
            spools = [self._spools.pop(each) for each in spent]
        for spool in spools:
            spool.close()
        if self._round is not None and key is not None and self._round.key <= key:
            self._close_round()


class _HashedFile:
    """A file that is hashed and sent as it is written, while each block is in the cache."""

    def __init__(self, file: BinaryIO, parts: PartWriter | None) -> None:
        self._file = file
        self._parts = parts
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._file.write(data)
        if self._parts is not None:
            self._parts.write(data)


def _read_floats(file: BinaryIO, count: int) -> Float32s:
    values: Float32s = np.empty(count, np.float32)
    if file.readinto(values.data) != 4 * count:  # type: ignore[attr-defined]
        raise Corrupt("the base model's local copy ends early")
    return values
