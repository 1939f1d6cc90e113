"""Large objects go in parts: how large, where each goes, and what has arrived. No network here.

A part that has arrived is never sent again, so a sender that is killed goes on from the ETags that
it kept beside the file. Few large parts cost a store less than many small ones; what a cut or a
kill may cost bounds those of a file (see ``storage.transfer.in_flight``). What is written from
memory cannot be resumed, and its parts divide the 64 MiB of JuiceFS' chunks: a chunk of five pieces
or more is rewritten when it is first read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LARGE_BYTES = 64 << 20
PART_BYTES = 15 << 20
WRITTEN_BYTES = 32 << 20
LEAST_PART_BYTES = 5 << 20
MAX_PARTS = 10_000
_MIB = 1 << 20
_ENDED = "ended"
_PART = re.compile(r"[1-9][0-9]{0,4} .+")


class PartSizes(BaseModel):
    """From which size on an object goes in parts, and how large they are.

    Attributes:
        part_bytes: of a file's parts but the last; S3 takes no smaller one than 5 MiB.
        written_bytes: the same of an object that is written while it is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    large_bytes: Annotated[int, Field(ge=1)] = LARGE_BYTES
    part_bytes: Annotated[int, Field(ge=1)] = PART_BYTES
    written_bytes: Annotated[int, Field(ge=1)] = WRITTEN_BYTES

    def is_large(self, size: int) -> bool:
        """Whether an object of that size goes in parts."""
        return size >= self.large_bytes

    def part_for(self, size: int, most: int = MAX_PARTS) -> int:
        """Return the size of the parts of a file such that there are at most ``most`` of them."""
        return _few_enough(self.part_bytes, size, most)

    def written_for(self, size: int) -> int:
        """Return the size of the parts in which an object of ``size`` bytes is written."""
        return _few_enough(self.written_bytes, size, MAX_PARTS)


def _few_enough(part_bytes: int, size: int, most: int) -> int:
    if size <= most * part_bytes:
        return part_bytes
    return math.ceil(size / most / _MIB) * _MIB


@dataclass(frozen=True)
class PartsPlace:
    """Where a file goes in parts: a presigned PUT for each, and a presigned POST that ends it."""

    upload_id: str
    part_bytes: int
    urls: Sequence[str]
    complete_url: str

    def takes(self, size: int) -> bool:
        """Whether a file of that size is to go here; one part is better sent by a single PUT."""
        return self.part_bytes < size <= self.part_bytes * len(self.urls)


def complete_body(etags: Sequence[str]) -> bytes:
    """Return what ends an upload: its parts in order."""
    from xml.sax.saxutils import escape  # noqa: PLC0415  a device seldom sends in parts

    parts = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{escape(etag)}"</ETag></Part>'
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def arrived_path(path: Path) -> Path:
    """Return where it is kept which parts of a file have arrived."""
    return path.with_name(f"{path.name}.parts")


class ArrivedParts:
    """The ETags of the parts of one upload that have arrived, a line each in a small file.

    Its last line says that the upload was to be completed: a store that then knows it no more has
    completed it. The file is not forced to the disk: after a power cut lines may be gone, and their
    parts are then sent once more.

    Attributes:
        etags: by the part's number, from 1.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.etags: dict[int, str] = {}
        self.ended = False
        self._upload = ""

    def follow(self, place: PartsPlace) -> None:
        """Go on with what has arrived of this upload, from nothing if it is another one."""
        upload = json.dumps([place.upload_id, place.part_bytes])
        if upload != self._upload:
            self._upload = upload
            lines = self._read()
            self.ended = lines[-1:] == [_ENDED]
            self.etags = dict(_numbered(line) for line in lines if line != _ENDED)

    def add(self, number: int, etag: str) -> None:
        """Keep that a part has arrived."""
        line = f"{number} {etag}"
        if self.etags:
            self._append(line)
        else:
            self.path.write_text(f"{self._upload}\n{line}\n")
        self.etags[number] = etag

    def end(self) -> None:
        """Keep that all have arrived and the upload is about to be completed."""
        if not self.ended:
            self._append(_ENDED)
            self.ended = True

    def restart(self) -> None:
        """Forget what has arrived."""
        self.etags = {}
        self.ended = False
        self.path.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        # the owner may have removed it, because nobody waits for the file any more
        with contextlib.suppress(FileNotFoundError), self.path.open("r+") as file:
            file.seek(0, os.SEEK_END)
            file.write(f"{line}\n")

    def _read(self) -> list[str]:
        """Return the whole lines, none where the file is another upload's or damaged."""
        try:
            text = self.path.read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        *lines, torn = text.split("\n")
        whole = all(line == _ENDED or _PART.fullmatch(line) for line in lines[1:])
        if lines[:1] != [self._upload] or torn or not whole:
            return []
        return lines[1:]


def _numbered(line: str) -> tuple[int, str]:
    number, _, etag = line.partition(" ")
    return int(number), etag
