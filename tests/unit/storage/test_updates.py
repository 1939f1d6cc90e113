from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest

from runtime.errors import ConfigError, Corrupt
from runtime.records import FieldError
from storage.updates.header import UpdateHeader, read_header, require_origin
from storage.updates.info import MAX_HEADER_BYTES, Origin, UpdateInfo
from storage.updates.stream import verified_blocks, write_update

ORIGIN = {
    "run_id": "run-1",
    "round": 3,
    "attempt": 0,
    "device_id": "pi-07",
    "base_sha256": "a" * 64,
    "layout_hash": "b" * 64,
    "kind": "delta",
}
CAP = 1 << 30


def info(**changes: Any) -> UpdateInfo:
    fields = {**ORIGIN, "num_examples": 40, "metrics": {"loss": 0.5}, **changes}
    return UpdateInfo(**fields)


def written(vector: np.ndarray[Any, Any], **options: Any) -> tuple[bytes, str]:
    out = io.BytesIO()
    result = write_update(out, info(), vector, **options)
    assert result.size_bytes == len(out.getvalue())
    return out.getvalue(), result.header_sha256


def read_all(
    data: bytes, header_sha256: str, size: int
) -> tuple[UpdateHeader, np.ndarray[Any, Any]]:
    stream = io.BytesIO(data)
    header = read_header(stream, header_sha256=header_sha256, max_bytes=CAP, key="k.upd")
    blocks = [block.copy() for block in verified_blocks(stream, header, size, key="k.upd")]
    return header, np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def with_header(data: bytes, **changes: Any) -> tuple[bytes, str]:
    """The update with changed header fields, hashed anew as a hostile device would."""
    (length,) = struct.unpack(">I", data[4:8])
    fields = msgpack.unpackb(data[8 : 8 + length])
    for path, value in changes.items():
        if path.startswith("chunk_"):
            fields["chunks"][0][path.removeprefix("chunk_")] = value
        elif value is None:
            del fields[path]
        else:
            fields[path] = value
    return framed(msgpack.packb(fields), data[8 + length :])


def framed(text: bytes, chunks: bytes = b"") -> tuple[bytes, str]:
    start = b"RGU1" + struct.pack(">I", len(text)) + text
    return start + chunks, hashlib.sha256(start).hexdigest()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_examples": 0}, "num_examples: must be at least 1"),
        ({"metrics": {"loss": float("nan")}}, "metrics.loss: must be at least"),
        ({"metrics": {"l" * 65: 1.0}}, "metrics: must be at most 64 long"),
        ({"metrics": {str(number): 1.0 for number in range(65)}}, "metrics: must be at most 64"),
        ({"kind": "gradients"}, "kind: must be one of 'delta', 'weights'"),
    ],
)
def test_what_a_server_would_refuse_is_not_written(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        info(**changes)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 25])
def test_an_update_comes_back_as_it_was(size: int) -> None:
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    header, found = read_all(*written(vector, chunk_params=10), size)
    assert found.tobytes() == vector.tobytes()
    assert [chunk.count for chunk in header.chunks] == [10] * (size // 10) + [size % 10] * (
        size % 10 > 0
    )
    assert header.device_id == "pi-07"
    assert header.metrics == {"loss": 0.5}
    assert header.codec == "float32"


class OnlyRead:
    """A stream without readinto that hands out little at a time."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, 7))


def test_a_stream_that_hands_out_seven_bytes_at_a_time_will_do() -> None:
    vector = np.arange(25, dtype=np.float32)
    data, sha = written(vector, chunk_params=10)
    stream = OnlyRead(data)
    header = read_header(stream, header_sha256=sha, max_bytes=CAP)
    found = np.concatenate([block.copy() for block in verified_blocks(stream, header, 25)])
    assert found.tolist() == vector.tolist()


def test_every_single_flipped_bit_is_refused() -> None:
    data, sha = written(np.arange(6, dtype=np.float32), chunk_params=4)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(Corrupt, match=r"k\.upd"):
            read_all(bytes(damaged), sha, 6)


def test_every_truncation_and_any_trailing_byte_is_refused() -> None:
    data, sha = written(np.arange(6, dtype=np.float32), chunk_params=4)
    for length in range(len(data)):
        with pytest.raises(Corrupt, match=r"k\.upd"):
            read_all(data[:length], sha, 6)
    with pytest.raises(Corrupt, match="bytes follow the last chunk"):
        read_all(data + b"\0", sha, 6)


def test_chunks_in_another_order_are_refused() -> None:
    data, sha = written(np.arange(8, dtype=np.float32), chunk_params=4)
    swapped = data[:-32] + data[-16:] + data[-32:-16]
    with pytest.raises(Corrupt, match="chunk 0 has sha256"):
        read_all(swapped, sha, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_written_nor_read(bad: float) -> None:
    vector = np.arange(6, dtype=np.float32)
    data, _ = written(vector, chunk_params=4)
    vector[5] = bad
    with pytest.raises(Corrupt, match="parameter 5 is not finite"):
        write_update(io.BytesIO(), info(), vector)
    chunk = vector[4:].tobytes()
    (length,) = struct.unpack(">I", data[4:8])
    fields = msgpack.unpackb(data[8 : 8 + length])
    fields["chunks"][1]["sha256"] = hashlib.sha256(chunk).hexdigest()
    forged, sha = framed(msgpack.packb(fields), data[8 + length : -len(chunk)] + chunk)
    with pytest.raises(Corrupt, match=r"k\.upd: parameter 5 is not finite"):
        read_all(forged, sha, 6)


def test_a_vector_of_another_size_is_refused_before_a_chunk_is_read() -> None:
    data, sha = written(np.arange(6, dtype=np.float32))
    with pytest.raises(Corrupt, match="6 parameters, the layout has 7"):
        read_all(data, sha, 7)


FORGED: dict[str, dict[str, Any]] = {
    "schema": {"schema_version": 2},
    "schema as a float": {"schema_version": 1.0},
    "no examples": {"num_examples": 0},
    "examples as a bool": {"num_examples": True},
    "examples as text": {"num_examples": "40"},
    "a field missing": {"num_examples": None},
    "a field too many": {"note": "x"},
    "unknown kind": {"kind": "gradient"},
    "a path for a device": {"device_id": "../pi"},
    "hash in capitals": {"base_sha256": "A" * 64},
    "a metric not finite": {"metrics": {"loss": float("nan")}},
    "65 metrics": {"metrics": {str(index): 1.0 for index in range(65)}},
    "a metric as text": {"metrics": {"loss": "low"}},
    "chunks not a list": {"chunks": {"a": 1}},
    "a chunk of nothing": {"chunk_count": 0},
    "a negative chunk": {"chunk_size": -1},
    "a chunk bomb": {"chunk_size": 1 << 40},
    "a count bomb": {"chunk_count": 1 << 40},
    "a chunk hash cut": {"chunk_sha256": "ab"},
    "codec unknown": {"codec": "gzip"},
    "codec as a path": {"codec": "os.path"},
    "codec base": {"codec": "base"},
    "size against count": {"chunk_size": 20, "chunk_count": 6},
    "size above count": {"chunk_size": 28, "chunk_count": 6},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_a_well_hashed_header_that_breaks_a_rule_is_refused(changes: dict[str, Any]) -> None:
    data, _ = written(np.arange(6, dtype=np.float32))
    with pytest.raises(Corrupt, match=r"k\.upd"):
        read_all(*with_header(data, **changes), 6)


NOTHING = hashlib.sha256().hexdigest()
ZEROS = {"size": 0, "count": 6, "sha256": NOTHING}
FORGED_ZEROS: dict[str, tuple[dict[str, Any], str]] = {
    "in weights": ({"kind": "weights"}, "only a delta"),
    "with a hash of something": (
        {"chunks": [{**ZEROS, "sha256": "c" * 64}]},
        "sha256 of something",
    ),
    "a count of nothing": ({"chunks": [{**ZEROS, "count": 0}]}, "greater than or equal to 1"),
    "a count bomb": ({"chunks": [{**ZEROS, "count": 1 << 40}]}, "less than or equal to"),
    "more than the layout": ({"chunks": [ZEROS, ZEROS]}, "12 parameters, the layout has 6"),
    "less than the layout": ({"chunks": [{**ZEROS, "count": 5}]}, "5 parameters"),
    "far more": ({"chunks": [{**ZEROS, "count": 1 << 22}] * 8192}, f"{1 << 35} parameters"),
    "bytes after": ({}, "bytes follow the last chunk"),
}


@pytest.mark.parametrize(("changes", "said"), FORGED_ZEROS.values(), ids=FORGED_ZEROS)
def test_zeros_that_a_hostile_header_claims_are_refused_in_little_memory(
    changes: dict[str, Any], said: str
) -> None:
    data, _ = written(np.zeros(6, np.float32), chunk_params=6)
    forged, sha = with_header(data, **changes)
    tail = b"" if changes else b"\0"
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt, match=rf"k\.upd: .*{said}"):
            read_all(forged + tail, sha, 6)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


def test_a_model_of_zeros_is_read_in_little_memory() -> None:
    size = 30 << 20
    data, sha = written(np.zeros(size, np.float32))
    assert len(data) < 2000
    stream = io.BytesIO(data)
    header = read_header(stream, header_sha256=sha, max_bytes=CAP)
    tracemalloc.start()
    try:
        counts = [block.size for block in verified_blocks(stream, header, size) if not block.any()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(counts) == size
    assert peak < 2 << 20


def test_nobody_can_write_into_the_zeros_that_all_blocks_share() -> None:
    stream = io.BytesIO(data := written(np.zeros(8, np.float32), chunk_params=4)[0])
    header = read_header(
        stream, header_sha256=hashlib.sha256(data).hexdigest(), max_bytes=CAP, key="k.upd"
    )
    (block,) = verified_blocks(stream, header, 8)
    with pytest.raises(ValueError, match="read-only"):
        block[0] = 1


def test_a_trained_head_on_a_frozen_backbone_is_all_that_is_sent() -> None:
    vector = np.zeros(3_000_000, np.float32)
    vector[2_500_123:2_510_001] = 0.5
    data, sha = written(vector)
    header, found = read_all(data, sha, vector.size)
    assert found.tobytes() == vector.tobytes()
    assert [(chunk.size, chunk.count) for chunk in header.chunks] == [
        (0, 2_500_123),
        (4 * 9_878, 9_878),
        (0, 489_999),
    ]


def test_the_most_runs_that_a_header_can_say_are_the_longest() -> None:
    grain, rows = 1 << 12, 20_000
    vector = np.zeros(rows * grain, np.float32)
    vector[:: 2 * grain] = 1  # ten thousand runs, each of two grains less one value
    vector[4 * grain] = vector[6 * grain] = 0  # and one of six
    data, sha = written(vector)
    header, found = read_all(data, sha, vector.size)
    assert found.tobytes() == vector.tobytes()
    assert len(header.chunks) <= 8192
    assert len(data) - header.chunk_bytes <= MAX_HEADER_BYTES
    assert max(chunk.count for chunk in header.chunks if chunk.is_zero) == 6 * grain - 1
    assert header.chunk_bytes < 0.7 * vector.nbytes


BOMBS = {
    "nothing": b"",
    "not msgpack": b"\xc1\xc1",
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a text of 4 billion": b"\xdb\xff\xff\xff\xff",
    "nested arrays": b"\xdd\x00\x07\xff\xff" * 200_000,
    "nested small arrays": b"\x91" * 900_000,
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a list as a key": b"\x81\x90\x01",
    "two objects": b"\x80\x80",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "bytes": b"\xc4\x01a",
    "bad UTF-8": b"\x81\xa1\xff\x01",
    "a number": b"\x01",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_header_bomb_is_refused_within_bounded_memory(text: bytes) -> None:
    data, sha = framed(text)
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt, match=r"k\.upd"):
            read_header(io.BytesIO(data), header_sha256=sha, max_bytes=CAP, key="k.upd")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160 << 20


def test_a_key_that_stands_twice_is_refused() -> None:
    data, _ = written(np.arange(6, dtype=np.float32))
    (length,) = struct.unpack(">I", data[4:8])
    text = data[8 : 8 + length]
    fields = msgpack.unpackb(text)
    doubled = (
        msgpack.Packer().pack_map_header(len(fields) + 1)
        + b"".join(msgpack.packb(part) for item in fields.items() for part in item)
        + msgpack.packb("num_examples")
        + msgpack.packb(1_000_000)
    )
    with pytest.raises(Corrupt, match="not msgpack of the right form"):
        read_all(*framed(doubled, data[8 + length :]), 6)


def test_a_chunk_that_claims_more_than_its_codec_needs_is_refused_unread() -> None:
    data, _ = written(np.arange(6, dtype=np.float32))
    with pytest.raises(Corrupt, match="chunk 0 takes 16777216 bytes for 6"):
        read_all(*with_header(data, chunk_size=1 << 24), 6)


def test_a_header_longer_than_its_bound_is_not_even_read() -> None:
    data = b"RGU1" + struct.pack(">I", MAX_HEADER_BYTES + 1)
    with pytest.raises(Corrupt, match="a header of 1048577 bytes"):
        read_header(io.BytesIO(data), header_sha256="0" * 64, max_bytes=CAP)


def test_an_update_beyond_the_size_cap_is_refused_at_its_header() -> None:
    data, sha = written(np.arange(6, dtype=np.float32))
    read_header(io.BytesIO(data), header_sha256=sha, max_bytes=len(data))
    with pytest.raises(Corrupt, match="at most"):
        read_header(io.BytesIO(data), header_sha256=sha, max_bytes=len(data) - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "run-2"),
        ("round", 4),
        ("attempt", 1),
        ("device_id", "pi-08"),
        ("base_sha256", "c" * 64),
        ("layout_hash", "c" * 64),
        ("kind", "weights"),
    ],
)
def test_an_update_for_another_order_is_refused_by_the_field(field: str, value: object) -> None:
    data, sha = written(np.arange(6, dtype=np.float32))
    header, _ = read_all(data, sha, 6)
    require_origin(header, Origin(**ORIGIN))
    with pytest.raises(Corrupt, match=f"its {field} is"):
        require_origin(header, Origin(**{**ORIGIN, field: value}))


def test_a_chunk_size_that_no_reader_takes_is_refused_at_writing() -> None:
    for chunk_params in (0, (1 << 22) + 1):
        with pytest.raises(ConfigError):
            write_update(io.BytesIO(), info(), np.zeros(4, np.float32), chunk_params=chunk_params)
    with pytest.raises(ConfigError, match="10000 parameters do not go into chunks of 1"):
        write_update(io.BytesIO(), info(), np.zeros(10_000, np.float32), chunk_params=1)
    with pytest.raises(ConfigError, match="codec 'zip' is not one of float32"):
        write_update(io.BytesIO(), info(), np.zeros(4, np.float32), codec="zip")


def test_reading_holds_one_chunk_and_not_the_update() -> None:
    size, chunk_params = 4 << 20, 1 << 18
    data, sha = written(np.ones(size, np.float32), chunk_params=chunk_params)
    stream = io.BytesIO(data)
    header = read_header(stream, header_sha256=sha, max_bytes=CAP)
    tracemalloc.start()
    try:
        total = sum(float(block[0]) for block in verified_blocks(stream, header, size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 16
    assert peak < 3 * 4 * chunk_params
