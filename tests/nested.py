"""A run of pytest within a test: the suite's settings and conftest, on a small folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def run_tests(folder: Path, workers: int) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder on so many workers; 0 is this run's own process."""
    settings = ("-c", _ROOT / "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *settings),
            *("--rootdir", folder, "-n", str(workers), folder),
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
