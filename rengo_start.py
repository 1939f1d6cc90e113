"""Starts the ``rengo`` command, or another module of Rengo's, whatever lies on PYTHONPATH.

A user's module there may have the name of a package of Rengo's, even ``rengo``, and Python would
find it first. The command is :func:`main`; ``python -P rengo_start.py MODULE ARGUMENT…`` is as
``python -m MODULE ARGUMENT…``.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path


def prefer_own_packages() -> None:
    """Have Rengo's packages found first, from now on; see ``fl_client/own_packages.py``."""
    # by its path: its name may be a user's module
    path = Path(__file__).resolve().parent / "fl_client" / "own_packages.py"
    spec = importlib.util.spec_from_file_location("rengo_own_packages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prefer_own_packages()


def main() -> int:
    """Run the ``rengo`` command and return its exit code."""
    prefer_own_packages()
    from rengo.cli.main import main as command  # noqa: PLC0415 (found now)

    return command()


if __name__ == "__main__":
    prefer_own_packages()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
