"""What shows a run to a person while it goes on, and the view that prints plain lines."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Self, TextIO

from rengo.operator.progress import DeviceTable, RunProgress
from rengo.terminal.event_lines import EventLines
from rengo.terminal.lines import say


class View(ABC):
    """What shows a run. Use as a context manager; one thread uses it, ``note`` any thread.

    While it is open, warnings of the libraries (a process that is started again, a lost
    connection) appear in it as notes.
    """

    def __init__(self) -> None:
        self._story = EventLines()
        self._notes = _Notes(self)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._notes)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._notes)

    @abstractmethod
    def phase(self, text: str) -> None:
        """Say what goes on before there is a run, or after it; nothing more when empty."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Say something that stays."""

    @abstractmethod
    def devices(self, device_table: DeviceTable, expected: int) -> None:
        """Show who of ``expected`` devices has come."""

    @abstractmethod
    def update(self, follower: RunProgress) -> None:
        """Show what is new in a run."""


class PlainView(View):
    """A line for each thing that matters, for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out

    def phase(self, text: str) -> None:
        """Print it."""
        if text:
            self.note(text)

    def note(self, text: str) -> None:
        """Print it."""
        say(text, out=self._out)

    def devices(self, device_table: DeviceTable, expected: int) -> None:
        """Print who has come."""
        for line in self._story.devices(device_table):
            self.note(line.text)

    def update(self, follower: RunProgress) -> None:
        """Print what is new."""
        for line in (*self._story.run(follower), *self._story.rounds(follower)):
            self.note(line.text)


class _Notes(logging.Handler):
    """Shows the libraries' warnings in a view."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.note(record.getMessage())
