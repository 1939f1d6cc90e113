"""A run's byte work: verify an update, add it to the exact sum, make the next version.

Nothing is added before the whole update is verified and finite, and what was verified is what is
added: the verified values wait in a spool. Memory holds at most the spools' budget, the sums of a
small model and a few blocks; the sums of a large model and larger spools are files.

``verify`` may run on several threads at once; ``fold``, ``aggregate`` and ``sweep`` on one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from algorithms.base import Report
from fl_server.aggregation.arithmetic.server_half import (
    VersionInput,
    covered,
)
from fl_server.aggregation.base_models import BaseModels
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.next_version import NextVersion, RoundInput
from fl_server.aggregation.part_models import PartModels
from fl_server.aggregation.partial import (
    CountedReport,
    ReceivedSums,
    ReceivedUpdates,
    SumUp,
    distinct,
    write_sums,
)
from fl_server.aggregation.reading import (
    AggregatedRun,
    Received,
    Refused,
    RoundKey,
    SubmittedUpdate,
    UpdateReader,
)
from fl_server.aggregation.spool import MemoryBudget, unlinked_file
from fl_server.aggregation.sums import COVERAGE, RoundSums, UpdateParts
from fl_server.aggregation.verified import VerifiedUpdate
from fl_server.rounds.model import Model, Update
from runtime.bounds import MAX_EXAMPLES, plausible
from runtime.errors import Corrupt
from runtime.files import file_sha256
from storage.store.multipart_writer import PartWriter
from storage.store.objects import ObjectStore, abort_uploads
from storage.updates.forwarded import ForwardedInfo, ForwardedWriter
from storage.updates.header import read_header
from storage.updates.info import Origin

PARTIAL = "partial"
"""Whose sums are that nobody was ordered yet: they are made before the order that they answer."""

__all__ = [
    "AggregatedRun",
    "Refused",
    "RoundKey",
    "RunAggregator",
    "SubmittedUpdate",
]


@dataclass
class _OpenRound:
    key: RoundKey
    sums: RoundSums
    counted: dict[str, tuple[CountedReport, ...]] = field(default_factory=dict)

    @property
    def reports(self) -> list[CountedReport]:
        """Of every update, also of those that came in sums."""
        return distinct(self.counted)

    def unused(self, name: str) -> str:
        """Return a name for a device of a domain's that no other device here has."""
        names = {each.report.device_id for those in self.counted.values() for each in those}
        return name if name not in names else hashlib.sha256(name.encode()).hexdigest()[:32]


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
        self._reader = UpdateReader(run, store, self.base, self._parts, budget)
        self._budget = budget
        self._folder = models.folder
        self._lock = threading.Lock()
        self._verified: dict[tuple[RoundKey, str], Received] = {}
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
        verified = self._reader.read(submission, base)
        key = ((submission.round, submission.attempt), submission.device_id)
        with self._lock:
            old = self._verified.pop(key, None)
            self._verified[key] = verified
        if old is not None:
            old.spool.close()

    # --- fold and aggregate -------------------------------------------------------------------

    def fold(self, submission: SubmittedUpdate, base: Model) -> None:
        """Add an accepted update to its round's sum, once; fetch it again when it is not spooled.

        Raises:
            Refused: it was to be fetched again and is no longer what was accepted.
            Unavailable: the store cannot be reached now; try again.
        """
        key = (submission.round, submission.attempt)
        round_ = self._open_round(key)
        if submission.device_id in round_.counted:
            return
        found = self._take(key, submission.device_id)
        if found is None:
            self.verify(submission, base)
            found = self._take(key, submission.device_id)
        assert found is not None
        sender = submission.device_id
        match found:
            case ReceivedSums():
                self._fold_sums(round_, sender, found)
            case ReceivedUpdates():
                try:
                    counted = [
                        self._add(round_, round_.unused(name), examples, each, base)
                        for name, examples, each in found.updates
                    ]
                except BaseException:
                    found.spool.close()
                    self._close_round()
                    raise
                round_.counted[sender] = tuple(counted)
            case VerifiedUpdate():
                name, examples = self._run.name_of(sender), submission.update.num_examples
                round_.counted[sender] = (self._add(round_, name, examples, found, base),)

    def _add(
        self, round_: _OpenRound, name: str, examples: int, found: VerifiedUpdate, base: Model
    ) -> CountedReport:
        """Add a single update to the round."""
        report = Report(name, examples, found.scalars())
        try:
            weight = self._reader.weight(report, base)
        except BaseException:
            found.spool.close()
            raise
        try:
            has = UpdateParts(found.sections, name, found.slices)
            round_.sums.add(found.spool, has, weight)
        except BaseException:
            self._close_round()  # half an update is in the sum: it must never become a model
            raise
        names = frozenset(section.name for section in found.sections)
        names |= {f"{COVERAGE}{each}" for each in names & set(covered(self._run.algorithm))}
        return CountedReport(report, names)

    def _fold_sums(self, round_: _OpenRound, sender: str, found: ReceivedSums) -> None:
        try:
            round_.sums.add_sums(found.parts, found.weights)
        except BaseException:
            self._close_round()
            raise
        round_.counted[sender] = found.counted

    def _take(self, key: RoundKey, device_id: str) -> Received | None:
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
        return self._make_version(key, base, self._complete(key, included), population)

    def sum_up(self, key: RoundKey, included: tuple[str, ...], base: Model, told: SumUp) -> Model:
        """Put the sums of exactly the included updates into the store, as one update.

        Raises:
            Corrupt: not exactly the included updates were folded.
            Unavailable: the store cannot be reached now; try again.
        """
        round_, path = self._complete(key, included), self.base.copies.temporary()
        origin = self._partial_origin(key, base, "sums")
        try:
            with path.open("wb") as out:
                write_sums(out, round_.sums, round_.reports, origin, told, self._folder)
            return self._put_partial(key, path)
        finally:
            path.unlink(missing_ok=True)

    def pass_on(
        self, key: RoundKey, included: Mapping[str, Update], base: Model, told: SumUp
    ) -> Model:
        """Put the included updates themselves into the store, as one.

        Raises:
            Corrupt, NotFound: an update is no longer what was accepted.
            Unavailable: the store cannot be reached now; try again.
        """
        path = self.base.copies.temporary()
        try:
            with path.open("wb") as out, unlinked_file(self._folder) as body:
                writer, examples = ForwardedWriter(body), 0
                for device_id, update in sorted(included.items()):
                    with self._store.open(update.key) as stream:
                        header = read_header(
                            stream,
                            header_sha256=update.header_sha256,
                            max_bytes=update.size_bytes,
                            key=update.key,
                        )
                        examples += header.num_examples
                        writer.add(stream, header, self._run.name_of(device_id))
                info = ForwardedInfo(
                    min(examples, MAX_EXAMPLES), plausible(told.metrics), told.population
                )
                writer.finish(out, self._partial_origin(key, base, "updates"), info)
            return self._put_partial(key, path)
        finally:
            path.unlink(missing_ok=True)

    def _partial_origin(
        self, key: RoundKey, base: Model, kind: Literal["sums", "updates"]
    ) -> Origin:
        return Origin(
            run_id=self.keys.run_id,
            round=key[0],
            attempt=key[1],
            device_id=PARTIAL,
            base_sha256=base.sha256,
            layout_hash=self.base.layout(base).hash,
            kind=kind,
        )

    def _put_partial(self, key: RoundKey, path: Path) -> Model:
        """Put what a parent gets into the store."""
        model = Model(key[0], self.keys.partial(key[0]), file_sha256(path), path.stat().st_size)
        with path.open("rb") as file:
            self._store.put(model.key, file, model.size_bytes)
        return model

    def _complete(self, key: RoundKey, included: tuple[str, ...]) -> _OpenRound:
        """Return the round with exactly the included updates; Corrupt where it is not so."""
        round_ = self._round
        if round_ is None or round_.key != key or set(round_.counted) != set(included):
            folded = sorted(round_.counted) if round_ is not None and round_.key == key else []
            raise Corrupt(f"round {key}: folded {folded}, to include {sorted(included)}")
        return round_

    def _make_version(
        self, key: RoundKey, base: Model, round_: _OpenRound, population: int
    ) -> Model:
        """Make the next version and put it into the store, with what the server keeps of it.

        A large one goes out in parts while it is written.
        """
        version, copies = key[0], self.base.copies
        reports = [each.report for each in round_.reports]
        path, vectors = copies.temporary(), copies.temporary()
        given = RoundInput(
            self.base.fetch(base),
            self.base.fetch(base.state) if base.state is not None else None,
            VersionInput(
                dict(base.scalars),
                round_.sums,
                reports,
                max(population, len(reports)),
                self._run.seed,
                self._run.rule,
                version,
                self._run.transforms,
                [self._reader.weight(each, base) for each in reports],
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
