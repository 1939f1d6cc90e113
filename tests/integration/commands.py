"""The ``rengo`` command as its users meet it: a process, its exit code and what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.prepared import Prepared

prepared = Prepared()


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines on standard error but those of the log."""
        logged = (" INFO ", " WARNING ", " ERROR ")
        return [
            line
            for line in self.err.splitlines()
            if line and not any(level in line[:40] for level in logged)
        ]

    @property
    def line(self) -> str:
        """The one line that says what went wrong."""
        assert "Traceback" not in self.err, self.err
        assert "Traceback" not in self.out, self.out
        (line,) = self.lines
        assert line.startswith("rengo: "), self.err
        return line.removeprefix("rengo: ")


def rengo(
    *arguments: object,
    home: Path | None = None,
    patience_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Told:
    """Run a command to its end; beyond ``patience_s`` the test fails.

    It is a process of its own, forked from one that has imported what it needs; a new interpreter
    where that makes a difference: with ``before`` or with modules of the test's own. In a fork,
    ``constants`` of modules may have another value, as {"storage.store.speed._REPETITIONS": 1}.
    """
    assert constants is None or before is None
    words, began = [str(each) for each in arguments], time.monotonic()
    around = surroundings(home, environment)
    if before is None and "PYTHONPATH" not in (environment or {}):
        code, out, err = prepared.run(words, around, patience_s, constants or {})
        return Told(code, out, err, time.monotonic() - began)
    done = subprocess.run(
        [sys.executable, "-m", "rengo", *words],
        capture_output=True,
        text=True,
        timeout=patience_s,
        env=around,
        stdin=subprocess.DEVNULL,
        check=False,
        preexec_fn=before,
    )
    return Told(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def surroundings(home: Path | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a command whose site lies in ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RENGO_")}
    if home is not None:
        kept["RENGO_HOME"] = str(home)
    return {**kept, **(more or {})}


def without(folder: Path, packages: Sequence[str], more: str = "") -> dict[str, str]:
    """Return an environment in which the packages cannot be imported."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        f"""\
import sys
from importlib.metadata import PackageNotFoundError
import importlib.metadata as metadata

GONE = {list(packages)!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Blocker())
{more}
"""
    )
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path}
