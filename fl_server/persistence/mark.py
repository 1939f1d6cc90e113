"""What the journal has reached, written beside it: so that a start sees when it is an older one.

The file is small, has a checksum, and is replaced as a whole. It is written after the journal, so
it may be behind it, and is never ahead of a journal that lost nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from runtime.files import atomic_write

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """The server's epoch, and the number and the digest of the latest entry of the audit log."""

    epoch: int = 0
    audit_number: int = 0
    audit_digest: str = ""


_MARK = TypeAdapter(Mark)


class MarkFile:
    """The mark beside a journal. One thread uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: Mark | None = None

    def read(self) -> Mark:
        """Return what the journal had reached; nothing where there is no mark, or a damaged one."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return Mark()
        except (OSError, UnicodeDecodeError) as error:
            _LOG.error("%s cannot be read and is written anew: %s", self.path, error)
            return Mark()
        try:
            known = json.loads(text)
            check = known.pop("check")
            mark = _MARK.validate_python(known)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            check, mark = "", Mark()
        if check != _check(mark):
            _LOG.error("%s is damaged and is written anew", self.path)
            return Mark()
        self._written = mark
        return mark

    def write(self, mark: Mark) -> None:
        """Replace the mark, where it differs."""
        if mark != self._written:
            document = {**asdict(mark), "check": _check(mark)}
            atomic_write(self.path, (json.dumps(document) + "\n").encode())
            self._written = mark


def _check(mark: Mark) -> str:
    return hashlib.sha256(json.dumps(asdict(mark)).encode()).hexdigest()
