"""Writes docs/commands.md from the parsers: python -m rengo.cli.reference > docs/commands.md"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rengo.cli.main import build_parser

_INTRO = """\
# Commands

This page is written from the code by `python -m rengo.cli.reference`; a test compares the two.
"""


def render() -> str:
    """Return the whole page."""
    parser = build_parser()
    parts = [
        _INTRO,
        f"{parser.epilog}\n",
        "Every command takes `--debug`, which shows tracebacks.\n",
    ]
    for words, command in commands(parser):
        parts += [f"## `rengo {' '.join(words)}`\n", f"{_sentence(command.description or '')}\n"]
        rows = [f"| {_names(action)} | {_help(action)} |" for action in arguments(command)]
        if rows:
            parts.append("\n".join(["| argument | |", "| --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Yield every command with its words, groups of commands left out."""
    groups = [action for action in parser._actions if action.choices and action.nargs == "A..."]
    if not groups:
        yield words, parser
    for group in groups:
        choices: dict[str, argparse.ArgumentParser] = dict(group.choices or {})
        for name, command in choices.items():
            yield from commands(command, (*words, name))


def arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return what a command takes, but for what every command takes."""
    return [action for action in command._actions if action.help != argparse.SUPPRESS][1:]


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        name = f"`{action.dest.upper()}`"
        return f"{name}, optional" if action.nargs == "?" else name
    value = ""
    if action.nargs != 0:
        value = " " + str(action.metavar or action.dest.upper())
        if action.choices:
            value = " " + ",".join(map(str, action.choices))
    return f"`{', '.join(action.option_strings)}{value}`" + (
        ", required" if action.required else ""
    )


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    print(render(), end="")
