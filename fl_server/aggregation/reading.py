"""Reads what devices and domains have sent: an update, a sum of updates, or several of them.

Nothing is kept of one before all of it is verified. Several threads may read at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from algorithms.base import Algorithm, Report
from algorithms.transforms import bound_of
from algorithms.transforms.base import Transform
from fl_server.aggregation.arithmetic.combining import Combining
from fl_server.aggregation.arithmetic.server_half import (
    weight_of,
)
from fl_server.aggregation.base_models import BaseModels
from fl_server.aggregation.part_models import PartModels
from fl_server.aggregation.partial import (
    ReceivedSums,
    ReceivedUpdates,
    read_sums,
    require_sums_of,
)
from fl_server.aggregation.rules.base import Rule
from fl_server.aggregation.rules.mean import WeightedMean
from fl_server.aggregation.spool import MemoryBudget, Spool
from fl_server.aggregation.verified import VerifiedUpdate, require_norm, sections_of
from fl_server.rounds.model import Model, Update
from runtime.errors import Corrupt, NotFound
from storage.store.objects import ObjectStore
from storage.updates.forwarded import entries_of
from storage.updates.header import UpdateHeader, read_header, require_origin
from storage.updates.info import MAX_REPORTS, MAX_SUM_BYTES, Origin
from storage.updates.stream import verified_blocks
from storage.versions.keys import RunKeys
from storage.weights import Layout, Reader, Slices

_HEADER_ALLOWANCE = 2 << 20

Received: TypeAlias = VerifiedUpdate | ReceivedSums | ReceivedUpdates
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
        transforms: what is done to updates and means.
        cohort_size: how many updates a round's sum should find room for at first.
        name_of: what a device is called in reports, where a parent gets them.
    """

    keys: RunKeys
    algorithm: Algorithm
    seed: int
    cohort_size: int
    rule: Rule = field(default_factory=WeightedMean)
    transforms: tuple[Transform, ...] = ()
    name_of: Callable[[str], str] = str

    @property
    def combining(self) -> Combining:
        """How a round's updates become one."""
        return Combining(self.algorithm, self.rule)


class UpdateReader:
    """Reads the updates of one run from the store.

    Args:
        run: which run.
        base: its models.
        parts: what its devices may train of them.
        folder: where spools lie that memory should not hold.
    """

    def __init__(
        self,
        run: AggregatedRun,
        store: ObjectStore,
        base: BaseModels,
        parts: PartModels,
        budget: MemoryBudget,
    ) -> None:
        self.keys = run.keys
        self._run, self._store, self._base, self._parts = run, store, base, parts
        self._budget, self._folder = budget, base.copies.folder

    def read(self, submission: SubmittedUpdate, base: Model) -> Received:
        """Return what was sent, once all of it is verified.

        Raises:
            Refused: it can never count; says why.
            Unavailable: the store cannot be reached now; try again.
        """
        layout = self._base.layout(base)
        try:
            return self._read(submission, base, layout)
        except NotFound as error:
            raise Refused(f"no object at {submission.update.key}") from error
        except Refused:
            raise
        except Corrupt as error:
            raise Refused(str(error)) from error

    def _read(self, submission: SubmittedUpdate, base: Model, layout: Layout) -> Received:
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
        values = layout.size * (len(algorithm.sends) + 1)
        alone, summed = 4 * values + _HEADER_ALLOWANCE, MAX_SUM_BYTES * values + _HEADER_ALLOWANCE
        most = MAX_REPORTS * alone if self._run.combining.needs_updates else max(alone, summed)
        if update.size_bytes > most:
            raise Refused(f"{update.key}: {update.size_bytes} bytes, at most {most}")
        with self._store.open(update.key) as stream:
            header = read_header(
                stream, header_sha256=update.header_sha256, max_bytes=most, key=update.key
            )
            if header.sums is not None:
                require_origin(header, replace(expected, kind="sums"), update.key)
                return self._read_sums(stream, header, submission, base, layout)
            if header.forwarded is not None:
                require_origin(header, replace(expected, kind="updates"), update.key)
                return self._read_forwarded(stream, header, submission, expected, layout)
            if update.size_bytes > alone:
                raise Refused(f"{update.key}: {update.size_bytes} bytes, at most {alone}")
            require_origin(header, expected, update.key)
            if header.num_examples != update.num_examples:
                raise Refused(f"{update.key}: num_examples differs from the result message")
            return self._spooled(stream, header, layout, slices, update.key)

    def _spooled(
        self,
        stream: Reader,
        header: UpdateHeader,
        layout: Layout,
        slices: Slices | None,
        key: str,
    ) -> VerifiedUpdate:
        """Return a single update's values, verified."""
        algorithm = self._run.algorithm
        sections = sections_of(header, algorithm, layout, key)
        size = sum(section.count for section in sections)
        spool = Spool(size, self._budget, self._folder)
        try:
            for block in verified_blocks(stream, header, size, key=key):
                spool.append(block)
            require_norm(spool, sections, algorithm, bound_of(self._run.transforms))
        except BaseException:
            spool.close()
            raise
        return VerifiedUpdate(spool, sections, frozenset(algorithm.reports), slices)

    def _read_forwarded(
        self,
        stream: Reader,
        header: UpdateHeader,
        submission: SubmittedUpdate,
        expected: Origin,
        layout: Layout,
    ) -> ReceivedUpdates:
        """Read the updates that a domain passes on, each as if it had come alone."""
        update, key = submission.update, submission.update.key
        assert header.forwarded is not None
        told = (header.num_examples, header.forwarded.population)
        if told != (update.num_examples, update.population):
            raise Refused(f"{key}: num_examples or population differ from the result message")
        found: list[tuple[str, int, VerifiedUpdate]] = []
        try:
            for entry, part in entries_of(stream, header):
                what = f"{key}, {entry.device_id}"
                inner = read_header(
                    part, header_sha256=entry.header_sha256, max_bytes=entry.size, key=what
                )
                order = replace(expected, attempt=entry.attempt, device_id=entry.device_id)
                require_origin(inner, order, what)
                if inner.num_examples != entry.num_examples:
                    raise Refused(f"{what}: num_examples differs from what the domain says")
                verified = self._spooled(part, inner, layout, None, what)
                found.append((entry.device_id, entry.num_examples, verified))
        except BaseException:
            ReceivedUpdates(tuple(found)).spool.close()
            raise
        return ReceivedUpdates(tuple(found))

    def _read_sums(
        self,
        stream: Reader,
        header: UpdateHeader,
        submission: SubmittedUpdate,
        base: Model,
        layout: Layout,
    ) -> ReceivedSums:
        """Read the sums of a domain's devices, which must be weighted as they would be here."""
        update, key = submission.update, submission.update.key
        assert header.sums is not None
        if self._run.combining.needs_updates:
            raise Refused(f"{key}: this run needs the single updates, and a domain sends their sum")
        if (header.num_examples, header.sums.population) != (
            update.num_examples,
            update.population,
        ):
            raise Refused(f"{key}: num_examples or population differ from the result message")
        weigh = partial(self.weight, base=base)
        require_sums_of(header, self._run.algorithm, layout, weigh, key)
        return read_sums(stream, header, self._budget, self._folder, key)

    def weight(self, report: Report, base: Model) -> int:
        """Return an update's weight; Refused where it has none."""
        try:
            return weight_of(self._run.algorithm, report, dict(base.scalars))
        except Corrupt as error:
            raise Refused(str(error)) from error
