"""A committed version of a model. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest, Record

VersionKey: TypeAlias = tuple[str, int]
_HASH = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Version:
    """A committed version: its manifest, which never changes, and its record, which may."""

    manifest: Manifest
    record: Record

    @property
    def name(self) -> str:
        """``RUN:VERSION``."""
        return self.manifest.name

    @property
    def id(self) -> VersionKey:
        """The run and the number."""
        return self.manifest.run_id, self.manifest.version

    @property
    def keys(self) -> RunKeys:
        """The keys of the run's objects."""
        return RunKeys(self.manifest.project, self.manifest.run_id)

    @property
    def promoted(self) -> int:
        """The count of its last promotion, 0 where it was never in production."""
        return max(self.record.promotions, default=0)


def looks_like_hash(name: str) -> bool:
    """Whether the name is read as the start of a sha256."""
    return _HASH.fullmatch(name) is not None
