"""The agent that ``rengo enroll`` becomes: what it was told, without the token."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from fl_client.own_packages import command
from rengo.cli.machine import enroll
from rengo.cli.main import build_parser, main

TOKEN = "rengo_" + "x" * 40
WORDS = ["--task", "a b.py:C", "--task", "digits", "--role", "evaluator", "--index", "1"]
WORDS += ["--count", "3", "--folder", "/data", "--config", "agent.toml", "--data-dir", "d e"]
WORDS += ["--partition", "dirichlet(0.3)", "--label", "room=the attic", "--label", "floor=3"]


class Became(Exception):
    """This process would have become another program."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Where the words and the environment of the agent come."""
    found: list[Any] = []

    def execve(program: str, words: list[str], around: dict[str, str]) -> NoReturn:
        found.extend([program, words, around])
        raise Became

    enrolled = SimpleNamespace(path=tmp_path / "identities" / "pi-1.json", clock_off_s=0.0)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(enroll, "enroll", lambda *_: enrolled)
    monkeypatch.setattr(enroll.JoinToken, "parse", lambda _: None)
    monkeypatch.setenv("RENGO_HOME", str(tmp_path))
    return found


@pytest.mark.parametrize("more", [["--engine", "numpy", "--profile", "cpu"], ["--pi"]])
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_agent_runs_without_the_token(
    became: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str, more: list[str]
) -> None:
    given = ["--token", TOKEN] if by == "flag" else []
    monkeypatch.setenv("RENGO_JOIN_TOKEN", TOKEN if by == "variable" else "")
    with pytest.raises(Became):
        main(["--debug", "enroll", "mqtt://127.0.0.1:1883", *given, *WORDS, *more])
    program, words, around = became
    assert program == sys.executable
    assert words[:4] == command("rengo")
    assert TOKEN not in " ".join(words)
    assert TOKEN not in around.values()
    options = build_parser().parse_args(words[4:])
    wanted = build_parser().parse_args(["client", *WORDS])
    told = ("task", "role", "index", "count", "folder", "config", "data_dir", "partition", "label")
    for name in told:
        assert getattr(options, name) == getattr(wanted, name), name
    assert options.command == ("iot" if "--pi" in more else "client")
    assert options.identity == tmp_path / "identities" / "pi-1.json"
    assert options.debug
