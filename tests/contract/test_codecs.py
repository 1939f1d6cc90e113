"""The laws that every codec keeps; a new file in storage/codecs/ is found by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runtime.errors import ConfigError, Corrupt
from storage import codecs
from storage.weights import Vector

every_codec = pytest.mark.parametrize("name", codecs.names())
blocks = arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_infinity=False),
)


def test_the_registry_lists_the_files() -> None:
    folder = Path(codecs.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert codecs.names() == sorted(files)
    assert "float32" in codecs.names()


@pytest.mark.parametrize("name", ["", "gzip", "base", "__init__", "os", "float32.py", "../float32"])
def test_a_name_that_is_not_listed_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(ConfigError, match="float32"):
        codecs.load(name)


@every_codec
def test_an_unknown_setting_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"codec {name}: .*nonsense"):
        codecs.load(name, {"nonsense": 1})


@every_codec
@settings(deadline=None)
@given(block=blocks)
def test_a_block_comes_back_within_the_declared_bound(name: str, block: Vector) -> None:
    codec = codecs.load(name)
    before = block.copy()
    data = bytes(codec.encode(block))
    found = codec.decode(data, block.size)
    assert block.tobytes() == before.tobytes()
    assert found.shape == block.shape
    assert found.dtype == np.float32
    assert 0 < len(data) <= codec.max_bytes(block.size), "no bytes mean zeros in an update"
    if codec.lossless:
        assert codec.error_bound(block) == 0
        assert found.tobytes() == block.tobytes()
    else:
        assert float(np.abs(found - block).max()) <= codec.error_bound(block)


@every_codec
@pytest.mark.parametrize("gap", [0, 1, 65_534, 65_535, 65_536, 65_537, 131_071, 131_072, 200_000])
def test_values_that_are_far_apart_come_back(name: str, gap: int) -> None:
    codec, block = codecs.load(name), np.zeros(gap + 3, np.float32)
    block[0], block[gap + 1] = 1.5, -2.5
    for each in (block, block[1:]):
        data = bytes(codec.encode(each))
        assert len(data) <= codec.max_bytes(each.size)
        if codec.lossless:
            assert codec.decode(data, each.size).tobytes() == each.tobytes()


@every_codec
@settings(deadline=None)
@given(block=blocks)
def test_encoding_is_a_function_of_the_block(name: str, block: Vector) -> None:
    codec = codecs.load(name)
    assert bytes(codec.encode(block)) == bytes(codec.encode(block.copy()))


@every_codec
@settings(deadline=None)
@given(data=st.binary(max_size=600), count=st.integers(1, 300))
def test_any_bytes_decode_to_the_count_or_are_corrupt(name: str, data: bytes, count: int) -> None:
    try:
        found = codecs.load(name).decode(data, count)
    except Corrupt as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert found.shape == (count,)
        assert found.dtype == np.float32
