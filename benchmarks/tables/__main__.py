"""Measures what published tables say, and writes docs/results.md and its plots.

    make tables [ARGS="--rows fedavg-mnist-2nn drift-mnist"]
    python -m benchmarks.tables --page

What has results with the same settings is not run again unless ``--again``. MNIST and
Fashion-MNIST are needed: ``rengo data get mnist``, ``rengo data get fashion_mnist``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables.curves import draw
from benchmarks.tables.page import render
from benchmarks.tables.results import FILE, Results, Run
from benchmarks.tables.rows import ROWS, Row
from benchmarks.tables.simulation import simulate

_DOCS = Path(__file__).resolve().parents[2] / "docs"


def measure(row: Row, results: Results, *, again: bool = False) -> None:
    """Run what a row has no results of, and store each as it comes."""
    for seed in row.seeds:
        for variant, setting in row.variants.items():
            if not again and results.find(row.name, variant, seed, setting) is not None:
                continue
            outcome = simulate(setting, seed)
            results.add(Run(row.name, variant, seed, setting, outcome))
            values = [f"{each.title}: {each.of(outcome):.4g}" for each in row.quantities]
            told = f"{row.name}, {variant}, seed {seed}: {'; '.join(values)}"
            print(f"{told} ({outcome.cpu_s:.0f} s)", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows that were asked for, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=(__doc__ or "").splitlines()[0]
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="*", choices=names, default=names, metavar="ROW")
    parser.add_argument("--again", action="store_true", help="also what has results")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page alone")
    parser.add_argument("--results", type=Path, default=FILE, help="where the results are")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where the page is written")
    options = parser.parse_args(argv)
    results = Results(options.results)
    for row in [] if options.page else ROWS:
        if row.name in options.rows:
            measure(row, results, again=options.again)
    results.keep(
        (row.name, name, seed) for row in ROWS for name in row.variants for seed in row.seeds
    )
    (options.docs / "results.md").write_text(render(results), encoding="utf-8")
    draw(results, options.docs / "images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
