"""Which versions of a run stay in the store. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from storage.versions.manifest import Record


@dataclass(frozen=True)
class Policy:
    """Which versions of a run to keep by their number.

    Attributes:
        keep: how many of the latest.
        keep_every: every version that this divides, version 0 included; 0 for none.
    """

    keep: int
    keep_every: int = 0


def kept_by_number(policy: Policy, latest: int) -> set[int]:
    """Return the versions up to ``latest`` that the policy keeps."""
    kept = set(range(max(0, latest - policy.keep + 1), latest + 1))
    if policy.keep_every:
        kept |= set(range(0, latest + 1, policy.keep_every))
    return kept


def is_pinned(record: Record) -> bool:
    """Whether a version stays until it is removed by name: it has a tag or a stage."""
    return bool(record.tags) or record.stage != "none"


def retained(policy: Policy, latest: int, records: Iterable[Record]) -> set[int]:
    """Return the versions of one run that stay.

    Args:
        latest: the last version that was committed.
        records: of the run's versions.
    """
    return kept_by_number(policy, latest) | {each.version for each in records if is_pinned(each)}
