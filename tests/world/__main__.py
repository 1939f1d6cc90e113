"""Search seeds for histories that break a law: ``python -m tests.world --seeds 10000``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import Pool
from typing import TypeAlias

from tests.world.history import Outcomes
from tests.world.history import live as flat
from tests.world.report import digest, explain
from tests.world.tree import live as with_a_tree

Live: TypeAlias = Callable[..., Outcomes]

SHOWN = 3
CHUNK = 20
EVERY_S = 10.0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.world", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many histories")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--history", action="store_true", help="print every line of each history")
    parser.add_argument("--tree", action="store_true", help="histories with domains")
    parser.add_argument("--digest", action="store_true", help="print a digest of each history")
    return parser.parse_args()


def _tell(seeds: range, live: Live, *, in_full: bool) -> int:
    """Print each history, or its digest."""
    failed = 0
    for seed in seeds:
        outcome = live(seed, history=True)
        failed += bool(outcome.failure)
        if in_full:
            print("\n".join(outcome.lines))
            print(f"seed {seed}: {outcome.failure or outcome.status}")
        else:
            print(seed, digest(outcome))
    return failed


def _search(seeds: range, live: Live, jobs: int) -> int:
    """Run every history; returns how many failed."""
    failures: list[Outcomes] = []
    events, began = 0, time.monotonic()
    told = began
    with Pool(jobs) as pool:
        for done, outcome in enumerate(pool.imap_unordered(live, seeds, CHUNK), start=1):
            events += outcome.events
            if outcome.failure:
                failures.append(outcome)
                if len(failures) <= SHOWN:
                    tree = ["--tree"] if live is with_a_tree else []
                    print(explain(outcome, *tree), flush=True)
            if time.monotonic() - told > EVERY_S:
                told = time.monotonic()
                print(f"{done} of {len(seeds)} histories, {len(failures)} failed", flush=True)
    took = time.monotonic() - began
    print(
        f"{len(seeds)} histories from seed {seeds.start}, {events} events, {took:.0f} s, "
        f"{len(seeds) / took:.0f} histories/s: {len(failures)} failed"
    )
    for outcome in failures:
        print(f"seed {outcome.seed}: {outcome.failure[:200]}")
    return len(failures)


def main() -> int:
    """Return 1 when a history broke a law."""
    arguments = _parse()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    live: Live = with_a_tree if arguments.tree else flat
    if arguments.history or arguments.digest:
        return int(_tell(seeds, live, in_full=arguments.history) > 0)
    return int(_search(seeds, live, arguments.jobs) > 0)


if __name__ == "__main__":
    sys.exit(main())
