"""What happens in a run or a site, told once, in lines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker.wire.messages import RunDocument
from rengo.operator.client import News
from rengo.operator.progress import DeviceTable, RunProgress
from rengo.terminal import format as wording
from rengo.terminal.fitting import misfits_of


@dataclass(frozen=True)
class Line:
    """Something to tell; ``urgent`` where a picture of the run does not show it."""

    text: str
    urgent: bool = False


class EventLines:
    """Tells each thing once, in lines: who came and went, rounds, refusals, waiting."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._events_told = 0
        self._rounds_told: set[int] = set()
        self._begun = False
        self._waiting = ""

    def devices(self, device_table: DeviceTable) -> list[Line]:
        """Return who has come or gone since the last call."""
        lines = []
        for name in sorted(device_table.states):
            here, before = device_table.online(name), self._known.get(name)
            if here == before or (before is None and not (here and name in device_table.infos)):
                continue
            self._known[name] = here
            if not here:
                lines.append(
                    Line(f"{name} is gone ({device_table.states[name].status})", urgent=True)
                )
            elif before is None:
                lines.append(Line(f"{name} joined: {wording.device(device_table, name)}"))
            else:
                lines.append(Line(f"{name} is back", urgent=True))
        return lines

    def run(self, follower: RunProgress) -> list[Line]:
        """Return what happened in a run since the last call, but for its rounds."""
        document = follower.document
        lines = self.devices(follower.devices)
        if document is not None and not self._begun:
            self._begun = True
            rounds = wording.count(document.rounds, "round")
            named = f"run {follower.run_id}: {document.task}, {document.algorithm}, {rounds}"
            lines.append(Line(named))
        for event in follower.events[self._events_told :]:
            told = wording.trouble(event)
            if told is not None:
                lines.append(Line(told, urgent=True))
        self._events_told = len(follower.events)
        waiting = wording.waiting_for(follower) if follower.short_of_devices else ""
        if waiting not in {"", self._waiting}:
            lines.append(Line(waiting))
            lines += [Line(each) for each in misfits_of(follower)]
        self._waiting = waiting
        return lines

    def rounds(self, follower: RunProgress) -> list[Line]:
        """Return the lines of rounds whose metrics have settled since the last call, in order."""
        lines = []
        measured, losses = follower.measured, follower.means("loss")
        for number in follower.committed:
            if number in self._rounds_told:
                continue
            if follower.document is None or not follower.is_measured(number):
                break
            self._rounds_told.add(number)
            value, loss = (each.get(number) for each in (measured, losses))
            shown = wording.metrics_line(follower.headline, value, loss)
            rounds = follower.document.rounds
            lines.append(Line(wording.round_line(follower.rounds[number], rounds, shown)))
        return lines


class SiteEventLines:
    """Tells what happens in a site, in lines: who comes and goes, runs that begin and end."""

    def __init__(self) -> None:
        self._device_table = DeviceTable()
        self._story = EventLines()
        self._runs: dict[str, str] = {}

    def take(self, news: News) -> list[str]:
        """Take a message in and return what is new."""
        self._device_table.apply(news)
        lines = [line.text for line in self._story.devices(self._device_table)]
        if isinstance(news.message, RunDocument):
            lines += self._run(news.message)
        return lines

    def _run(self, document: RunDocument) -> list[str]:
        # between two rounds a run is "waiting" for an instant
        status = "running" if document.status == "waiting" else document.status
        before = self._runs.get(document.run_id)
        self._runs[document.run_id] = status
        if status == before or (before is None and status != "running"):
            return []
        if status == "running":
            verb = "begins" if before is None else "goes on"
            return [f"run {document.run_id} {verb}: {document.task}, {document.algorithm}"]
        by_loss = document.accuracy is None and document.loss is not None
        name, value = ("loss", document.loss) if by_loss else ("accuracy", document.accuracy)
        accuracy = f", {name} {wording.figure(value)}"
        reason = f": {document.reason}" if document.reason else ""
        return [f"run {document.run_id} is {status}{accuracy}{reason}"]
