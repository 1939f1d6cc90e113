"""What an update's values are, once its bytes are seen to be those that its device wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algorithms.base import BLOCK, UPDATE, Algorithm
from fl_server.aggregation.arithmetic.server_half import require_sections
from fl_server.aggregation.spool import Spool
from runtime.errors import Corrupt
from storage.updates.header import UpdateHeader
from storage.updates.info import Section
from storage.weights import Layout, Slices

_ROUNDING = 1 + 1e-4
"""How much longer an update may be that a device has clipped in float32."""


@dataclass(frozen=True)
class VerifiedUpdate:
    """A verified update: its values, and what they are."""

    spool: Spool
    sections: tuple[Section, ...]
    reports: frozenset[str]
    slices: Slices | None

    def scalars(self) -> dict[str, float]:
        """Return the scalars that the update has."""
        found, start = {}, 0
        for section in self.sections:
            if section.name in self.reports:
                found[section.name] = float(self.spool.read(start, 1)[0])
            start += section.count
        return found


def sections_of(
    header: UpdateHeader, algorithm: Algorithm, layout: Layout, key: str
) -> tuple[Section, ...]:
    """Return what the values of an update are; Corrupt where the algorithm's clients send no such.

    An update without sections is the change of the weights alone.
    """
    counts = {section.name: section.count for section in header.sections}
    try:
        require_sections(counts or {UPDATE: layout.size}, algorithm, layout)
    except Corrupt as error:
        raise Corrupt(f"{key}: {error}") from error
    if not header.sections:
        return (Section(UPDATE, layout.size),)
    return tuple(Section(section.name, section.count) for section in header.sections)


def require_norm(
    spool: Spool, sections: Sequence[Section], algorithm: Algorithm, bound: float
) -> None:
    """Raise Corrupt where the vectors of an update are together longer than a bound."""
    if not math.isfinite(bound):
        return
    total, start = 0.0, 0
    for section in sections:
        end = start + section.count
        if section.name not in algorithm.reports:
            for at in range(start, end, BLOCK):
                values = spool.read(at, min(BLOCK, end - at))
                total += float(np.square(values, dtype=np.float64).sum())
        start = end
    if math.sqrt(total) > bound * _ROUNDING:
        raise Corrupt(f"the update's norm is {math.sqrt(total):g}, and at most {bound:g} is sent")
