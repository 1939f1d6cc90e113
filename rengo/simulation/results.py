"""The folder of a simulated run: what it is, how far it has come, and what came of it.

``simulation.json`` says what it is, ``checkpoint.npz`` is there until it has ended. Then there are
``result.json``, ``report.json`` (which `rengo runs compare` reads), ``rounds.csv``, the model, and
a plot where one can be drawn.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl_server.operations.results.runs import RunReport
from rengo.simulation.history import RoundFigures
from rengo.terminal.plot import draw_metric
from runtime.errors import ConfigError, MissingExtra, NotFound
from runtime.files import atomic_write, make_folder, whole_file
from storage.weights import Weights, read_safetensors, write_safetensors

REPORT = "report.json"
RESULT = "result.json"
_SIMULATION = "simulation.json"
_KINDS: dict[str, type] = {
    **dict.fromkeys(("round", "attempts"), int),
    **dict.fromkeys(("seconds", "virtual_s"), float),
    **dict.fromkeys(("invited", "updates", "refused", "num_examples"), int),
    "train_loss": float,
    "dropped": int,
    "energy_j": float,
}
"""The columns of the table of rounds, before the metrics."""

_MODEL, _BEST, _ROUNDS = "model.safetensors", "best.safetensors", "rounds.csv"


class ResultsFolder:
    """The folder of one run.

    Raises:
        ConfigError: it cannot be made, or holds another simulation.
    """

    def __init__(self, path: Path, described: Mapping[str, Any]) -> None:
        self.path = make_folder(path)
        self.checkpoint = path / "checkpoint.npz"
        for part in path.glob(f".{self.checkpoint.name}.*"):
            part.unlink()  # a kill left it
        self.model, self.best = path / _MODEL, path / _BEST
        # as it is read back
        wanted = json.loads(json.dumps(described))
        there = _read_json(path / _SIMULATION)
        if there is None:
            if any(path.iterdir()):
                raise ConfigError(f"{path} holds other files: name an empty folder, or a new one")
            atomic_write(path / _SIMULATION, _encoded(wanted))
        elif there != wanted:
            keys = ", ".join(sorted(_differences(there, wanted))[:6])
            raise ConfigError(
                f"{path} holds another simulation, which differs in {keys}: name another folder, "
                "or remove it"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and all is there."""
        return (self.path / RESULT).is_file()

    def report(self) -> RunReport:
        """Return the report of a run that has ended."""
        return read_report(self.path)

    def read(self) -> tuple[Weights, Weights | None]:
        """Return the last version of a run that has ended, and its best one."""
        best = read_safetensors(self.best) if self.best.is_file() else None
        return read_safetensors(self.model), best

    def rounds(self) -> list[RoundFigures]:
        """Return the rounds of a run that has ended."""
        try:
            lines = (self.path / _ROUNDS).read_text(encoding="utf-8").splitlines()
            return [_row(each) for each in csv.DictReader(lines)]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.path / _ROUNDS} is damaged: {error}") from error

    def write(
        self,
        report: RunReport,
        document: Mapping[str, Any],
        rounds: Sequence[RoundFigures],
        weights: tuple[Weights, Weights | None],
    ) -> str:
        """Write what came of the run, then remove its checkpoint; returns why there is no plot."""
        for path, each in zip((self.model, self.best), weights, strict=True):
            if each is not None:
                with whole_file(path) as file:
                    write_safetensors(each, file)
        atomic_write(self.path / _ROUNDS, _table(rounds).encode())
        atomic_write(self.path / REPORT, _encoded(report.model_dump(mode="json")))
        reason = self._draw(report)
        # the last one: it says that all is there
        atomic_write(self.path / RESULT, _encoded(document))
        self.checkpoint.unlink(missing_ok=True)
        return reason

    def _draw(self, report: RunReport) -> str:
        headline = report.headline
        measured = {row.round: row.measured for row in report.history if row.measured is not None}
        if not measured:
            return f"the {headline} was not measured"
        path = self.path / ("accuracy.png" if headline == "accuracy" else "metric.png")
        title = f"{report.task} by {report.algorithm}, {report.run_id}"
        try:
            draw_metric(measured, headline, title, path)
        except (MissingExtra, OSError) as error:
            return str(error)
        return ""


def read_report(folder: Path) -> RunReport:
    """Return the report in a folder of results.

    Raises:
        NotFound: there is none yet.
        ConfigError: it is damaged.
    """
    found = _read_json(folder / REPORT)
    if found is None:
        raise NotFound(f"{folder} holds no results of a simulation that has ended")
    try:
        return RunReport.model_validate(found)
    except ValidationError as error:
        raise ConfigError(f"{folder / REPORT} is damaged: {error}") from error


def reports_below(folder: Path) -> list[RunReport]:
    """Return the reports in a folder, or in its sub-folders in the order of their names.

    Raises:
        NotFound: there is none.
        ConfigError: one is damaged.
    """
    if (folder / REPORT).is_file():
        return [read_report(folder)]
    found = [read_report(path.parent) for path in sorted(folder.glob(f"*/{REPORT}"))]
    if not found:
        raise NotFound(f"{folder} holds no results of a simulation that has ended")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _encoded(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def _table(rounds: Sequence[RoundFigures]) -> str:
    metrics = sorted({name for row in rounds for name in row.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_KINDS, *metrics])
    for row in rounds:
        figures = [getattr(row, name) for name in _KINDS]
        writer.writerow([*figures, *(row.metrics.get(name, "") for name in metrics)])
    return out.getvalue()


def _row(cells: Mapping[str, str]) -> RoundFigures:
    """Return a line of the table read."""
    figures = {name: kind(cells[name]) for name, kind in _KINDS.items() if cells[name]}
    metrics = {name: float(text) for name, text in cells.items() if name not in _KINDS and text}
    return RoundFigures(**figures, metrics=metrics)


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield the keys at which two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            below = f"{path}.{key}" if path else key
            yield from _differences(one.get(key), other.get(key), below)
    elif one != other:
        yield path
