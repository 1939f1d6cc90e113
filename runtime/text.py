"""Text of others, fit for a terminal and a log: data, which moves no cursor and begins no line."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TypeAlias

MAX_CHARS = 2000
_ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


def printable(text: str, most: int = MAX_CHARS) -> str:
    r"""Return a text on one line, what a terminal would act upon escaped, a long one cut.

    Escaped are control characters (an escape sequence, an end of line), those that turn the
    direction of writing or cannot be seen, and halves of characters.

    >>> printable("\x1b[2J\rroot \u202eevil")
    '\\x1b[2J\\rroot \\u202eevil'
    """
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


class LogFormatter(logging.Formatter):
    """One line a record, and a traceback indented, so that none of its lines looks like one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        """Return the record's line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 (logging's own name)
        """Return the lines of a traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 (logging's own name)
        """Return the lines of a stack."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    # at line feeds alone: all else that might begin a line is escaped
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))
