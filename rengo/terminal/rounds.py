"""The progress of many quick rounds: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from rengo.terminal.format import figure
from rengo.terminal.lines import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.1


class RoundsBar:
    """Shows how far a run has come. Use as a context manager.

    Args:
        out: where it goes.
        rounds: how many there are.
        headline: the metric that is shown.
    """

    def __init__(self, out: TextIO, rounds: int, headline: str) -> None:
        self._out, self._rounds, self._headline = out, rounds, headline
        self._begun_s = self._shown_s = time.monotonic()
        self._begun_at: int | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._out.isatty():
            self._progress = _bar(self._out)
            self._task = self._progress.add_task("", total=self._rounds, told="")
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, committed: int, measured: float | None) -> None:
        """Show that so many rounds are committed, where it is time for it.

        Args:
            measured: the latest value of the headline metric.
        """
        now_s = time.monotonic()
        if self._begun_at is None:
            # a run that goes on began before this process
            self._begun_at = committed - 1
        every_s = _LINE_EVERY_S if self._progress is None else _BAR_EVERY_S
        if now_s - self._shown_s < every_s and committed < self._rounds:
            return
        self._shown_s = now_s
        rate = (committed - self._begun_at) / max(now_s - self._begun_s, 1e-9)
        told = f"{self._headline} {figure(measured)}  {rate:,.1f} rounds/s"
        if self._progress is None or self._task is None:
            say(f"round {committed}/{self._rounds}  {told}", out=self._out)
        else:
            self._progress.update(self._task, completed=committed, told=told)


def _bar(out: TextIO) -> Progress:
    # for terminals alone, and slow to import
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=Console(file=out),
    )
