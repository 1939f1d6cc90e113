"""How far a transfer is, in lines and as a bar."""

from __future__ import annotations

import io

from rengo.terminal.live import open_bar
from rengo.terminal.transfer_bar import Lines, open_meter


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_each_tenth_has_one_line() -> None:
    out = io.StringIO()
    with open_meter("run:3", 20_000_000, out) as watch:
        for done in (100, 2_000_000, 2_000_001, 7_000_000, 20_000_000):
            watch(done)
    assert out.getvalue().splitlines() == [
        "run:3: 2.0 MB of 20.0 MB, 10 %",
        "run:3: 7.0 MB of 20.0 MB, 35 %",
        "run:3: 20.0 MB of 20.0 MB, 100 %",
    ]


def test_a_small_file_needs_no_lines_and_an_empty_one_fails_nothing() -> None:
    out = io.StringIO()
    Lines("run:3", 9_968, out)(9_968)
    Lines("run:3", 0, out)(0)
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar_that_ends_full() -> None:
    out = Terminal()
    with open_bar("run:3", 1000, out) as watch:
        watch(400)
        watch(1000)
    assert "run:3" in out.getvalue()
    assert "1.0/1.0 kB" in out.getvalue()
