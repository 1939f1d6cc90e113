"""The live picture of a run on a terminal, drawn by rich."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rengo.operator.progress import DeviceTable, RunProgress
from rengo.terminal import format as wording
from rengo.terminal.event_lines import Line
from rengo.terminal.fitting import misfits_of
from rengo.terminal.view import View
from runtime.text import printable
from storage.transfer.files import OnProgress

_REFRESH_PER_S = 5
_MAX_ROWS = 12
_MAX_CELL = 40
_MAX_LINE = 160
_BAR_WIDTH = 24
_SPARK_WIDTH = 40
_STYLES = {"training": "cyan", "evaluating": "cyan", "answered": "green", "refused": "red"}


@dataclass(frozen=True)
class DeviceLine:
    """One device of the picture."""

    name: str
    profile: str
    engine: str
    doing: str


@dataclass(frozen=True)
class Picture:
    """What there is to see at one moment; the refreshing thread draws it.

    Attributes:
        busy: what goes on while no round is open; said beside a spinner.
        hidden: devices beyond the rows.
        due_s: when the open round's time is over, on the monotonic clock.
        misfits: why devices do not fit the run, while it waits for some.
    """

    busy: str = ""
    title: str = ""
    rows: tuple[DeviceLine, ...] = ()
    hidden: int = 0
    round: int = 0
    rounds: int = 0
    committed: int = 0
    state: str = ""
    due_s: float | None = None
    headline: str = "accuracy"
    measured: tuple[float, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    misfits: tuple[str, ...] = ()


def is_able(out: TextIO) -> bool:
    """Whether the terminal can redraw, and show what the picture is made of."""
    return not Console(file=out).is_dumb_terminal and "utf" in (out.encoding or "").lower()


@contextmanager
def open_bar(what: str, total: int, out: TextIO) -> Iterator[OnProgress]:
    """Give what is to be called with the bytes that are there; they are shown as a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(_BAR_WIDTH),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=out, highlight=False)) as progress:

        def watch(done: int) -> None:
            # bytes of an earlier attempt do not count for the speed
            if not progress.task_ids:
                progress.add_task(what, total=total, completed=done)
            progress.update(progress.task_ids[0], completed=done)

        yield watch


class LiveView(View):
    """Redraws one picture in place; what must stay is printed above it."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._console = Console(file=out, highlight=False)
        self._picture = Picture()
        self._spinner = Spinner("dots", style="cyan")
        self._begun_s = time.monotonic()
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=_REFRESH_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self._live.start()
        return self

    def __exit__(self, *exit_: object) -> None:
        self._picture = replace(self._picture, busy="", due_s=None)
        self._live.stop()
        super().__exit__(*exit_)

    def phase(self, text: str) -> None:
        """Show it beside a spinner."""
        self._picture = replace(self._picture, busy=text, state="", due_s=None)

    def note(self, text: str) -> None:
        """Print it above the picture."""
        self._console.print(Text(printable(text), style="yellow"))

    def devices(self, device_table: DeviceTable, expected: int) -> None:
        """Show who has come, and how many are awaited."""
        here = sorted(name for name in device_table.states if device_table.online(name))
        self._tell(self._story.devices(device_table))
        self._picture = Picture(
            busy=f"Waiting for devices: {len(here)} of {expected} are here",
            **_table(device_table, here, None),
        )

    def update(self, follower: RunProgress) -> None:
        """Show the run as it is now."""
        self._tell(self._story.run(follower))
        self._picture = picture_of(follower)

    def _tell(self, lines: list[Line]) -> None:
        for line in lines:
            if line.urgent:
                self.note(line.text)

    def _draw(self) -> RenderableType:
        now_s = time.monotonic()
        return draw(self._picture, self._spinner, now_s, now_s - self._begun_s)


def picture_of(follower: RunProgress) -> Picture:
    """Return what there is to see of a run now."""
    document = follower.document
    if document is None:
        return Picture(busy="Submitted")
    left_s = follower.deadline_left_s
    measured = follower.measured
    names = follower.devices.with_task(document.task, bundled=follower.bundled)
    table = _table(follower.devices, names, follower)
    return Picture(
        busy=wording.waiting_for(follower).capitalize() if follower.short_of_devices else "",
        title=f"{follower.run_id}: {document.task} by {document.algorithm}",
        round=min(document.round, document.rounds),
        rounds=document.rounds,
        committed=len(follower.committed),
        state=_state(follower),
        due_s=None if left_s is None else follower.clock() + left_s,
        headline=follower.headline,
        measured=tuple(measured[version] for version in sorted(measured)),
        bytes_up=follower.bytes_up,
        bytes_down=follower.bytes_down,
        misfits=tuple(misfits_of(follower)),
        **table,
    )


def draw(picture: Picture, spinner: Spinner, now_s: float, elapsed_s: float) -> RenderableType:
    """Return the picture as rich prints it."""
    parts: list[RenderableType] = []
    if picture.title:
        parts += [Text(printable(picture.title), style="bold"), ""]
    if picture.rounds:
        parts += [_round(picture, now_s), ""]
    if picture.rows:
        parts += [_devices(picture), ""]
    if picture.measured:
        parts.append(_measured(picture.headline, picture.measured))
    if picture.rounds:
        moved = f"{wording.size(picture.bytes_up)} up, {wording.size(picture.bytes_down)} down"
        parts += [_pair("moved", moved), _pair("time", f"{elapsed_s:.0f} s")]
    if picture.busy:
        spinner.update(text=Text(printable(f"{picture.busy}  {elapsed_s:.0f} s")))
        parts.append(spinner)
    parts += [Text(printable(f"  {each}", _MAX_LINE), style="dim") for each in picture.misfits]
    return Group(*parts)


def _round(picture: Picture, now_s: float) -> RenderableType:
    left = "" if picture.due_s is None else f", {max(0.0, picture.due_s - now_s):.0f} s left"
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        f"Round {picture.round} of {picture.rounds}",
        ProgressBar(picture.rounds, picture.committed, width=_BAR_WIDTH),
        Text(f"{picture.state}{left}", style="dim"),
    )
    return grid


def _devices(picture: Picture) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for row in picture.rows:
        style = _STYLES.get(row.doing, "dim")
        grid.add_row(
            row.name, Text(row.profile, "dim"), Text(row.engine, "dim"), Text(row.doing, style)
        )
    if picture.hidden:
        grid.add_row(Text(f"and {picture.hidden} more", style="dim"))
    return grid


def _measured(name: str, values: tuple[float, ...]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    bars = Text(wording.sparkline(values, _SPARK_WIDTH), style="cyan")
    grid.add_row(name, Text(f"{values[-1]:.4f}", style="bold"), bars)
    return grid


def _pair(name: str, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(f"{name:8}", Text(text, style="dim"))
    return grid


def _state(follower: RunProgress) -> str:
    document = follower.document
    if document is None or document.status not in {"running", "waiting"}:
        return "" if document is None else document.status
    answered = f"{len(document.answered)} of {len(document.cohort)} have answered"
    return {
        "gathering": "next round",
        "collecting": answered,
        "aggregating": "averaging",
        "evaluating": "measuring the last model",
    }.get(document.phase, document.phase)


def _table(
    device_table: DeviceTable, names: list[str], follower: RunProgress | None
) -> dict[str, Any]:
    rows = []
    for name in names[:_MAX_ROWS]:
        info = device_table.infos.get(name)
        profile, engine = ("", "") if info is None else (info.profile, info.engine)
        if device_table.states[name].role == "evaluator":
            profile = "evaluator"
        words = (name, profile, engine, _doing(device_table, name, follower))
        rows.append(DeviceLine(*(printable(each, _MAX_CELL) for each in words)))
    return {"rows": tuple(rows), "hidden": max(0, len(names) - _MAX_ROWS)}


def _doing(device_table: DeviceTable, name: str, follower: RunProgress | None) -> str:
    state = device_table.states[name]
    document = None if follower is None else follower.document
    if not device_table.online(name):
        return "gone"
    if follower is not None and document is not None and name in document.cohort:
        current = follower.rounds.get(document.round)
        if current is not None and name in current.refused:
            return "refused"
        if name in document.answered:
            return "answered"
    if state.status == "training":
        return "evaluating" if state.role == "evaluator" else "training"
    return state.status
