from __future__ import annotations

import hashlib
import io
import struct
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runtime.bounds import MAX_FINITE
from runtime.errors import Corrupt
from storage.updates.header import Chunk, read_header
from storage.updates.info import UpdateInfo
from storage.updates.stream import verified_blocks, write_update
from storage.updates.zero_runs import zero_runs

CAP = 1 << 24
vectors = arrays(
    np.float32,
    st.integers(0, 200),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
metrics = st.dictionaries(
    st.text(min_size=1, max_size=64), st.floats(-MAX_FINITE, MAX_FINITE), max_size=5
)


values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def deltas(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Runs of zeros of both signs between runs of other values."""
    zeros = st.lists(st.sampled_from([0.0, -0.0]), min_size=1, max_size=90)
    parts = draw(st.lists(zeros | st.lists(values, min_size=1, max_size=20), max_size=6))
    return np.array([value for part in parts for value in part], np.float32)


def written(
    vector: np.ndarray[Any, Any],
    chunk_params: int,
    said: dict[str, float],
    kind: Literal["delta", "weights"] = "weights",
) -> tuple[bytes, str]:
    info = UpdateInfo(
        run_id="r",
        round=0,
        attempt=1,
        device_id="d",
        base_sha256="0" * 64,
        layout_hash="1" * 64,
        kind=kind,
        num_examples=1,
        metrics=said,
    )
    out = io.BytesIO()
    result = write_update(out, info, vector, chunk_params=chunk_params)
    return out.getvalue(), result.header_sha256


def read_all(data: bytes, sha: str, size: int) -> bytes:
    stream = io.BytesIO(data)
    header = read_header(stream, header_sha256=sha, max_bytes=CAP)
    return b"".join(block.tobytes() for block in verified_blocks(stream, header, size))


@settings(deadline=None)
@given(vector=vectors, chunk_params=st.integers(1, 64), said=metrics)
def test_what_was_written_is_what_is_read(
    vector: np.ndarray[Any, Any], chunk_params: int, said: dict[str, float]
) -> None:
    data, sha = written(vector, chunk_params, said)
    assert read_all(data, sha, vector.size) == vector.tobytes()
    header = read_header(io.BytesIO(data), header_sha256=sha, max_bytes=CAP)
    assert header.metrics == said


def chunks_of(data: bytes, sha: str) -> tuple[Chunk, ...]:
    return read_header(io.BytesIO(data), header_sha256=sha, max_bytes=CAP).chunks


@settings(deadline=None)
@given(vector=deltas(), chunk_params=st.integers(1, 64))
def test_a_delta_comes_back_equal_and_carries_no_chunk_of_zeros(
    vector: np.ndarray[Any, Any], chunk_params: int
) -> None:
    data, sha = written(vector, chunk_params, {}, "delta")
    found = np.frombuffer(read_all(data, sha, vector.size), np.float32)
    assert np.array_equal(found, vector), "equal, and the sign of a zero may be lost"
    chunks, position = chunks_of(data, sha), 0
    for chunk in chunks:
        block = vector[position : position + chunk.count]
        position += chunk.count
        assert chunk.is_zero == (chunk.size == 0)
        if chunk.is_zero:
            assert not block.any()
        elif block.any():
            assert chunk.count <= chunk_params
    assert position == vector.size
    carried = sum(chunk.count for chunk in chunks if not chunk.is_zero)
    assert sum(chunk.size for chunk in chunks) == 4 * carried


@settings(deadline=None)
@given(vector=deltas(), chunk_params=st.integers(1, 64))
def test_weights_keep_every_bit_and_every_zero(
    vector: np.ndarray[Any, Any], chunk_params: int
) -> None:
    data, sha = written(vector, chunk_params, {}, "weights")
    assert read_all(data, sha, vector.size) == vector.tobytes()
    assert not any(chunk.is_zero for chunk in chunks_of(data, sha))


def runs_in_plain_python(vector: list[float], grain: int) -> list[tuple[int, int]]:
    """Each longest run of zeros that covers a whole grain."""
    found, start = [], None
    for position, value in enumerate([*vector, 1.0]):
        if value == 0:
            start = position if start is None else start
        elif start is not None:
            first_whole = -(-start // grain) * grain
            if first_whole + grain <= min(position, len(vector) // grain * grain):
                found.append((start, position))
            start = None
    return found


@given(vector=deltas(), grain=st.integers(1, 40), most=st.integers(0, 4))
def test_the_runs_are_those_that_a_plain_loop_finds(
    vector: np.ndarray[Any, Any], grain: int, most: int
) -> None:
    expected = runs_in_plain_python(vector.tolist(), grain)
    assert zero_runs(vector, 1000, grain) == expected
    some = zero_runs(vector, most, grain)
    assert len(some) == min(most, len(expected))
    assert set(some) <= set(expected)
    assert some == sorted(some)


@settings(deadline=None)
@given(vector=vectors | deltas(), chunk_params=st.integers(1, 64), choice=st.data())
def test_damage_of_any_kind_is_corrupt_and_never_accepted(
    vector: np.ndarray[Any, Any], chunk_params: int, choice: st.DataObject
) -> None:
    kind = choice.draw(st.sampled_from(["delta", "weights"]))
    data, sha = written(vector, chunk_params, {"loss": 1.0}, kind)
    position = choice.draw(st.integers(0, len(data) - 1))
    length = choice.draw(st.integers(0, len(data) - position))
    instead = choice.draw(st.binary(max_size=40))
    damaged = data[:position] + instead + data[position + length :]
    if damaged == data:
        return
    with pytest.raises(Corrupt):
        read_all(damaged, sha, vector.size)


@settings(deadline=None)
@given(text=st.binary(max_size=400))
def test_any_bytes_with_an_honest_hash_are_corrupt(text: bytes) -> None:

    start = b"RGU1" + struct.pack(">I", len(text)) + text
    with pytest.raises(Corrupt):
        read_all(start, hashlib.sha256(start).hexdigest(), 4)
