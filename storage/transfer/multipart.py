"""Uploads in parts: the sizes of parts, their URLs, and which of them were uploaded. No network.

An uploaded part is never sent again: after a kill the sender continues from the ETags that it wrote
beside the file. Few large parts cost a store less than many small ones; what a cut or a kill may
cost limits the parts of a file (see ``storage.transfer.in_flight``). An object that is written from
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
_COMPLETING = "ended"
_PART = re.compile(r"[1-9][0-9]{0,4} .+")


class PartSizes(BaseModel):
    """From which size on an object is uploaded in parts, and how large they are.

    Attributes:
        large_bytes: the least size of an object that is uploaded in parts.
        part_bytes: of a file's parts but the last; S3 accepts no smaller one than 5 MiB.
        written_bytes: the same for an object that is written while it is produced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    large_bytes: Annotated[int, Field(ge=1)] = LARGE_BYTES
    part_bytes: Annotated[int, Field(ge=1)] = PART_BYTES
    written_bytes: Annotated[int, Field(ge=1)] = WRITTEN_BYTES

    def is_large(self, size: int) -> bool:
        """Whether an object of that size is uploaded in parts."""
        return size >= self.large_bytes

    def part_for(self, size: int, most: int = MAX_PARTS) -> int:
        """Return the size of the parts of a file such that there are at most ``most`` of them."""
        return _limited(self.part_bytes, size, most)

    def written_for(self, size: int) -> int:
        """Return the size of the parts in which an object of ``size`` bytes is written."""
        return _limited(self.written_bytes, size, MAX_PARTS)


def _limited(part_bytes: int, size: int, most: int) -> int:
    if size <= most * part_bytes:
        return part_bytes
    return math.ceil(size / most / _MIB) * _MIB


@dataclass(frozen=True)
class MultipartTarget:
    """Where to upload a file: a presigned PUT for each part, and a POST that completes."""

    upload_id: str
    part_bytes: int
    urls: Sequence[str]
    complete_url: str

    def fits(self, size: int) -> bool:
        """Whether to upload a file of that size here: in at least two parts, with enough URLs."""
        return self.part_bytes < size <= self.part_bytes * len(self.urls)


def complete_body(etags: Sequence[str]) -> bytes:
    """Return the body of the request that completes an upload."""
    from xml.sax.saxutils import escape  # noqa: PLC0415  a device seldom uploads in parts

    parts = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{escape(etag)}"</ETag></Part>'
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def uploaded_parts_path(path: Path) -> Path:
    """Return the file beside ``path`` that lists its uploaded parts."""
    return path.with_name(f"{path.name}.parts")


class UploadedParts:
    """The ETags of the uploaded parts of one file, one line each in a small file.

    Its last line says that completing was requested: a store that then does not know the upload has
    completed it. The file is not forced to the disk: after a power cut lines may be missing, and
    their parts are sent again.

    Attributes:
        etags: by the part's number, from 1.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.etags: dict[int, str] = {}
        self.completing = False
        self._upload = ""

    def load(self, target: MultipartTarget) -> None:
        """Read which parts were uploaded: none where the file is another upload's."""
        upload = json.dumps([target.upload_id, target.part_bytes])
        if upload != self._upload:
            self._upload = upload
            lines = self._read()
            self.completing = lines[-1:] == [_COMPLETING]
            self.etags = dict(_numbered(line) for line in lines if line != _COMPLETING)

    def add(self, number: int, etag: str) -> None:
        """Write that a part was uploaded."""
        line = f"{number} {etag}"
        if self.etags:
            self._append(line)
        else:
            self.path.write_text(f"{self._upload}\n{line}\n")
        self.etags[number] = etag

    def mark_completing(self) -> None:
        """Write that all parts were uploaded and completing is about to be requested."""
        if not self.completing:
            self._append(_COMPLETING)
            self.completing = True

    def clear(self) -> None:
        """Remove all entries."""
        self.etags = {}
        self.completing = False
        self.path.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        # the owner may have removed it, because the upload is not needed any more
        with contextlib.suppress(FileNotFoundError), self.path.open("r+") as file:
            file.seek(0, os.SEEK_END)
            file.write(f"{line}\n")

    def _read(self) -> list[str]:
        """Return the lines, none where the file is another upload's or damaged."""
        try:
            text = self.path.read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        *lines, torn = text.split("\n")
        whole = all(line == _COMPLETING or _PART.fullmatch(line) for line in lines[1:])
        if lines[:1] != [self._upload] or torn or not whole:
            return []
        return lines[1:]


def _numbered(line: str) -> tuple[int, str]:
    number, _, etag = line.partition(" ")
    return int(number), etag
