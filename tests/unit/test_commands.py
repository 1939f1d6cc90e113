"""docs/commands.md says every command and flag."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from rengo.cli.main import build_parser
from rengo.cli.reference import arguments, commands, render

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
COMMANDS = dict(commands(build_parser()))


def test_the_page_is_the_code_s() -> None:
    assert render() == PAGE, "python -m rengo.cli.reference > docs/commands.md"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_flag_is_on_the_page_and_says_what_it_is_for(words: tuple[str, ...]) -> None:
    _, _, rest = PAGE.partition(f"## `rengo {' '.join(words)}`\n")
    section = rest.partition("\n## ")[0]
    assert section, words
    for action in arguments(COMMANDS[words]):
        assert action.help, f"{words}: {action.dest} has no help"
        for flag in action.option_strings or [action.dest.upper()]:
            assert any(f"{flag}{end}" in section for end in " `,"), flag


def test_a_new_flag_is_missed_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser(epilog=build_parser().epilog)
    words = parser.add_subparsers()
    words.add_parser("demo", description="train").add_argument("--new", help="new")
    monkeypatch.setattr("rengo.cli.reference.build_parser", lambda: parser)
    assert "`--new NEW`" in render()
    assert render() != PAGE
