"""Sums of other servers: a domain's are added to a round's as they are, exactly.

A domain sends the exact sum of its devices' updates, and their reports. What a server makes of
them is what it would make of the single updates, bit for bit: the sums are the same numbers, and
all else is a function of the reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from algorithms.base import BLOCK, Algorithm, Report
from fl_server.aggregation.arithmetic.exact import BlockSum, Workspace
from fl_server.aggregation.arithmetic.server_half import covered, section_sizes
from fl_server.aggregation.spool import MemoryBudget, Spool, unlinked_file
from fl_server.aggregation.sums import COVERAGE, RoundSums
from fl_server.aggregation.verified import VerifiedUpdate
from runtime.bounds import MAX_EXAMPLES, plausible
from runtime.errors import ConfigError, Corrupt
from storage.updates.header import ReportColumns, UpdateHeader
from storage.updates.info import MAX_REPORTS, SUM_BLOCK, Origin
from storage.updates.stream import WrittenUpdate
from storage.updates.sums import (
    SumsInfo,
    SumsWriter,
    WholeNumbers,
    block_count,
    require_readable,
    sum_chunks,
    unpacked,
)
from storage.weights import Layout, Reader

assert SUM_BLOCK == BLOCK  # a chunk of a sum is a block of the server's


@dataclass(frozen=True)
class CountedReport:
    """What is known of one update that counts, and the names of the sums that it is in."""

    report: Report
    sums: frozenset[str]


@dataclass(frozen=True)
class SumUp:
    """What a domain says of its sums beside them.

    Attributes:
        population: how many devices the run knows below it.
        metrics: the devices', as means.
    """

    population: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class SumSpool:
    """The verified chunks of sums: in memory within the budget, else in an unlinked file."""

    def __init__(self, header: UpdateHeader, budget: MemoryBudget, folder: Path) -> None:
        self._budget = budget
        self._reserved = header.chunk_bytes if budget.take(header.chunk_bytes) else 0
        self._chunks = header.chunks
        self._data: list[bytes] = []
        self._file: BinaryIO | None = None
        if header.chunk_bytes and not self._reserved:
            self._file = unlinked_file(folder)

    def append(self, data: memoryview) -> None:
        """Keep a copy of the next chunk."""
        if self._file is None:
            self._data.append(bytes(data))
            return
        while data:
            data = data[self._file.write(data) :]

    def read(self, index: int) -> memoryview:
        """Return a chunk."""
        if self._file is None:
            return memoryview(self._data[index])
        self._file.seek(sum(chunk.size for chunk in self._chunks[:index]))
        data = self._file.read(self._chunks[index].size)
        if len(data) != self._chunks[index].size:
            raise Corrupt("a spool file ends early; is the disk full?")
        return memoryview(data)

    def close(self) -> None:
        """Give the memory or the disk back."""
        self._data = []
        if self._file is not None:
            self._file.close()
            self._file = None
        self._budget.give(self._reserved)
        self._reserved = 0


class SumPart:
    """One name's sum; the spool is closed with the last of its parts."""

    def __init__(self, spool: SumSpool, size: int, units: Sequence[int], first: int) -> None:
        self.size = size
        self._spool, self._units, self._first = spool, units, first
        self._open_parts: set[int] = set()

    def shared_by(self, open_parts: set[int]) -> SumPart:
        """Count as one of the parts that are open."""
        self._open_parts = open_parts
        open_parts.add(self._first)
        return self

    def add_to(self, block: BlockSum, start: int, work: Workspace) -> None:
        """Add the block that begins at ``start``; its weights are in it."""
        index = start // BLOCK
        data = self._spool.read(self._first + index)
        if data:
            numbers = unpacked(self._units[index], data, block.count)
            block.merge(BlockSum.of(numbers.unit, numbers.digits), work)

    def close(self) -> None:
        """Close the spool if no other part is open."""
        self._open_parts.discard(self._first)
        if not self._open_parts:
            self._spool.close()


@dataclass(frozen=True)
class ReceivedSums:
    """Verified sums: their values, their weights, and of which updates they are."""

    spool: SumSpool
    parts: Mapping[str, SumPart]
    weights: Mapping[str, int]
    counted: tuple[CountedReport, ...]


class Spools:
    """Several spools, which are closed together."""

    def __init__(self, spools: Iterable[Spool]) -> None:
        self._spools = list(spools)

    def close(self) -> None:
        """Give memory and disk back."""
        for each in self._spools:
            each.close()


@dataclass(frozen=True)
class ReceivedUpdates:
    """Verified updates that a domain passes on, with the names of their devices and examples."""

    updates: tuple[tuple[str, int, VerifiedUpdate], ...]

    @property
    def spool(self) -> Spools:
        """Where all of them are."""
        return Spools(each.spool for _, _, each in self.updates)


def read_sums(
    stream: Reader, header: UpdateHeader, budget: MemoryBudget, folder: Path, key: str
) -> ReceivedSums:
    """Return verified sums, with their spool.

    Args:
        stream: at the first chunk.

    Raises:
        Corrupt: they are not what the header says.
    """
    sums = require_readable(header, key)
    spool = SumSpool(header, budget, folder)
    try:
        for data in sum_chunks(stream, header, key=key):
            spool.append(data)
    except BaseException:
        spool.close()
        raise
    parts, first, open_parts = {}, 0, set[int]()
    for entry in sums.sums:
        units = sums.units[first : first + block_count(entry.count)]
        parts[entry.name] = SumPart(spool, entry.count, units, first).shared_by(open_parts)
        first += len(units)
    weights = {entry.name: int(entry.weight) for entry in sums.sums}
    return ReceivedSums(spool, parts, weights, counted_in(header))


def counted_in(header: UpdateHeader) -> tuple[CountedReport, ...]:
    """Return the reports of a header's sums."""
    assert header.sums is not None
    columns, names = header.sums.reports, [entry.name for entry in header.sums.sums]
    return tuple(
        CountedReport(
            Report(
                device_id,
                columns.num_examples[row],
                {name: column[row] for name, column in columns.scalars.items()},
            ),
            frozenset(name for at, name in enumerate(names) if columns.sums[row] >> at & 1),
        )
        for row, device_id in enumerate(columns.devices)
    )


def require_sums_of(
    header: UpdateHeader,
    algorithm: Algorithm,
    layout: Layout,
    weigh: Callable[[Report], int],
    key: str,
) -> None:
    """Raise Corrupt unless sums are such as the algorithm's devices give, weighted as they report.

    Args:
        weigh: returns an update's weight.
    """
    sums = require_readable(header, key)
    sizes = section_sizes(algorithm, layout)
    sizes |= {f"{COVERAGE}{name}": layout.size for name in covered(algorithm)}
    for entry in sums.sums:
        if sizes.get(entry.name) != entry.count:
            raise Corrupt(
                f"{key}: a sum {entry.name!r} of {entry.count} values, which the algorithm's "
                "updates do not have"
            )
    counted = counted_in(header)
    for each in counted:
        lacking = set(algorithm.reports) - (each.sums & each.report.scalars.keys())
        if lacking:
            device = each.report.device_id
            raise Corrupt(f"{key}: {device} has no {min(lacking)!r}, which its algorithm reports")
    total = sum(each.report.num_examples for each in counted)
    if header.num_examples != min(total, MAX_EXAMPLES):
        raise Corrupt(f"{key}: {header.num_examples} examples, its reports have {total}")
    weighed = [(each, weigh(each.report)) for each in counted]
    for entry in sums.sums:
        weight = sum(own for each, own in weighed if entry.name in each.sums)
        if str(weight) != entry.weight:
            raise Corrupt(
                f"{key}: the weights in its sum {entry.name!r} are {entry.weight} and by its "
                f"reports {weight}; do the domain and this server have one version of the "
                "algorithm?"
            )


def distinct(counted: Mapping[str, Iterable[CountedReport]]) -> list[CountedReport]:
    """Return all reports in an order that depends on neither names nor grouping.

    Where devices of several senders have one name, each gets one of its own.

    Args:
        counted: by sender.
    """
    rows = [(sender, each) for sender, those in counted.items() for each in those]
    seen: dict[str, int] = {}
    for _, each in rows:
        seen[each.report.device_id] = seen.get(each.report.device_id, 0) + 1
    found = [
        each if seen[each.report.device_id] == 1 else _named(each, _own_name(sender, each))
        for sender, each in rows
    ]
    return sorted(found, key=_place)


def _place(each: CountedReport) -> tuple[object, ...]:
    report = each.report
    return (report.num_examples, sorted(report.scalars.items()), report.device_id)


def _own_name(sender: str, each: CountedReport) -> str:
    text = f"{sender}/{each.report.device_id}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _named(each: CountedReport, name: str) -> CountedReport:
    return replace(each, report=replace(each.report, device_id=name))


def write_sums(
    out: BinaryIO,
    sums: RoundSums,
    counted: Sequence[CountedReport],
    origin: Origin,
    told: SumUp,
    folder: Path,
) -> WrittenUpdate:
    """Write a round's sums as an update.

    Raises:
        ConfigError: there are more reports than one update may have.
    """
    if len(counted) > MAX_REPORTS:
        raise ConfigError(
            f"{len(counted)} devices in one round, of which a domain can tell its parent "
            f"{MAX_REPORTS}; set its cohort.size, or divide it"
        )
    with unlinked_file(folder) as body:
        writer = SumsWriter(body)
        exact = sums.exact
        for name, (size, each) in exact.items():
            for start in range(0, size, BLOCK):
                writer.add(name, WholeNumbers(*each.integers(start)))
        info = SumsInfo(
            min(sum(each.report.num_examples for each in counted), MAX_EXAMPLES),
            plausible(told.metrics),
            {name: each.weight for name, (_, each) in exact.items()},
            _columns(counted, list(exact)),
            max(told.population, len(counted)),
        )
        return writer.finish(out, origin, info)


def _columns(counted: Sequence[CountedReport], names: Sequence[str]) -> ReportColumns:
    reports = [each.report for each in counted]
    scalars = sorted({name for report in reports for name in report.scalars})
    return ReportColumns(
        devices=tuple(report.device_id for report in reports),
        num_examples=tuple(report.num_examples for report in reports),
        sums=tuple(
            sum(1 << at for at, name in enumerate(names) if name in each.sums) for each in counted
        ),
        scalars={name: tuple(report.scalars[name] for report in reports) for name in scalars},
    )
