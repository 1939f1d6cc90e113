"""Computes the report of a task's data: histograms and how they have changed.

The training process writes two files beside the gathered samples: ``figures.json`` with exact
counts and edges, which never leaves the device, and ``report.json``, which the agent sends.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.wire.messages import Bar, Quantity, TaskData
from fl_client.datasets import drift
from fl_client.datasets.reporting import report_path
from fl_client.datasets.sample import Sample
from fl_client.datasets.settings import DataPlace, DataSettings, FolderSource, Schema
from runtime.files import atomic_write

_LOG = logging.getLogger(__name__)
_LABEL = "the label"
_MOST_FEATURES = 15
_MOST_BARS = 15
_Counts = list[Annotated[int, Field(ge=0)]]


class _Reference(BaseModel):
    """One quantity's reference and latest counts; ``agreed`` edges come from the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    edges: list[float]
    agreed: bool
    counts: _Counts
    previous: _Counts


class _StoredFigures(BaseModel):
    """The file ``figures.json``; ``of`` is the fingerprint of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    of: str
    at_s: float
    quantities: dict[str, _Reference]


def update(place: DataPlace, samples: Sequence[Sample], held_out: int, refused: int) -> None:
    """Compute and write the report, if it is due and there are enough samples.

    Args:
        samples: the oldest first.
        held_out: how many of them are held out.
        refused: how many records could not be used.
    """
    settings, now_s = place.settings.drift, time.time()
    path = place.folder / "figures.json"
    if not settings.report or len(samples) < settings.min_count:
        return
    kept = _read(path, _fingerprint(place.settings))
    if kept is not None and abs(now_s - kept.at_s) < settings.every_s:
        return
    values = _values(samples[-settings.window :], place.settings)
    known = {} if kept is None else kept.quantities
    references = {
        name: _reference(name, values[name], known.get(name), place.settings) for name in values
    }
    quantities = [
        _quantity(name, known.get(name), now, place.settings) for name, now in references.items()
    ]
    least = settings.min_count
    report = TaskData(
        task=place.task,
        min_count=least,
        examples=drift.rounded(len(samples), least),
        held_out=drift.rounded(held_out, least),
        refused=drift.rounded(refused, least),
        quantities=quantities,
    )
    enough = known or len(samples) >= max(settings.reference_count, least)
    figures = _StoredFigures(
        of=_fingerprint(place.settings), at_s=now_s, quantities=references if enough else {}
    )
    try:
        atomic_write(path, figures.model_dump_json().encode())
        atomic_write(report_path(place.folder), report.model_dump_json().encode())
    except OSError as error:
        # a full disk is no reason not to train
        _LOG.error("the figures of task %s cannot be written: %s", place.task, error)


def _read(path: Path, fingerprint: str) -> _StoredFigures | None:
    try:
        kept = _StoredFigures.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _LOG.error("%s cannot be used, a new reference begins: %s", path, error)
        return None
    return kept if kept.of == fingerprint else None


def _fingerprint(settings: DataSettings) -> str:
    """Return a digest of all settings on which the counts depend; others cannot be compared."""
    source = settings.source.model_dump_json(exclude={"path", "host", "port", "password_file"})
    parts = [source, *settings.classes, repr(settings.drift.bins), str(settings.drift.min_count)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _values(samples: Sequence[Sample], settings: DataSettings) -> dict[str, list[float]]:
    """Return the values of each quantity: the label, then the first features.

    The quantities of a window or an image are the mean and the spread of its numbers.
    """
    found: dict[str, list[float]] = {}
    labelled = isinstance(settings.source, Schema) and bool(settings.source.label)
    if settings.classes or labelled:
        found[_LABEL] = [sample.label for sample in samples]
    rows = [np.asarray(sample.features, np.float64).ravel() for sample in samples]
    if isinstance(settings.source, FolderSource) or not settings.source.features:
        lengths = [("values", rows[0].size)]
    else:
        lengths = [(each.name, each.length) for each in settings.source.features]
    start = 0
    for name, length in lengths:
        parts: NDArray[np.float64] = np.stack([row[start : start + length] for row in rows])
        start += length
        if length == 1:
            found[name] = parts[:, 0].tolist()
        else:
            found[f"{name} mean"] = parts.mean(1).tolist()
            found[f"{name} spread"] = parts.std(1).tolist()
    return dict(list(found.items())[: 1 + _MOST_FEATURES])


def _reference(
    name: str, values: list[float], known: _Reference | None, settings: DataSettings
) -> _Reference:
    """Return a quantity's reference, with the present counts as those of the previous report."""
    if name == _LABEL and settings.classes:
        counts = [0] * len(settings.classes)
        for value in values:
            counts[int(value)] += 1
        edges, agreed = [], True
    else:
        agreed = name in settings.drift.bins
        given = settings.drift.bins.get(name) or drift.quantile_edges(
            values, settings.drift.min_count
        )
        edges = given if known is None else known.edges
        counts = drift.histogram(values, edges)
    if known is None:
        return _Reference(edges=edges, agreed=agreed, counts=counts, previous=counts)
    return _Reference(edges=edges, agreed=agreed, counts=known.counts, previous=counts)


def _quantity(
    name: str, known: _Reference | None, now: _Reference, settings: DataSettings
) -> Quantity:
    """Return the report of a quantity; without a reference it has no change."""
    least, counts = settings.drift.min_count, now.previous
    if name == _LABEL and settings.classes:
        bars = _class_bars(counts, settings.classes, least)
    else:
        bars = [
            Bar(name=_range_name(each, now), count=drift.rounded(each.count, least))
            for each in drift.merged(counts, least)
        ]
    if known is None:
        return Quantity(name=name, bars=bars)
    return Quantity(
        name=name,
        bars=bars,
        psi_reference=round(drift.psi(known.counts, counts), 2),
        psi_previous=round(drift.psi(known.previous, counts), 2),
        by_chance=round(drift.psi_by_chance(len(counts), sum(known.counts), sum(counts)), 2),
    )


def _class_bars(counts: Sequence[int], classes: Sequence[str], least: int) -> list[Bar]:
    reported, others = drift.pooled(counts, least)
    # a message has room for the largest classes only
    largest = sorted(reported, key=lambda number: (-reported[number], number))[:_MOST_BARS]
    others += sum(reported.values()) - sum(reported[number] for number in largest)
    bars = [
        Bar(name=classes[number], count=drift.rounded(reported[number], least))
        for number in sorted(largest)
    ]
    return [*bars, Bar(name="(others)", count=drift.rounded(others, least))] if others else bars


def _range_name(bins: drift.BinRange, of: _Reference) -> str:
    """Return the name of a range of bins: by its edges if they are agreed, else by its number."""
    if not of.agreed:
        return f"part {bins.first + 1}" + (f"-{bins.end}" if bins.end > bins.first + 1 else "")
    low = "" if bins.first == 0 else f"{of.edges[bins.first - 1]:g}"
    high = "" if bins.end > len(of.edges) else f"{of.edges[bins.end - 1]:g}"
    return (
        f"{low} to {high}"
        if low and high
        else f"from {low}"
        if low
        else f"below {high}"
        if high
        else "all"
    )
