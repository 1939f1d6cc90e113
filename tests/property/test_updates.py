from __future__ import annotations

import hashlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runtime.errors import Corrupt
from storage.headers import UpdateInfo, read_header
from storage.updates import verified_blocks, write_update

CAP = 1 << 24
vectors = arrays(
    np.float32,
    st.integers(0, 200),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
metrics = st.dictionaries(st.text(min_size=1, max_size=64), st.floats(-1e300, 1e300), max_size=5)


def written(
    vector: np.ndarray[Any, Any], chunk_params: int, said: dict[str, float]
) -> tuple[bytes, str]:
    info = UpdateInfo(
        run_id="r",
        round=0,
        attempt=1,
        device_id="d",
        base_sha256="0" * 64,
        layout_hash="1" * 64,
        kind="weights",
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


@settings(deadline=None)
@given(vector=vectors, chunk_params=st.integers(1, 64), choice=st.data())
def test_damage_of_any_kind_is_corrupt_and_never_accepted(
    vector: np.ndarray[Any, Any], chunk_params: int, choice: st.DataObject
) -> None:
    data, sha = written(vector, chunk_params, {"loss": 1.0})
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
