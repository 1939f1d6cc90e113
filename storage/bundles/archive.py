"""A canonical archive: a zip of uncompressed files whose every byte follows from its members.

Any unzip can list it. Reading accepts only what writing produces, byte for byte, so that a hostile
archive can hide nothing: no compression, no links, no comments, no second entry for a name, no
bytes between or after the members, no headers that contradict each other. The same members give the
same archive on every machine.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from runtime.errors import ConfigError, Corrupt

MAX_MEMBERS = 512
MAX_NAME_CHARS = 200
MAX_ARCHIVE_BYTES = 1 << 30
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,8}}")
_BLOCK_BYTES = 1 << 18
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UNIX = 20, 0x0314
_DAY = 0x21  # 1 January 1980, the first day that a zip can have
_FILE_MODE = 0o100644 << 16
Source: TypeAlias = bytes | Path


@dataclass(frozen=True)
class Member:
    """One file of an archive: its name, the offset and the number of its bytes, their CRC-32."""

    name: str
    start: int
    size: int
    crc: int


def is_name(name: str) -> bool:
    """Whether it is a valid name of a member: a plain relative path without hidden parts."""
    return len(name) <= MAX_NAME_CHARS and _NAME.fullmatch(name) is not None


def require_names(names: Sequence[str], where: str) -> None:
    """Raise unless files of these names can be in one folder on any system.

    Raises:
        Corrupt: too many, a name that is not allowed, one twice, or a file that is a folder too.
    """
    if len(names) > MAX_MEMBERS:
        raise Corrupt(f"{where}: {len(names)} files, at most {MAX_MEMBERS}")
    taken: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if not is_name(name):
            raise Corrupt(f"{where}: the name {name!r} is not allowed")
        # some systems treat names that differ in case as one file
        folded = name.casefold()
        parts = folded.split("/")
        folders |= {"/".join(parts[:count]) for count in range(1, len(parts))}
        if folded in taken:
            raise Corrupt(f"{where}: there are two files {name!r}")
        taken.add(folded)
    if both := taken & folders:
        raise Corrupt(f"{where}: {min(both)!r} is a file and a folder")


def write_archive(out: BinaryIO, sources: Sequence[tuple[str, Source]]) -> None:
    """Write files under their names, in the given order.

    Raises:
        Corrupt: the names are not valid, or the archive is too large.
        ConfigError: a file changed while it was read.
    """
    require_names([name for name, _ in sources], "archive")
    offset = 0
    members = []
    for name, source in sources:
        size, crc = _measure(source)
        member = Member(name, offset + _LOCAL.size + len(name), size, crc)
        _require_size(member.start + size)
        out.write(_local(member))
        if _copy(source, out) != (size, crc):
            raise ConfigError(f"{source!s:.200} changed while it was packed")
        members.append(member)
        offset = member.start + size
    out.write(_directory(members, offset))


def read_archive(file: BinaryIO, where: str) -> list[Member]:
    """Return an archive's members after every byte of the file was checked, in bounded memory.

    Args:
        where: names the file in the error.

    Raises:
        Corrupt: it is not what :func:`write_archive` writes.
    """
    members: list[Member] = []
    offset = 0
    file.seek(0)
    while len(header := file.read(_LOCAL.size)) == _LOCAL.size and header[:4] == b"PK\3\4":
        if len(members) == MAX_MEMBERS:
            raise Corrupt(f"{where}: more than {MAX_MEMBERS} files")
        member = _member(file, header, offset, where)
        _require_size(member.start + member.size)
        if _crc_of(file, member.size) != member.crc:
            raise Corrupt(f"{where}: {member.name} is damaged or cut short")
        members.append(member)
        offset = member.start + member.size
    require_names([member.name for member in members], where)
    if not members:
        raise Corrupt(f"{where}: not such an archive")
    expected = _directory(members, offset)
    file.seek(offset)
    if file.read(len(expected) + 1) != expected:
        raise Corrupt(f"{where}: there are bytes after its last file that do not belong there")
    return members


def first_member(file: BinaryIO, where: str, most: int) -> tuple[Member, bytes]:
    """Return the first member and its bytes; nothing after it is read.

    Raises:
        Corrupt: it is missing, damaged, or larger than ``most``.
    """
    file.seek(0)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size or header[:4] != b"PK\3\4":
        raise Corrupt(f"{where}: not such an archive")
    member = _member(file, header, 0, where)
    if member.size > most:
        raise Corrupt(f"{where}: {member.name} has {member.size} bytes, at most {most}")
    data = file.read(member.size)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise Corrupt(f"{where}: {member.name} is damaged or cut short")
    return member, data


def blocks(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yield a member's bytes, which were checked before."""
    file.seek(member.start)
    left = member.size
    while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
        left -= len(block)
        yield block


def _member(file: BinaryIO, header: bytes, offset: int, where: str) -> Member:
    """Return the member of a local header; its name is read, its bytes are not."""
    fields = _LOCAL.unpack(header)
    crc, size, length = fields[6], fields[8], fields[9]
    raw = file.read(min(length, MAX_NAME_CHARS + 1))
    name = raw.decode("ascii", "replace")
    if not is_name(name):
        raise Corrupt(f"{where}: the name {name[:MAX_NAME_CHARS]!r} is not allowed")
    member = Member(name, offset + _LOCAL.size + len(raw), size, crc)
    if _local(member) != header + raw:
        raise Corrupt(f"{where}: {name} is not stored as a bundle stores its files")
    return member


def _local(member: Member) -> bytes:
    fixed = (_VERSION, 0, 0, 0, _DAY, member.crc, member.size, member.size, len(member.name), 0)
    return _LOCAL.pack(b"PK\3\4", *fixed) + member.name.encode()


def _directory(members: Sequence[Member], offset: int) -> bytes:
    """Return everything after the members."""
    entries = b""
    for member in members:
        name = member.name.encode()
        entries += (
            _CENTRAL.pack(
                *(b"PK\1\2", _UNIX, _VERSION, 0, 0, 0, _DAY),
                *(member.crc, member.size, member.size, len(name), 0, 0, 0, 0),
                *(_FILE_MODE, member.start - _LOCAL.size - len(name)),
            )
            + name
        )
    count = len(members)
    return entries + _END.pack(b"PK\5\6", 0, 0, count, count, len(entries), offset, 0)


def _require_size(size: int) -> None:
    if size > MAX_ARCHIVE_BYTES:
        raise Corrupt(f"an archive of {size} bytes, at most {MAX_ARCHIVE_BYTES}")


def _crc_of(file: BinaryIO, size: int) -> int:
    """Return the CRC-32 of the next ``size`` bytes, or -1 where there are fewer."""
    crc, left = 0, size
    while left > 0:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            return -1
        crc = zlib.crc32(block, crc)
        left -= len(block)
    return crc


def _measure(source: Source) -> tuple[int, int]:
    size = crc = 0
    for block in _pieces(source):
        size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _copy(source: Source, out: BinaryIO) -> tuple[int, int]:
    size = crc = 0
    for block in _pieces(source):
        size, crc = size + len(block), zlib.crc32(block, crc)
        out.write(block)
    return size, crc


def _pieces(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
