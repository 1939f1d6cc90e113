"""What came of a run, as its last words to a person: figures, files, and what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rengo.operator.result import RunResult
from rengo.terminal import format as wording
from rengo.terminal.plot import draw_metric
from runtime.errors import MissingExtra, RunNotCompleted
from runtime.text import printable
from storage.weights import read_safetensors

_NAMES_SHOWN = 6


def conclude(result: RunResult, tries: Sequence[tuple[str, str]]) -> str:
    """Draw the plot beside the model and return the last words.

    Args:
        result: of a run whose model was fetched.
        tries: commands that could be next, each with what it does.
    """
    if result.model_path is None:
        raise RunNotCompleted(f"the model of run {result.run_id} was not fetched")
    lines = ["", _verdict(result), ""]
    lines += [f"  model  {result.model_path}", f"  plot   {_plot(result, result.model_path)}"]
    lines += _best(result)
    lines += ["", "Load the model in Python:", ""]
    lines += [f"  {line}" for line in loading_lines(result.model_path)]
    lines += [f"  # {_names(result.model_path)}"]
    if tries:
        width = max(len(command) for command, _ in tries)
        lines += ["", "Try next:", ""]
        lines += [f"  {command:{width}}   {meaning}" for command, meaning in tries]
    return "\n".join(lines)


def loading_lines(model: Path) -> list[str]:
    """Return the Python lines that load a model."""
    return [
        "import rengo",
        f"weights = rengo.load_model({str(model)!r})",
    ]


def _verdict(result: RunResult) -> str:
    report = result.report
    rounds = wording.count(report.rounds_completed, "round")
    took = wording.duration(report.wall_s)
    ended = "Done" if result.status == "completed" else printable(result.status.capitalize())
    name = printable(report.headline)
    if report.measured is None:
        return f"{ended}: {rounds} in {took}; the {name} was not measured."
    return f"{ended}: {name} {report.measured:.4f} after {rounds} in {took}."


def _best(result: RunResult) -> list[str]:
    report = result.report
    if report.best_version is None:
        return []
    value = "" if report.best_value is None else f" ({report.best_value:.4f})"
    early = report.status == "completed" and report.rounds_completed < report.rounds
    why = [f"  early  {printable(report.reason)}"] if early else []
    lines = [f"  best   version {report.best_version}{value}, {result.best_model_path}"]
    return [*lines, *why]


def _plot(result: RunResult, model: Path) -> str:
    """Return where the plot lies, or why there is none: a run never fails for its plot."""
    headline = result.report.headline
    measured = {row.round: row.measured for row in result.history if row.measured is not None}
    if not measured:
        return f"none: the {headline} was not measured"
    # the name is the user's, and may be no file's name
    path = model.with_name("accuracy.png" if headline == "accuracy" else "metric.png")
    title = f"{result.report.task} by {result.report.algorithm}, {result.run_id}"
    try:
        draw_metric(measured, headline, title, path)
    except (MissingExtra, OSError) as error:
        return f"none: {error}"
    return str(path)


def _names(model: Path) -> str:
    arrays = read_safetensors(model).arrays()
    shown = [
        f"{printable(name, 80)} {array.shape}"
        for name, array in list(arrays.items())[:_NAMES_SHOWN]
    ]
    more = len(arrays) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")
