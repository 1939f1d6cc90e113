"""Runs side by side, as a table."""

from __future__ import annotations

from typing import TextIO

from rengo.operator.comparison import Comparison, Spread, VariantFigures
from rengo.terminal.format import duration, size
from rengo.terminal.lines import say
from rengo.terminal.tables import print_table


def print_comparison(found: Comparison, out: TextIO) -> None:
    """Print a row for each variant."""
    target = [] if found.target is None else [f"to {found.target:g}"]
    headings = ["variant", "runs", f"{found.headline}, last", "best", "worst 10%", *target]
    rows = [_row(each, with_target=bool(target)) for each in found.variants]
    print_table([*headings, "rounds", "up", "down", "time"], rows, "no runs", out=out)
    several = any(len(each.runs) > 1 for each in found.variants)
    notes = ["mean ± sample deviation over the runs of a variant"] if several else []
    notes += [f"{run_id}: only its latest rounds are known" for run_id in found.cut]
    if notes:
        say("", *notes, out=out)


def _row(each: VariantFigures, *, with_target: bool) -> list[str]:
    ended = sum(run.status == "completed" for run in each.runs)
    count = len(each.runs)
    reached = f" ({each.reached} of {count})" if count > 1 else ""
    return [
        each.variant,
        str(count) if ended == count else f"{count} ({ended} completed)",
        _spread(each.final, 4),
        _spread(each.best, 4),
        _spread(each.worst_tenth, 4),
        *([f"{_spread(each.rounds_to_target, 1)}{reached}"] if with_target else []),
        _spread(each.rounds, 1),
        "-" if each.bytes_up is None else size(round(each.bytes_up.mean)),
        "-" if each.bytes_down is None else size(round(each.bytes_down.mean)),
        "-" if each.wall_s is None else duration(each.wall_s.mean),
    ]


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "-"
    mean = f"{spread.mean:.{digits}f}".removesuffix(".0")
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{digits}f}"
