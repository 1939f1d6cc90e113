"""Real sites in a temporary folder, one for each module; nothing of theirs survives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import gated
from tests.chaos.arena import Arena, Opened, numpy_fleet
from tests.support import scratch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all that a module's processes write, their temporary files included."""
    root = tmp_path_factory.mktemp("chaos")
    with scratch(root, gated.FOLDER):
        yield root


@pytest.fixture(scope="module")
def mortal_fleet(folder: Path) -> Iterator[Arena]:
    """The demo's fleet on numpy, supervised, with a server that dies as planned."""
    with Opened(folder, "digits", mortal=True) as arena:
        arena.start_fleet(numpy_fleet())
        yield arena
