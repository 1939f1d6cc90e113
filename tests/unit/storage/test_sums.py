"""Sums on the wire: nothing is lost, equal sums have equal bytes, and what is false is refused."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_server.aggregation.arithmetic.exact import BlockSum, Workspace
from runtime.errors import ConfigError, Corrupt
from storage.updates.forwarded import answering
from storage.updates.header import ReportColumns, read_header
from storage.updates.info import MAX_SUM_BYTES, PREFIX, SUM_BLOCK, Origin
from storage.updates.sums import (
    SumsInfo,
    SumsWriter,
    WholeNumbers,
    packed,
    sum_chunks,
    unpacked,
)

COUNT = 5
LARGEST = float(np.finfo(np.float32).max)
ORIGIN = Origin(
    run_id="r",
    round=1,
    attempt=1,
    device_id="lab",
    base_sha256="ab" * 32,
    layout_hash="cd" * 32,
    kind="sums",
)
values = st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=COUNT, max_size=COUNT) | st.just(
    [0.0] * COUNT
)


def summed(updates: list[tuple[list[float], int]]) -> BlockSum:
    found = BlockSum(COUNT)
    for each, weight in updates:
        found.add(np.array(each, np.float32), weight, Workspace(COUNT))
    return found


@settings(max_examples=200, database=None)
@given(st.lists(st.tuples(values, st.integers(0, 1 << 60)), min_size=1, max_size=4))
def test_a_block_comes_back_as_the_same_numbers(updates: list[tuple[list[float], int]]) -> None:
    whole, work = summed(updates), Workspace(COUNT)
    unit, planes = packed(WholeNumbers(*whole.integers()))
    assert len(planes) <= MAX_SUM_BYTES
    back = BlockSum(COUNT)
    if len(planes):
        numbers = unpacked(unit, planes.tobytes(), COUNT)  # type: ignore[arg-type]
        back.merge(BlockSum.of(numbers.unit, numbers.digits), work)
    for one, other in zip(
        [back.integers()[0], *back.integers()[1]],
        [whole.integers()[0], *whole.integers()[1]],
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    # the order of the updates is not seen in the bytes
    unit_again, planes_again = packed(WholeNumbers(*summed(updates[::-1]).integers()))
    assert (unit, planes.tobytes()) == (unit_again, planes_again.tobytes())


def written(count: int = COUNT, **changes: Any) -> tuple[bytes, str]:
    """Return a file of two devices' sums, and its header's sha256."""
    body, out = io.BytesIO(), io.BytesIO()
    writer = SumsWriter(body)
    for start in range(0, count, SUM_BLOCK):
        size = min(SUM_BLOCK, count - start)
        block = BlockSum(size)
        vector = np.random.default_rng(start).normal(size=size).astype(np.float32)
        block.add(vector, 30, Workspace(size))
        writer.add("update", WholeNumbers(*block.integers()))
    reports = {"devices": ("a", "b"), "num_examples": (10, 20), "sums": (1, 1), "scalars": {}}
    info = {"weights": {"update": 30}, "population": 3, "metrics": {"loss": 0.5}} | changes
    given = SumsInfo(num_examples=30, reports=ReportColumns(**reports), **info)  # type: ignore[arg-type]
    sent = writer.finish(out, ORIGIN, given)
    assert sent.size_bytes == len(out.getvalue())
    return out.getvalue(), sent.header_sha256


def rewritten(data: bytes, change: Any) -> tuple[bytes, str]:
    """Return a file whose header was changed by who can sign it."""
    length = int.from_bytes(data[4:8], "big")
    fields = msgpack.unpackb(data[8 : 8 + length])
    change(fields)
    text = msgpack.packb(fields)
    start = PREFIX.pack(b"RGU1", len(text)) + text
    return start + data[8 + length :], hashlib.sha256(start).hexdigest()


def read(data: bytes, sha256: str) -> list[bytes]:
    stream = io.BytesIO(data)
    header = read_header(stream, header_sha256=sha256, max_bytes=1 << 30)
    return [bytes(each) for each in sum_chunks(stream, header)]


def test_several_blocks_come_back_and_answer_another_order() -> None:
    data, sha256 = written(SUM_BLOCK + 7)
    chunks = read(data, sha256)
    assert len(chunks) == 2
    stream, out = io.BytesIO(data), io.BytesIO()
    header = read_header(stream, header_sha256=sha256, max_bytes=1 << 30)
    other = Origin(**{**vars(ORIGIN), "attempt": 4, "device_id": "house"})
    sent = answering(stream, header, other, out)
    assert read(out.getvalue(), sent.header_sha256) == chunks
    again = read_header(
        io.BytesIO(out.getvalue()), header_sha256=sent.header_sha256, max_bytes=1 << 30
    )
    assert (again.attempt, again.device_id, again.metrics) == (4, "house", {"loss": 0.5})
    assert again.sums == header.sums


def set_in(*path: Any, to: Any) -> Any:
    def change(fields: dict[str, Any]) -> None:
        place: Any = fields
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_in("kind", to="delta"), "sums if it is of that kind"),
        (set_in("sums", to=None), "sums if it is of that kind"),
        (set_in("sections", to=[{"name": "update", "count": COUNT}]), "not in sections"),
        (set_in("sums", "units", 0, to=-1000), "units"),
        (set_in("sums", "units", 0, to=128), "larger than its weight allows"),
        (set_in("sums", "units", to=[]), "not those of the sums"),
        (set_in("sums", "sums", 0, "count", to=COUNT + 1), "not that of its sum"),
        (set_in("sums", "sums", 0, "count", to=1 << 60), "count"),
        (set_in("sums", "sums", 0, "weight", to="-3"), "weight"),
        (set_in("sums", "sums", 0, "weight", to="9" * 33), "weight"),
        (set_in("sums", "sums", 0, "name", to="../x"), "name"),
        (set_in("sums", "population", to=1), "more reports than devices"),
        (set_in("sums", "reports", "devices", 1, to="a"), "stands twice"),
        (set_in("sums", "reports", "devices", to=["a"]), "not as long"),
        (set_in("sums", "reports", "devices", to=["a"] * 9000), "not msgpack of the right form"),
        (set_in("sums", "reports", "sums", 0, to=2), "a sum that is not there"),
        (set_in("sums", "reports", "num_examples", 0, to=1 << 41), "num_examples"),
        (set_in("sums", "reports", "scalars", to={"loss": [1.0]}), "not as long"),
        (set_in("sums", "reports", "scalars", to={"loss": [1.0, float("nan")]}), "scalars"),
        (set_in("chunks", 0, "size", to=COUNT * (MAX_SUM_BYTES + 1)), "not that of its sum"),
        (set_in("chunks", 0, "sha256", to="00" * 32), "chunk 0 has sha256"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, said: str) -> None:
    with pytest.raises(Corrupt, match=said):
        read(*rewritten(written()[0], change))


def test_damaged_and_cut_sums_are_refused() -> None:
    data, sha256 = written()
    with pytest.raises(Corrupt, match="cut off"):
        read(data[:-1], sha256)
    with pytest.raises(Corrupt, match="bytes follow"):
        read(data + b"x", sha256)
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(Corrupt, match="chunk 0 has sha256"):
        read(flipped, sha256)


def test_more_reports_than_a_header_holds_are_said() -> None:
    names = tuple(f"{'d' * 50}-{number:05d}" for number in range(8000))
    scalars = {f"scalar-{at}": (0.5,) * len(names) for at in range(10)}
    reports = ReportColumns(
        devices=names,
        num_examples=(1,) * len(names),
        sums=(1,) * len(names),
        scalars=scalars,
    )
    writer = SumsWriter(io.BytesIO())
    writer.add("update", WholeNumbers(0, [np.arange(3)]))
    info = SumsInfo(8000, {}, {"update": 8000}, reports, 8000)
    with pytest.raises(ConfigError, match="the rows of a domain"):
        writer.finish(io.BytesIO(), ORIGIN, info)
