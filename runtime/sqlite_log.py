"""Whether SQLite's write-ahead log lost what was on the disk once.

SQLite reads such a log up to its first frame that is not as it was written, and takes the rest for
what a power cut left unfinished. With ``synchronous=FULL`` a change is on the disk before the next
one begins. So where whole frames of a later change follow, no power cut did that: the log is
damaged, and what SQLite would show is an older state than the one that was promised to be kept.

Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import BinaryIO, TypeAlias

_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
# SQLite's own default, where the log's header cannot be believed
_PAGE_BYTES = 4096
_NATIVE = "<" if sys.byteorder == "little" else ">"
_WORD = 0xFFFFFFFF
_Sums: TypeAlias = tuple[int, int]


def lost_changes(log: Path) -> bool:
    """Return whether a log has whole frames of a change behind a frame that is damaged.

    A file that is no log, or none, has lost nothing.
    """
    try:
        with log.open("rb") as file:
            return _lost(file)
    except FileNotFoundError:
        return False


def _lost(file: BinaryIO) -> bool:
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        return False
    words = struct.unpack(">8I", header)
    stored: _Sums = words[6:]
    order = next((each for each in "<>" if _sums((0, 0), header[:24], each) == stored), None)
    damaged, ended = order is None, False
    page_bytes = _PAGE_BYTES if order is None else words[2]
    salts = None if order is None else header[16:24]
    while len(frame := file.read(_FRAME_HEADER_BYTES + page_bytes)) > _FRAME_HEADER_BYTES:
        before, stored = stored, struct.unpack(">2I", frame[16:24])
        salts = salts or frame[8:16]
        # one of an earlier use of the file has other salts
        whole = frame[8:16] == salts and stored == _sums(
            before, frame[:8] + frame[_FRAME_HEADER_BYTES:], order or _NATIVE
        )
        if damaged and ended and whole:
            return True
        damaged = damaged or not whole
        # the last frame of a change has the size of the database
        ended = ended or (damaged and frame[4:8] != b"\0\0\0\0")
    return False


def _sums(seed: _Sums, data: bytes, order: str) -> _Sums:
    """Return SQLite's checksum of data, whose length is a multiple of 8."""
    first, second = seed
    words = struct.unpack(f"{order}{len(data) // 8 * 2}I", data[: len(data) // 8 * 8])
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _WORD
        second = (second + odd + first) & _WORD
    return first, second
