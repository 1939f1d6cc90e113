"""The results of runs in a file, one run a line, so that a change shows what was measured anew."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.tables.setting import Metrics, Outcome, Setting

HERE = Path(__file__).resolve().parent
FILE = HERE / "results.json"
_LEFT_OUT = ("loss", "personal_loss")
_DIGITS = 5


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        date: of its measurement, as 2026-11-30.
        versions: of what computed it, in words.
    """

    row: str
    variant: str
    seed: int
    setting: Setting
    outcome: Outcome
    date: str = ""
    versions: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from others."""
        return self.row, self.variant, self.seed


class Results:
    """The runs of a file, which each new one is written to at once."""

    def __init__(self, path: Path = FILE) -> None:
        self._path = path
        lines = json.loads(path.read_text("utf-8")) if path.exists() else []
        self._runs = {run.key: run for run in map(_run_of, lines)}

    def find(self, row: str, variant: str, seed: int, setting: Setting) -> Run | None:
        """Return the run, None where it was not run or was run with other settings."""
        found = self._runs.get((row, variant, seed))
        return found if found is not None and found.setting == setting else None

    def add(self, run: Run) -> None:
        """Store a run in place of what had its key."""
        dated = replace(run, date=run.date or today(), versions=run.versions or versions())
        self._runs[dated.key] = dated
        self._write()

    def keep(self, keys: Iterable[tuple[str, str, int]]) -> None:
        """Forget runs of rows, variants and seeds that there are no more."""
        wanted = set(keys)
        if unwanted := self._runs.keys() - wanted:
            self._runs = {key: run for key, run in self._runs.items() if key not in unwanted}
            self._write()

    def _write(self) -> None:
        lines = [json.dumps(_document(self._runs[key])) for key in sorted(self._runs)]
        written = self._path.with_suffix(".part")
        written.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
        written.replace(self._path)


def today() -> str:
    """Return the date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def versions() -> str:
    """Return what computes here, in words."""
    parts = [f"{name} {version(name)}" for name in ("rengo", "numpy", "torch")]
    return ", ".join([f"Python {platform.python_version()}", *parts])


def _document(run: Run) -> dict[str, Any]:
    """Return a run as JSON, with tasks' files by their names alone: the same everywhere."""
    setting = asdict(run.setting)
    setting["task"] = setting["task"].replace(f"{HERE}/", "")
    curve = run.outcome.curve
    names = sorted({name for row in curve.values() for name in row if name not in _LEFT_OUT})
    return {
        "row": run.row,
        "variant": run.variant,
        "seed": run.seed,
        "date": run.date,
        "versions": run.versions,
        "cpu_s": round(run.outcome.cpu_s, 1),
        "diverged": run.outcome.diverged,
        "backend": run.outcome.backend,
        "sent": round(run.outcome.sent, _DIGITS),
        **(
            {"chosen": [*map(list, sorted(run.outcome.chosen.items()))]}
            if run.outcome.chosen
            else {}
        ),
        "setting": setting,
        "rounds": sorted(curve),
        "metrics": {
            name: [
                round(curve[n][name], _DIGITS) if name in curve[n] else None for n in sorted(curve)
            ]
            for name in names
        },
    }


def _run_of(document: Mapping[str, Any]) -> Run:
    setting = dict(document["setting"])
    if ":" in setting["task"]:
        setting["task"] = f"{HERE / setting['task']}"
    curve: dict[int, Metrics] = {
        number: {
            name: values[place]
            for name, values in document["metrics"].items()
            if values[place] is not None
        }
        for place, number in enumerate(document["rounds"])
    }
    chosen = dict(document.get("chosen", []))
    outcome = Outcome(
        curve,
        document["diverged"],
        document["cpu_s"],
        chosen,
        document.get("sent", 1.0),
        document["backend"],
    )
    return Run(
        document["row"],
        document["variant"],
        document["seed"],
        Setting(**setting),
        outcome,
        document["date"],
        document["versions"],
    )
