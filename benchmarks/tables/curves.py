"""Draws the curves of a family of algorithms as one small picture."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from benchmarks.tables.claims import deviation, mean
from benchmarks.tables.page import runs_of
from benchmarks.tables.results import Results, Run
from benchmarks.tables.rows import ROWS, Row
from rengo.terminal.plot import draw_comparison

Curve = Mapping[int, tuple[float, float]]

# letters stay text, and the names of parts are the same every time
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "rengo", "path.simplify": True}
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_NAMES = {"personal_accuracy": "accuracy on own data", "worst_tenth": "worst tenth of the clients"}


def draw(results: Results, folder: Path, rows: Sequence[Row] = ROWS) -> list[Path]:
    """Write a picture for each family that has measured curves, and return them."""
    drawn = []
    for row in rows:
        runs = runs_of(row, results)
        if not row.family or runs is None:
            continue
        path = folder / f"results-{row.family}.svg"
        with rc_context(_STYLE):
            curves = {name: curve_of(each, row.metric) for name, each in runs.items()}
            draw_comparison(curves, _NAMES.get(row.metric, row.metric), None, path)
        text = _METADATA.sub("", path.read_text("utf-8"))
        path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")
        drawn.append(path)
    return drawn


def curve_of(runs: Sequence[Run], metric: str) -> Curve:
    """Return the mean and the deviation of a metric by round, over the seeds that measured it.

    Of a run without personal models it is the accuracy of the global one.
    """
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for number, found in run.outcome.curve.items():
            values[number].append(found.get(metric, found.get("accuracy", float("nan"))))
    return {number: (mean(each), deviation(each)) for number, each in sorted(values.items())}
