"""How a metric of one version differs between the devices that measured it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fl_server.flows.mean import weighted_mean
from fl_server.flows.report import MetricSpread
from fl_server.rounds.ledger import Ledger

_WORST_SHARE = 0.1


def spread_over_devices(ledger: Ledger, metric: str, *, lower: bool) -> MetricSpread | None:
    """Return the spread in the latest version that was measured, None where nobody has the metric.

    Args:
        lower: whether less of the metric is better.
    """
    version = max(ledger.evaluations, default=0)
    rows = ledger.evaluations.get(version, {}).values()
    values = sorted((row[metric] for _, row in rows if metric in row), reverse=lower)
    if not values:
        return None
    worst = values[: math.ceil(len(values) * _WORST_SHARE)]
    mean = _mean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return MetricSpread(version, len(values), mean, _mean(worst), variance)


def _mean(values: Sequence[float]) -> float:
    found = weighted_mean([(value, 1) for value in values])
    assert found is not None
    return found
