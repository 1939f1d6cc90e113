"""The archive reader takes what the writer writes, and nothing else."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import Corrupt
from storage.bundles.archive import blocks, first_member, is_name, read_archive, write_archive

PARTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
FILES = st.dictionaries(NAMES, st.binary(max_size=300), min_size=1, max_size=8).map(
    lambda files: list(files.items())
)


def written(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    write_archive(out, files)
    return out.getvalue()


@settings(max_examples=50)
@given(FILES)
def test_what_is_written_is_read_and_any_unzip_can_too(files: list[tuple[str, bytes]]) -> None:
    try:
        data = written(files)
    except Corrupt:
        return  # two spellings of one name, or a file that is a folder too
    file = io.BytesIO(data)
    members = read_archive(file, "x")
    read = [(member.name, b"".join(blocks(file, member))) for member in members]
    assert read == files
    assert written(read) == data
    with zipfile.ZipFile(file) as archive:
        assert [(name, archive.read(name)) for name in archive.namelist()] == files


@settings(max_examples=50)
@given(FILES, st.data())
def test_no_byte_can_be_changed_added_or_left_out(
    files: list[tuple[str, bytes]], draw: st.DataObject
) -> None:
    try:
        data = written(files)
    except Corrupt:
        return
    place = draw.draw(st.integers(0, len(data) - 1))
    other = draw.draw(st.integers(1, 255))
    for wrong in (
        data[:place] + bytes([data[place] ^ other]) + data[place + 1 :],
        data[:place] + bytes([other]) + data[place:],
        data[:place],
        data + bytes([other]),
    ):
        file = io.BytesIO(wrong)
        try:
            members = read_archive(file, "x")
        except Corrupt:
            continue
        # an archive all the same: then it is the very one that these members give
        again = [(member.name, b"".join(blocks(file, member))) for member in members]
        assert written(again) == wrong
        assert again != files


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_by_one_error(data: bytes) -> None:
    for wrong in (data, b"PK\3\4" + data):
        with pytest.raises(Corrupt):
            read_archive(io.BytesIO(wrong), "x")
        with pytest.raises(Corrupt):
            first_member(io.BytesIO(wrong), "x", 100)


@given(st.text(max_size=30))
def test_a_name_stays_below_its_folder(name: str) -> None:
    if is_name(name):
        assert all(part and part[0] not in ".-" for part in name.split("/"))
        assert "\\" not in name
        assert name.isascii()
