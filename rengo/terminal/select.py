"""Which view of a run fits where the output goes."""

from __future__ import annotations

import sys
from typing import TextIO

from rengo.terminal.view import PlainView, View


def open_view(out: TextIO | None = None) -> View:
    """Return the view that fits where ``out`` (standard output) goes; it is to be entered."""
    out = sys.stdout if out is None else out
    if not out.isatty():
        return PlainView(out)
    from rengo.terminal.live import LiveView, is_able  # noqa: PLC0415  rich is for terminals alone

    return LiveView(out) if is_able(out) else PlainView(out)
