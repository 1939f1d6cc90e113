"""Writes docs/results.md from the results. Pure but for reading the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.tables.claims import Quantity, Values, deviation, mean
from benchmarks.tables.results import Results, Run
from benchmarks.tables.rows import ELSEWHERE, ROWS, Row
from benchmarks.tables.setting import Setting

_INTRO = """\
# Results

Published results, and what Rengo's algorithms reach in the same or a smaller setting. This page and
its plots are written by `make tables` from the runs in `benchmarks/tables/results.json`; a test
compares the two.

Runs are those of the simulator: the server's round machine, its exact sum and the devices' engines,
in one process. A seed is that of the first weights, the cohorts, the batches, and of how data are
divided. A value of several seeds is their mean ± their sample deviation. A reference is what was
published, in the unit of the value beside it; a claim is what the published result says, as far as
this setting can show it.

```
rengo data get mnist
rengo data get fashion_mnist
make tables ARGS="--again"
make tables ARGS="--rows drift-mnist --again"
```

The third line runs everything again, the last one comparison. Plots of some curves are on the
page of the [algorithms](algorithms.md).
"""


def render(results: Results, rows: Sequence[Row] = ROWS) -> str:
    """Return the whole page; a row is left out until all of its runs have results."""
    measured = [(row, runs) for row in rows if (runs := runs_of(row, results)) is not None]
    parts = [_INTRO, _summary(measured)]
    parts += [_section(row, runs) for row, runs in measured]
    parts.append(_elsewhere([row for row in rows if runs_of(row, results) is None]))
    return "\n".join(parts).rstrip() + "\n"


def runs_of(row: Row, results: Results) -> dict[str, list[Run]] | None:
    """Return the row's runs by variant, one for each seed; None where one was not run yet."""
    found = {
        variant: [results.find(row.name, variant, seed, setting) for seed in row.seeds]
        for variant, setting in row.variants.items()
    }
    whole = {name: [run for run in runs if run is not None] for name, runs in found.items()}
    return whole if all(len(whole[name]) == len(row.seeds) for name in whole) else None


def table_of(row: Row, runs: Mapping[str, Sequence[Run]]) -> dict[str, Values]:
    """Return the row's values by quantity and variant, one for each seed."""
    return {
        quantity.title: {name: [quantity.of(run.outcome) for run in runs[name]] for name in runs}
        for quantity in row.quantities
    }


def verdicts(row: Row, runs: Mapping[str, Sequence[Run]]) -> dict[str, bool]:
    """Return whether each of the row's claims holds, by its text."""
    table = table_of(row, runs)
    return {claim.text: claim.holds(table) for claim in row.claims}


def _summary(measured: Sequence[tuple[Row, Mapping[str, Sequence[Run]]]]) -> str:
    lines = ["| comparison | claims that hold | shortened |", "| --- | --- | --- |"]
    for row, runs in measured:
        held = verdicts(row, runs).values()
        count = f"{sum(held)} of {len(held)}" if held else "none is made"
        link = f"[{row.name}](#{row.name})"
        lines.append(f"| {link} | {count} | {'yes' if row.shortened else 'no'} |")
    return "\n".join(lines) + "\n"


def _section(row: Row, runs: Mapping[str, Sequence[Run]]) -> str:
    parts = [
        f"## {row.name}\n",
        f"{row.title}.\n",
        f"Reference: {row.source}.\n",
        _table(row, runs),
    ]
    for text, holds in verdicts(row, runs).items():
        parts.append(f"- {'Holds' if holds else '**Does not hold**'}: {text}.")
    parts.append(f"- Shortened: {row.shortened}." if row.shortened else "- Not shortened.")
    if row.remark:
        parts.append(f"- {row.remark}")
    parts.append(_made(row, [run for each in runs.values() for run in each]))
    return "\n".join(parts) + "\n"


def _table(row: Row, runs: Mapping[str, Sequence[Run]]) -> str:
    table = table_of(row, runs)
    heads = ["", *table, *(["published"] if row.references else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for variant in runs:
        cells = [_cell(each, table[each.title][variant]) for each in row.quantities]
        published = [row.references.get(variant, "")] if row.references else []
        lines.append(f"| {' | '.join([variant, *cells, *published])} |")
    return "\n".join(lines) + "\n"


def _cell(quantity: Quantity, values: Sequence[float]) -> str:
    if any(math.isnan(each) for each in values):
        shown = ["none" if math.isnan(each) else _number(quantity, each) for each in values]
        return ", ".join(shown) if len({*shown}) > 1 else "none"
    if len(values) == 1:
        return _number(quantity, values[0])
    return f"{_number(quantity, mean(values))} ± {_number(quantity, deviation(values))}"


def _number(quantity: Quantity, value: float) -> str:
    return f"{value:.{quantity.digits}f}"


def _made(row: Row, runs: Sequence[Run]) -> str:
    dates = sorted({run.date for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    seeds = f"seed{'s' if len(row.seeds) > 1 else ''} {', '.join(map(str, row.seeds))}"
    backends = ", ".join(sorted({f"`{run.outcome.backend}`" for run in runs}))
    minutes = sum(run.outcome.cpu_s for run in runs) / 60
    how = "; ".join(sorted({run.versions for run in runs}))
    return (
        f'- `make tables ARGS="--rows {row.name} --again"`: {when}, {seeds}, '
        f"backend {backends}, {minutes:.1f} minutes of one core; {how}."
        f"\n- Settings: {_settings(row.variants)}."
    )


def _settings(variants: Mapping[str, Setting]) -> str:
    """Return what the variants have in common that their title does not need to say."""
    tasks = sorted({each.task.rpartition("/")[2] for each in variants.values()})
    rounds = sorted({each.rounds for each in variants.values()})
    parts = sorted({each.partition for each in variants.values()} - {""})
    options = [
        f"{name} {', '.join(f'{key} {value:g}' for key, value in plain.items())}"
        for name, each in variants.items()
        if (plain := {key: n for key, n in each.options.items() if isinstance(n, int | float)})
    ]
    told = [f"task `{'`, `'.join(tasks)}`", f"at most {max(rounds)} rounds"]
    told += [f"partition `{'`, `'.join(parts)}`"] if parts else []
    return "; ".join([*told, *options])


def _elsewhere(missing: Sequence[Row]) -> str:
    lines = ["## What is shown elsewhere, or not yet\n"]
    lines += [f"- {name}: {text}" for name, text in ELSEWHERE.items()]
    lines += [
        f'- {row.title}: not measured yet, `make tables ARGS="--rows {row.name}"`.'
        for row in missing
    ]
    return "\n".join(lines) + "\n"
