"""What came of several runs, side by side: each variant's mean and spread over its seeds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fl_server.operations.results.runs import RunReport
from runtime.errors import ConfigError


@dataclass(frozen=True)
class RunFigures:
    """One run by its headline metric.

    Attributes:
        variant: what it is compared as, its own id where it is of no variant.
        measured: the metric by round.
        final: of the last measured round; None where nobody measured, as ``best``.
        worst_tenth: of the last one over the worst tenth of the devices that measured it.
        rounds_to_target: the first round that reached the target; None where none did.
        is_whole: whether every committed round is among those that the server told.
    """

    run_id: str
    group: str
    variant: str
    seed: int
    status: str
    rounds: int
    measured: dict[int, float]
    final: float | None
    best: float | None
    worst_tenth: float | None
    rounds_to_target: int | None
    bytes_up: int
    bytes_down: int
    wall_s: float
    is_whole: bool


@dataclass(frozen=True)
class Spread:
    """The mean of a figure over runs, and its sample deviation, None of one run."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that are there, None where there are none."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return cls(statistics.fmean(found), deviation)


@dataclass(frozen=True)
class VariantFigures:
    """The runs of one variant together.

    Attributes:
        reached: how many of them reached the target; ``rounds_to_target`` is of those alone.
    """

    variant: str
    runs: tuple[RunFigures, ...]
    final: Spread | None
    best: Spread | None
    worst_tenth: Spread | None
    rounds_to_target: Spread | None
    reached: int
    rounds: Spread | None
    bytes_up: Spread | None
    bytes_down: Spread | None
    wall_s: Spread | None

    @classmethod
    def of(cls, variant: str, runs: Sequence[RunFigures]) -> VariantFigures:
        """Return the figures of one variant's runs."""
        to_target = [run.rounds_to_target for run in runs]
        return cls(
            variant,
            tuple(runs),
            final=Spread.of(run.final for run in runs),
            best=Spread.of(run.best for run in runs),
            worst_tenth=Spread.of(run.worst_tenth for run in runs),
            rounds_to_target=Spread.of(to_target),
            reached=sum(each is not None for each in to_target),
            rounds=Spread.of(run.rounds for run in runs),
            bytes_up=Spread.of(run.bytes_up for run in runs),
            bytes_down=Spread.of(run.bytes_down for run in runs),
            wall_s=Spread.of(run.wall_s for run in runs),
        )

    def curve(self) -> dict[int, Spread]:
        """Return the metric by round, over the runs that were measured there."""
        rounds = sorted({number for run in self.runs for number in run.measured})
        found = {n: Spread.of(run.measured.get(n) for run in self.runs) for n in rounds}
        return {number: spread for number, spread in found.items() if spread is not None}


@dataclass(frozen=True)
class Comparison:
    """Runs by variant, in the order in which they were given."""

    headline: str
    goal: str
    target: float | None
    variants: tuple[VariantFigures, ...]

    @property
    def cut(self) -> list[str]:
        """The runs of which the server told only the latest rounds."""
        return [run.run_id for each in self.variants for run in each.runs if not run.is_whole]

    def document(self) -> dict[str, Any]:
        """Return the JSON document of ``--json``."""
        rows = []
        for each in self.variants:
            row = asdict(each)
            for run in row["runs"]:
                run["measured"] = {str(at): value for at, value in run["measured"].items()}
            rows.append(row)
        return {
            "headline": self.headline,
            "goal": self.goal,
            "target": self.target,
            "variants": rows,
        }


def compare(reports: Sequence[RunReport], target: float | None = None) -> Comparison:
    """Return the runs side by side.

    Args:
        target: the value of the headline metric whose first round is looked for.

    Raises:
        ConfigError: they have no metric in common that they could be compared by.
    """
    if not reports:
        raise ConfigError("no runs to compare")
    headlines = {report.headline for report in reports}
    if len(headlines) > 1:
        told = ", ".join(f"{report.run_id} by {report.headline}" for report in reports[:6])
        raise ConfigError(f"runs are compared by one metric, and these are not: {told}")
    goal = reports[0].headline_goal
    runs: dict[tuple[str, str], list[RunFigures]] = {}
    for report in reports:
        figures = _figures(report, target, lower=goal == "lower")
        runs.setdefault((report.group, figures.variant), []).append(figures)
    several = len({group for group, _ in runs}) > 1
    variants = [
        VariantFigures.of(f"{group}: {name}" if group and several else name, each)
        for (group, name), each in runs.items()
    ]
    return Comparison(headlines.pop(), goal, target, tuple(variants))


def _figures(report: RunReport, target: float | None, *, lower: bool) -> RunFigures:
    committed = [row for row in report.history if row.outcome == "committed"]
    measured = {row.round: row.measured for row in committed if row.measured is not None}
    values = list(measured.values())
    reached = [
        number
        for number, value in measured.items()
        if target is not None and (value <= target if lower else value >= target)
    ]
    return RunFigures(
        run_id=report.run_id,
        group=report.group,
        variant=report.variant or report.group or report.run_id,
        seed=report.seed,
        status=report.status,
        rounds=report.rounds_completed,
        measured=measured,
        final=values[-1] if values else None,
        best=(min if lower else max)(values, default=None),
        worst_tenth=None if report.spread is None else report.spread.worst_tenth,
        rounds_to_target=min(reached, default=None),
        bytes_up=report.bytes_up,
        bytes_down=report.bytes_down,
        wall_s=report.wall_s,
        is_whole=len(committed) >= report.rounds_completed,
    )
