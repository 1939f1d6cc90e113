"""The tests' own watchdogs can bark."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import support

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
ORPHAN = (
    "import subprocess, sys; "
    f"print(subprocess.Popen({SLEEP!r}, stdout=-3, stderr=-3, process_group=0).pid)"
)


def test_a_child_is_seen_while_it_lives_and_not_after() -> None:
    child = subprocess.Popen(SLEEP)
    try:
        assert child.pid in {p.pid for p in support.processes_left("no such mark")}
    finally:
        child.kill()
        child.wait()
    assert child.pid not in {p.pid for p in support.processes_left("no such mark")}


def test_an_orphan_is_seen_by_the_mark() -> None:
    mark = os.environ[support.SESSION_MARK]
    parent = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True
    )
    orphan = psutil.Process(int(parent.stdout))
    try:
        assert orphan in support.processes_left(mark)
        assert any(str(orphan.pid) in line for line in support.describe([orphan]))
    finally:
        orphan.kill()
    assert orphan not in support.wait_for_none_left(mark, grace_s=5.0)


def test_a_listening_port_of_ours_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in support.own_listening_ports()
    assert port not in support.own_listening_ports()


def test_a_missing_program_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(support.CI_FLAG, raising=False)
    with pytest.raises(pytest.skip.Exception, match="comes with the package postgresql"):
        support.require("no-such-server", "postgresql")
    monkeypatch.setenv(support.CI_FLAG, "1")
    with pytest.raises(pytest.fail.Exception, match="no skip"):
        support.require("no-such-server", "postgresql")


def test_what_is_long_is_marked_and_the_rest_is_as_it_was() -> None:
    first, second = support.soaking(["short", "long"], lambda each: each == "long")
    assert first == "short"
    assert isinstance(second, support.ParameterSet)
    assert (second.values, [mark.name for mark in second.marks]) == (("long",), ["soak"])


def test_a_program_on_the_path_is_returned() -> None:
    assert support.require("sh") == Path(support.find_binary("sh") or "")
