"""Large objects go in parts: how large, where each goes, and what has arrived. No network here.

A part that has arrived is never sent again: a cut costs at most one part, which is below 16 MB, and
a sender that is killed goes on from the ETags that it kept beside the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

LARGE_BYTES = 64 << 20
PART_BYTES = 15 << 20
MAX_PARTS = 10_000
_MIB = 1 << 20


@dataclass(frozen=True)
class PartSizes:
    """From which size on an object goes in parts, and how large they are.

    Attributes:
        part_bytes: of every part but the last; S3 takes no smaller one than 5 MiB.
    """

    large_bytes: int = LARGE_BYTES
    part_bytes: int = PART_BYTES

    def is_large(self, size: int) -> bool:
        """Whether an object of that size goes in parts."""
        return size >= self.large_bytes

    def part_for(self, size: int, most: int = MAX_PARTS) -> int:
        """Return the size of a part such that ``size`` bytes are at most ``most`` of them."""
        least = math.ceil(size / most)
        return max(self.part_bytes, math.ceil(least / _MIB) * _MIB)


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
    parts = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{escape(etag)}"</ETag></Part>'
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


class ArrivedParts:
    """The ETags of the parts of one upload that have arrived, in a small file that follows them.

    It is written whole and renamed but not forced to the disk: after a power cut it may be gone,
    and the parts are then sent once more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.etags: list[str] = []
        self._upload = ("", 0)

    def follow(self, place: PartsPlace) -> None:
        """Go on with what has arrived of this upload, from nothing if it is another one."""
        upload = (place.upload_id, place.part_bytes)
        if upload != self._upload:
            self._upload = upload
            self.etags = self._read()[: len(place.urls)]

    def add(self, etag: str) -> None:
        """Keep that the next part has arrived."""
        self.etags.append(etag)
        upload_id, part_bytes = self._upload
        kept = {"upload_id": upload_id, "part_bytes": part_bytes, "etags": self.etags}
        written = self.path.with_name(f"{self.path.name}.new")
        written.write_text(json.dumps(kept))
        written.replace(self.path)

    def restart(self) -> None:
        """Forget what has arrived."""
        self.etags = []
        self.path.unlink(missing_ok=True)

    def _read(self) -> list[str]:
        try:
            kept = json.loads(self.path.read_text())
            found = (kept["upload_id"], kept["part_bytes"])
            etags = [str(etag) for etag in kept["etags"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []  # absent, or cut short by a power cut
        return etags if found == self._upload else []
