"""A run's byte work: verify an update, add it to the exact sum, make the next version.

Nothing is added before the whole update is verified and finite, and what was verified is what is
added: the verified values wait in a spool. Memory holds at most the spools' budget, the sums of a
small model and a few blocks; the sums of a large model and larger spools are files.

``verify`` may run on several threads at once; ``fold``, ``aggregate`` and ``sweep`` on one.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from algorithms.base import UPDATE, Algorithm, Report
from fl_server.aggregation.arithmetic.combining import Combining
from fl_server.aggregation.arithmetic.server_half import (
    VersionInput,
    covered,
    require_sections,
    weight_of,
)
from fl_server.aggregation.base_models import BaseModels
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.next_version import NextVersion, RoundInput
from fl_server.aggregation.part_models import PartModels
from fl_server.aggregation.rules.base import Rule
from fl_server.aggregation.rules.mean import WeightedMean
from fl_server.aggregation.spool import MemoryBudget, Spool
from fl_server.aggregation.sums import RoundSums, UpdateParts
from fl_server.rounds.model import Model, Update
from runtime.errors import Corrupt, NotFound
from runtime.files import file_sha256
from storage.store.multipart_writer import PartWriter
from storage.store.objects import ObjectStore, abort_uploads
from storage.updates.header import UpdateHeader, read_header, require_origin
from storage.updates.info import Origin, Section
from storage.updates.stream import verified_blocks
from storage.versions.keys import RunKeys
from storage.weights import Layout, Slices

_HEADER_ALLOWANCE = 2 << 20

RoundKey: TypeAlias = tuple[int, int]


class Refused(Corrupt):
    """The update cannot count; the text is the reason that the operator reads."""


@dataclass(frozen=True)
class SubmittedUpdate:
    """One device's update for one (round, attempt); ``width`` is what it was ordered to train."""

    device_id: str
    round: int
    attempt: int
    update: Update
    width: float = 1.0


@dataclass(frozen=True)
class AggregatedRun:
    """What the byte work depends on of a run's definition.

    Attributes:
        algorithm: its server half makes the next version.
        rule: how updates become one.
        cohort_size: how many updates a round's sum should find room for at first.
    """

    keys: RunKeys
    algorithm: Algorithm
    seed: int
    cohort_size: int
    rule: Rule = field(default_factory=WeightedMean)

    @property
    def combining(self) -> Combining:
        """How a round's updates become one."""
        return Combining(self.algorithm, self.rule)


@dataclass
class _OpenRound:
    key: RoundKey
    sums: RoundSums
    reports: dict[str, Report] = field(default_factory=dict)


@dataclass(frozen=True)
class _Verified:
    """A verified update: its values, and what they are."""

    spool: Spool
    sections: tuple[Section, ...]
    reports: frozenset[str]
    slices: Slices | None

    def scalars(self) -> dict[str, float]:
        """Return the scalars that the update has."""
        found, start = {}, 0
        for section in self.sections:
            if section.name in self.reports:
                found[section.name] = float(self.spool.read(start, 1)[0])
            start += section.count
        return found


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
        run: which run.
        retention: which committed versions stay in the store.
    """

    def __init__(
        self,
        run: AggregatedRun,
        retention: Retention,
        store: ObjectStore,
        models: ModelCache,
        budget: MemoryBudget,
    ) -> None:
        self.keys = run.keys
        self._run = run
        self._retention = retention
        self._store = store
        self.base = BaseModels(models, store)
        self._parts = PartModels(run.keys, self.base, store)
        self._budget = budget
        self._folder = models.folder
        self._lock = threading.Lock()
        self._verified: dict[tuple[RoundKey, str], _Verified] = {}
        self._round: _OpenRound | None = None

    # --- parts ----------------------------------------------------------------------------------

    def store_part(self, base: Model, width: float) -> Model:
        """Return the model of what devices of a width train in the next round, once it is stored.

        Raises:
            ConfigError: the algorithm cannot divide the model.
            Unavailable: the store cannot be reached now; try again.
        """
        algorithm, layout = self._run.algorithm, self.base.layout(base)
        slices = algorithm.part(width, base.version + 1, layout)
        return base if slices is None else self._parts.store(base, slices)

    # --- verify -------------------------------------------------------------------------------

    def verify(self, submission: SubmittedUpdate, base: Model) -> None:
        """Fetch and check an update and keep its values for ``fold``.

        Raises:
            Refused: the update can never count; says why.
            Unavailable: the store cannot be reached now; try again.
        """
        layout = self.base.layout(base)
        try:
            verified = self._read(submission, base, layout)
        except NotFound as error:
            raise Refused(f"no object at {submission.update.key}") from error
        except Refused:
            raise
        except Corrupt as error:
            raise Refused(str(error)) from error
        key = ((submission.round, submission.attempt), submission.device_id)
        with self._lock:
            old = self._verified.pop(key, None)
            self._verified[key] = verified
        if old is not None:
            old.spool.close()

    def _read(self, submission: SubmittedUpdate, base: Model, layout: Layout) -> _Verified:
        update, algorithm = submission.update, self._run.algorithm
        slices = algorithm.part(submission.width, submission.round, layout)
        if slices is not None:
            base, layout = self._parts.describe(base, slices), slices.part
        expected = Origin(
            run_id=self.keys.run_id,
            round=submission.round,
            attempt=submission.attempt,
            device_id=submission.device_id,
            base_sha256=base.sha256,
            layout_hash=layout.hash,
            kind="delta",
        )
        most = 4 * layout.size * (len(algorithm.sends) + 1) + _HEADER_ALLOWANCE
        if update.size_bytes > most:
            raise Refused(f"{update.key}: {update.size_bytes} bytes, at most {most}")
        with self._store.open(update.key) as stream:
            header = read_header(
                stream, header_sha256=update.header_sha256, max_bytes=most, key=update.key
            )
            require_origin(header, expected, update.key)
            if header.num_examples != update.num_examples:
                raise Refused(f"{update.key}: num_examples differs from the result message")
            sections = _sections(header, algorithm, layout, update.key)
            size = sum(section.count for section in sections)
            spool = Spool(size, self._budget, self._folder)
            try:
                for block in verified_blocks(stream, header, size, key=update.key):
                    spool.append(block)
            except BaseException:
                spool.close()
                raise
        return _Verified(spool, sections, frozenset(algorithm.reports), slices)

    # --- fold and aggregate -------------------------------------------------------------------

    def fold(self, submission: SubmittedUpdate, base: Model) -> None:
        """Add an accepted update to its round's sum, once; fetch it again when it is not spooled.

        Raises:
            Refused: it was to be fetched again and is no longer what was accepted.
            Unavailable: the store cannot be reached now; try again.
        """
        key = (submission.round, submission.attempt)
        round_ = self._open_round(key)
        if submission.device_id in round_.reports:
            return
        found = self._take(key, submission.device_id)
        if found is None:
            self.verify(submission, base)
            found = self._take(key, submission.device_id)
        assert found is not None
        report = Report(submission.device_id, submission.update.num_examples, found.scalars())
        try:
            weight = self._weight(report, base)
        except BaseException:
            found.spool.close()
            raise
        try:
            has = UpdateParts(found.sections, submission.device_id, found.slices)
            round_.sums.add(found.spool, has, weight)
        except BaseException:
            self._close_round()  # half an update is in the sum: it must never become a model
            raise
        round_.reports[report.device_id] = report

    def _weight(self, report: Report, base: Model) -> int:
        try:
            return weight_of(self._run.algorithm, report, dict(base.scalars))
        except Corrupt as error:
            raise Refused(str(error)) from error

    def _take(self, key: RoundKey, device_id: str) -> _Verified | None:
        with self._lock:
            return self._verified.pop((key, device_id), None)

    def _open_round(self, key: RoundKey) -> _OpenRound:
        if self._round is not None and self._round.key == key:
            return self._round
        self._close_round()
        algorithm, kept = self._run.algorithm, self._run.combining.kept_singly
        sums = RoundSums(self._run.cohort_size, self._folder, covered(algorithm), kept)
        self._round = _OpenRound(key, sums)
        return self._round

    def _close_round(self) -> None:
        if self._round is not None:
            self._round.sums.close()
            self._round = None

    def aggregate(
        self, key: RoundKey, included: tuple[str, ...], base: Model, population: int = 0
    ) -> Model:
        """Make the next version of exactly the included updates and put it into the store.

        Args:
            population: how many devices the run knows, at least those included.

        Raises:
            Corrupt: not exactly the included updates were folded, or they have no weight.
            NotFinite: the next version would have values that are not finite.
            Unavailable: the store cannot be reached now; try again.
        """
        round_ = self._round
        if round_ is None or round_.key != key or set(round_.reports) != set(included):
            folded = sorted(round_.reports) if round_ is not None and round_.key == key else []
            raise Corrupt(f"round {key}: folded {folded}, to include {sorted(included)}")
        return self._make_version(key, base, round_, max(population, len(included)))

    def _make_version(
        self, key: RoundKey, base: Model, round_: _OpenRound, population: int
    ) -> Model:
        """Make the next version and put it into the store, with what the server keeps of it.

        A large one goes out in parts while it is written.
        """
        version, copies = key[0], self.base.copies
        path, vectors = copies.temporary(), copies.temporary()
        reports = sorted(round_.reports.values(), key=lambda report: report.device_id)
        given = RoundInput(
            self.base.fetch(base),
            self.base.fetch(base.state) if base.state is not None else None,
            VersionInput(
                dict(base.scalars),
                round_.sums,
                reports,
                population,
                self._run.seed,
                self._run.rule,
            ),
        )
        try:
            with self._parts_of(self.keys.version(version), base) as parts:
                written = NextVersion(self._run.algorithm, given).write(path, vectors, parts)
                state = self._put_state(version, vectors) if written.has_vectors else None
            model = Model(
                version,
                self.keys.version(version),
                written.sha256,
                path.stat().st_size,
                "" if state is None else state.key,
                "" if state is None else state.sha256,
                written.changed,
                0 if state is None else state.size_bytes,
                tuple(sorted(written.scalars.items())),
            )
            if parts is None:
                with path.open("rb") as file:
                    self._store.put(model.key, file, model.size_bytes)
            copies.adopt(path, model)
            return model
        finally:
            path.unlink(missing_ok=True)
            vectors.unlink(missing_ok=True)

    def _parts_of(self, key: str, base: Model) -> AbstractContextManager[PartWriter | None]:
        sizes = self._store.sizes
        if not sizes.is_large(base.size_bytes):
            return nullcontext()
        return PartWriter(self._store, key, sizes.written_for(base.size_bytes))

    def _put_state(self, version: int, path: Path) -> Model:
        """Put the server's vectors into the store; a copy stays here for the next round."""
        key, size = self.keys.state(version), path.stat().st_size
        with path.open("rb") as file:
            self._store.put(key, file, size)
        state = Model(version, key, file_sha256(path), size)
        self.base.copies.adopt(path, state)
        return state

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
                or self.keys.is_spent_part(each, model.version)
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
            spent = [each for each in self._verified if key is None or each[0] <= key]
            dropped = [self._verified.pop(each) for each in spent]
        for verified in dropped:
            verified.spool.close()
        if self._round is not None and key is not None and self._round.key <= key:
            self._close_round()


def _sections(
    header: UpdateHeader, algorithm: Algorithm, layout: Layout, key: str
) -> tuple[Section, ...]:
    """Return what the values of an update are; Corrupt where the algorithm's clients send no such.

    An update without sections is the change of the weights alone.
    """
    counts = {section.name: section.count for section in header.sections}
    try:
        require_sections(counts or {UPDATE: layout.size}, algorithm, layout)
    except Corrupt as error:
        raise Corrupt(f"{key}: {error}") from error
    if not header.sections:
        return (Section(UPDATE, layout.size),)
    return tuple(Section(section.name, section.count) for section in header.sections)
