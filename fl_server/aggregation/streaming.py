"""A run's byte work: verify an update, add it to the exact sum, make the next version.

Nothing is added before the whole update is verified and finite, and what was verified is what is
added: the verified values wait in a spool. Memory holds at most the spools' budget, the sums of a
small model and a few blocks; the sums of a large model and larger spools are files.

``verify`` may run on several threads at once; ``fold``, ``aggregate`` and ``sweep`` on one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from algorithms.base import Algorithm, Flat
from fl_server.aggregation.exact import BLOCK, ExactSum, FixedPoint, Float32s, MemorySums
from fl_server.aggregation.spool import FileSums, MemoryBudget, Spool
from fl_server.events import Model, Update
from fl_server.models import ModelCache, hash_file
from runtime.errors import Corrupt, NotFound
from storage.headers import Origin, read_header, require_origin
from storage.keys import RunKeys
from storage.objects import ObjectStore
from storage.updates import verified_blocks
from storage.weights import Layout, Weights, encode_header, read_layout, read_safetensors

_HEADER_ALLOWANCE = 2 << 20
_MEMORY_SUMS_MAX = 1 << 25
_COPY_BYTES = 1 << 20

RoundKey: TypeAlias = tuple[int, int]


class Refused(Corrupt):
    """The update cannot count; the text is the reason that the operator reads."""


@dataclass(frozen=True)
class Submission:
    """One device's update for one (round, attempt)."""

    device_id: str
    round: int
    attempt: int
    update: Update


@dataclass
class _Round:
    key: RoundKey
    sum: ExactSum
    folded: set[str]
    close: Callable[[], None]


class RunAggregator:
    """The byte work of one run.

    Args:
        keys: the run's object keys.
        algorithm: its server half makes the next version.
        fixed: the format of the sum.
        cohort_size: bounds one update's weight, so that no total can overflow.
        keep_versions: how many committed versions stay in the store.
    """

    def __init__(
        self,
        keys: RunKeys,
        algorithm: Algorithm,
        fixed: FixedPoint,
        cohort_size: int,
        keep_versions: int,
        store: ObjectStore,
        models: ModelCache,
        budget: MemoryBudget,
    ) -> None:
        self._keys = keys
        self._algorithm = algorithm
        self._fixed = fixed
        self._weight_limit = fixed.weight_limit(cohort_size)
        self._keep_versions = keep_versions
        self._store = store
        self._models = models
        self._budget = budget
        self._folder = models.folder
        self._lock = threading.Lock()
        self._spools: dict[tuple[RoundKey, str], Spool] = {}
        self._round: _Round | None = None
        self._layouts: dict[str, Layout] = {}

    # --- verify -------------------------------------------------------------------------------

    def verify(self, submission: Submission, base: Model) -> None:
        """Fetch and check an update and keep its values for ``fold``.

        Raises:
            Refused: the update can never count; says why.
            Unavailable: the store cannot be reached now; try again.
        """
        layout = self.layout(base)
        update = submission.update
        if update.num_examples > self._weight_limit:
            raise Refused(
                f"{update.num_examples} examples are more than the {self._weight_limit} that "
                "aggregation.weight_bits allows one device"
            )
        spool = Spool(layout.size, self._budget, self._folder)
        try:
            self._fill(spool, submission, base, layout)
        except NotFound as error:
            spool.close()
            raise Refused(f"no object at {update.key}") from error
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

    def _fill(self, spool: Spool, submission: Submission, base: Model, layout: Layout) -> None:
        update = submission.update
        expected = Origin(
            run_id=self._keys.run_id,
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
            limit = self._fixed.value_limit
            for block in verified_blocks(stream, header, layout.size, key=update.key):
                if block.size and (block.max() > limit or block.min() < -limit):
                    raise Refused(f"{update.key}: a value beyond ±{limit:g} cannot be summed")
                spool.append(block)

    def _keep(self, submission: Submission, spool: Spool) -> None:
        key = ((submission.round, submission.attempt), submission.device_id)
        with self._lock:
            old = self._spools.pop(key, None)
            self._spools[key] = spool
        if old is not None:
            old.close()

    def layout(self, base: Model) -> Layout:
        """Return the layout of a version, from its local copy."""
        layout = self._layouts.get(base.sha256)
        if layout is None:
            with self._models.fetch(base).open("rb") as file:
                layout, _ = read_layout(file)
            self._layouts = {base.sha256: layout}
        return layout

    # --- fold and aggregate -------------------------------------------------------------------

    def fold(self, submission: Submission, base: Model) -> None:
        """Add an accepted update to its round's sum, once; fetch it again when it is not spooled.

        Raises:
            Refused: it was to be fetched again and is no longer what was accepted.
            Unavailable: the store cannot be reached now; try again.
        """
        key = (submission.round, submission.attempt)
        round_ = self._open_round(key, self.layout(base).size)
        if submission.device_id in round_.folded:
            return
        spool = self._take(key, submission.device_id)
        if spool is None:
            self.verify(submission, base)
            spool = self._take(key, submission.device_id)
        assert spool is not None
        try:
            with closing(spool):
                for start, values in spool.blocks():
                    round_.sum.add_block(start, values, submission.update.num_examples)
        except BaseException:
            self._close_round()  # half an update is in the sum: it must never become a model
            raise
        round_.sum.total_weight += submission.update.num_examples
        round_.folded.add(submission.device_id)

    def _take(self, key: RoundKey, device_id: str) -> Spool | None:
        with self._lock:
            return self._spools.pop((key, device_id), None)

    def _open_round(self, key: RoundKey, size: int) -> _Round:
        if self._round is not None and self._round.key == key:
            return self._round
        self._close_round()
        if size <= _MEMORY_SUMS_MAX:
            total = ExactSum(size, self._fixed, MemorySums(size))
            self._round = _Round(key, total, set(), lambda: None)
        else:
            sums = FileSums(size, self._folder)
            self._round = _Round(key, ExactSum(size, self._fixed, sums), set(), sums.close)
        return self._round

    def _close_round(self) -> None:
        if self._round is not None:
            self._round.close()
            self._round = None

    def aggregate(self, key: RoundKey, included: tuple[str, ...], base: Model) -> Model:
        """Make the next version of exactly the included updates and put it into the store.

        Raises:
            Corrupt: not exactly the included updates were folded.
            Unavailable: the store cannot be reached now; try again.
        """
        round_ = self._round
        if round_ is None or round_.key != key or round_.folded != set(included):
            folded = sorted(round_.folded) if round_ is not None and round_.key == key else []
            raise Corrupt(f"round {key}: folded {folded}, to include {sorted(included)}")
        state = self._load_state(base)
        temporary = self._models.temporary()
        try:
            sha256, next_state = self._write_version(temporary, base, round_.sum, state)
            return self._store_version(temporary, sha256, key[0], next_state)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_version(
        self, path: Path, base: Model, total: ExactSum, state: dict[str, Flat]
    ) -> tuple[str, dict[str, Flat]]:
        """Write the next version block by block; return its sha256 and the next server state."""
        next_state = {name: np.empty_like(values) for name, values in state.items()}
        with self._models.fetch(base).open("rb") as old, path.open("wb") as new:
            layout, _ = read_layout(old)
            out = _HashedFile(new)
            out.write(encode_header(layout))
            for start in range(0, layout.size, BLOCK):
                count = min(BLOCK, layout.size - start)
                part = slice(start, start + count)
                weights = _read_floats(old, count)
                blocks = {name: values[part] for name, values in state.items()}
                result, after = self._algorithm.aggregate(weights, total.mean(start, count), blocks)
                out.write(np.ascontiguousarray(result, np.float32).data)
                for name, values in after.items():
                    next_state[name][part] = values
            while tail := old.read(_COPY_BYTES):
                out.write(tail)
        return out.digest.hexdigest(), next_state

    def _store_version(
        self, path: Path, sha256: str, version: int, state: dict[str, Flat]
    ) -> Model:
        state_key = state_sha256 = ""
        if state:
            state_key = self._keys.state(version)
            state_sha256 = self._put_state(state_key, state)
        key, size = self._keys.version(version), path.stat().st_size
        with path.open("rb") as file:
            self._store.put(key, file, size)
        model = Model(version, key, sha256, size, state_key, state_sha256)
        self._models.adopt(path, model)
        return model

    def _load_state(self, base: Model) -> dict[str, Flat]:
        size = self.layout(base).size
        if not base.state_key:
            return self._algorithm.init(size)
        reference = Model(base.version, base.state_key, base.state_sha256, 0)
        path = self._models.fetch(reference)
        try:
            return dict(read_safetensors(path).arrays())
        finally:
            path.unlink(missing_ok=True)

    def _put_state(self, key: str, state: dict[str, Flat]) -> str:
        path = self._models.temporary()
        try:
            self._models.write(path, Weights.from_arrays(state))
            with path.open("rb") as file:
                self._store.put(key, file, path.stat().st_size)
            return hash_file(path)
        finally:
            path.unlink(missing_ok=True)

    # --- sweep --------------------------------------------------------------------------------

    def sweep(self, key: RoundKey, model: Model) -> int:
        """Delete spent updates and versions beyond retention; return how many objects.

        Args:
            key: updates up to this (round, attempt) no longer serve.
            model: the latest committed version.
        """
        self._forget(key)
        spent = [
            info.key
            for info in self._store.list(self._keys.prefix)
            if self._keys.is_spent_update(info.key, *key) or not self._retained(info.key, model)
        ]
        self._store.delete(spent)
        return len(spent)

    def sweep_run(self, model: Model) -> int:
        """Leave nothing but the retained versions, unfinished uploads included."""
        self._close_round()
        self._forget(None)
        self._store.abort_uploads(self._keys.prefix)
        stray = [
            info.key
            for info in self._store.list(self._keys.prefix)
            if self._keys.version_of(info.key) is None or not self._retained(info.key, model)
        ]
        self._store.delete(stray)
        self._models.forget()
        return len(stray)

    def _retained(self, key: str, model: Model) -> bool:
        version = self._keys.version_of(key)
        return version is None or model.version - self._keep_versions < version <= model.version

    def _forget(self, key: RoundKey | None) -> None:
        with self._lock:
            spent = [each for each in self._spools if key is None or each[0] <= key]
            spools = [self._spools.pop(each) for each in spent]
        for spool in spools:
            spool.close()
        if self._round is not None and key is not None and self._round.key <= key:
            self._close_round()


class _HashedFile:
    """A file that is hashed as it is written, while each block is in the cache."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._file.write(data)


def _read_floats(file: BinaryIO, count: int) -> Float32s:
    values: Float32s = np.empty(count, np.float32)
    if file.readinto(values.data) != 4 * count:  # type: ignore[attr-defined]
        raise Corrupt("the base model's local copy ends early")
    return values
