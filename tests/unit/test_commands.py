"""docs/commands.md says every command and flag."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rengo.cli.main import build_parser
from rengo.cli.reference import arguments, commands, render

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("d*/**/*.md")]
COMMANDS = dict(commands(build_parser()))
GROUPS = {words[:count] for words in COMMANDS for count in range(1, len(words))}
_SHOWN = re.compile(r"^ *(?:\$ )?(?:sudo )?(rengo [^`]*)$|`(rengo [^`]+)`", re.MULTILINE)


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


def shown(page: str) -> Iterator[str]:
    """Yield each command that a page shows as one that there is: in a line or in a sentence."""
    for line in page.splitlines():
        if "not there yet" not in line and "-->" not in line:
            yield from (" ".join(found) for found in _SHOWN.findall(line))


def faults(command: str) -> list[str]:
    """Return what a command line says that no command takes; ``a|b`` is either."""
    words, path = command.partition("#")[0].split()[1:], tuple[str, ...]()
    while words:
        options = [(*path, word) for word in words[0].split("|")]
        if not all(each in COMMANDS or each in GROUPS for each in options):
            break
        path, words = options[0], words[1:]
    if path not in COMMANDS:
        return [] if path in GROUPS and not words else [command]
    known = {flag for action in COMMANDS[path]._actions for flag in action.option_strings}
    named = {flag for word in words for flag in re.findall(r"^-[-\w]+|(?<=[|\[])-[-\w]+", word)}
    return sorted(named - known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_that_a_page_shows_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {command: faults(command) for command in shown(text) if faults(command)} == {}


def test_a_command_that_is_not_there_is_noticed() -> None:
    text = "$ rengo runs list\nSee `rengo runs ls|show` and `rengo runs`.\n`rengo demo --round 3`\n"
    assert [faults(command.strip()) for command in shown(text)] == [
        ["rengo runs list"],
        [],
        [],
        ["--round"],
    ]
