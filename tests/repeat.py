"""Runs the whole of the tests again and again, and counts what failed at first.

    python -m tests.repeat RUNS [ARGUMENT...]

Arguments are pytest's. The output of each run is kept, and named where something failed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_FIRST = re.compile(r"^=+ FAILED AT FIRST: (.*?) =+$", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.MULTILINE)


def failures(said: str) -> tuple[list[str], list[str]]:
    """Return who failed at first, and who failed for good, as a run's output tells."""
    return _FIRST.findall(said), _FAILED.findall(said)


def main(runs: int, arguments: Sequence[str]) -> int:
    """Run and tell; returns 1 when a run was red."""
    folder, counts, red = Path(tempfile.mkdtemp(prefix="rengo-repeat-")), Counter[str](), 0
    for number in range(1, runs + 1):
        log, began = folder / f"{number}.log", time.monotonic()
        with log.open("wb") as out:
            code = subprocess.run(
                [sys.executable, "-m", "pytest", *arguments],
                cwd=_ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        first, failed = failures(log.read_text("utf-8", "replace"))
        counts.update(first)
        red += code != 0
        print(
            f"run {number}: exit code {code} after {time.monotonic() - began:.0f} s, "
            f"{len(first)} failed at first, {len(failed)} for good"
            + (f" ({log})" if code or first else ""),
            flush=True,
        )
        for each in [*first, *(f"for good: {name}" for name in failed)]:
            print(f"    {each}", flush=True)
    print(f"{runs} runs, {red} red, {counts.total()} first failures of {len(counts)} tests")
    for name, count in counts.most_common():
        print(f"{count:4d}  {name}")
    return min(red, 1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
