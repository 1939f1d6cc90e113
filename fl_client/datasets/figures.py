"""What is told of a task's data: histograms and their change, worked out where the data are.

The training process writes two files beside the gathered samples: ``figures.json`` with exact
counts and edges, which never leaves the device, and ``report.json`` with what the agent sends.
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
    """One quantity at the first training; ``agreed`` edges are no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    edges: list[float]
    agreed: bool
    counts: _Counts
    previous: _Counts


class _KeptFigures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    of: str
    at_s: float
    quantities: dict[str, _Reference]


def renew(place: DataPlace, samples: Sequence[Sample], held_out: int, refused: int) -> None:
    """Work out what is told of the data, where it is due and there is enough.

    Args:
        samples: the oldest first.
        held_out: how many of them are held out.
        refused: how many records were none.
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
        _told(name, known.get(name), now, place.settings) for name, now in references.items()
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
    told = _KeptFigures(
        of=_fingerprint(place.settings), at_s=now_s, quantities=references if enough else {}
    )
    try:
        atomic_write(path, told.model_dump_json().encode())
        atomic_write(report_path(place.folder), report.model_dump_json().encode())
    except OSError as error:
        # a full card is no reason not to train
        _LOG.error("the figures of task %s cannot be written: %s", place.task, error)


def _read(path: Path, fingerprint: str) -> _KeptFigures | None:
    try:
        kept = _KeptFigures.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _LOG.error("%s is of no use, the reference is taken anew: %s", path, error)
        return None
    return kept if kept.of == fingerprint else None


def _fingerprint(settings: DataSettings) -> str:
    """Return what the counts depend on: with other bins they cannot be compared."""
    source = settings.source.model_dump_json(exclude={"path", "host", "port", "password_file"})
    said = [source, *settings.classes, repr(settings.drift.bins), str(settings.drift.min_count)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _values(samples: Sequence[Sample], settings: DataSettings) -> dict[str, list[float]]:
    """Return the quantities that are looked at: the label, then the first features.

    A window or a picture is looked at by the mean and the spread of its numbers.
    """
    found: dict[str, list[float]] = {}
    labelled = isinstance(settings.source, Schema) and bool(settings.source.label)
    if settings.classes or labelled:
        found[_LABEL] = [sample.label for sample in samples]
    rows = [np.asarray(sample.features, np.float64).ravel() for sample in samples]
    if isinstance(settings.source, FolderSource):
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
    """Return a quantity's reference, with the counts of now as those before the next report."""
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


def _told(name: str, known: _Reference | None, now: _Reference, settings: DataSettings) -> Quantity:
    """Return what is told of a quantity; without a reference there is nothing to compare with."""
    least, counts = settings.drift.min_count, now.previous
    if name == _LABEL and settings.classes:
        bars = _class_bars(counts, settings.classes, least)
    else:
        bars = [
            Bar(name=_range(run, now), count=drift.rounded(run.count, least))
            for run in drift.merged(counts, least)
        ]
    if known is None:
        return Quantity(name=name, bars=bars)
    return Quantity(
        name=name,
        bars=bars,
        psi_reference=round(drift.psi(known.counts, counts), 2),
        psi_previous=round(drift.psi(known.previous, counts), 2),
        by_chance=round(drift.by_chance(len(counts), sum(known.counts), sum(counts)), 2),
    )


def _class_bars(counts: Sequence[int], classes: Sequence[str], least: int) -> list[Bar]:
    told, others = drift.pooled(counts, least)
    # more classes than a message should hold: the largest
    largest = sorted(told, key=lambda number: (-told[number], number))[:_MOST_BARS]
    others += sum(told.values()) - sum(told[number] for number in largest)
    bars = [
        Bar(name=classes[number], count=drift.rounded(told[number], least))
        for number in sorted(largest)
    ]
    return [*bars, Bar(name="(others)", count=drift.rounded(others, least))] if others else bars


def _range(run: drift.Run, of: _Reference) -> str:
    """Return what a run of bins is called: agreed edges by their values, others by their place."""
    if not of.agreed:
        return f"part {run.first + 1}" + (f"-{run.end}" if run.end > run.first + 1 else "")
    low = "" if run.first == 0 else f"{of.edges[run.first - 1]:g}"
    high = "" if run.end > len(of.edges) else f"{of.edges[run.end - 1]:g}"
    return (
        f"{low} to {high}"
        if low and high
        else f"from {low}"
        if low
        else f"below {high}"
        if high
        else "all"
    )
