"""``rengo run --target --where`` against a real site: who trains, and why others do not."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from tests.integration.commands import rengo, surroundings
from tests.integration.test_cli_runs import DONE, USAGE, document, submitted

DEVICES = ("edge-1", "edge-2")
SHORT = ("--rounds", "1", "--set", "evaluation.on=none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with Site(folder) as site:
        specs = [
            DeviceSpec(name, engine="numpy", index=index, count=2)
            for index, name in enumerate(DEVICES)
        ]
        site.start_devices(specs, "digits")
        with site.connect() as client:
            wait_for_devices(client, DEVICES, 60.0)
        yield folder


def cohort(home: Path, tmp_path: Path, *options: str) -> list[str]:
    """Return who trained in a run of one round."""
    done = document(home, "run", "digits", *SHORT, "--output", str(tmp_path), *options)
    shown = document(home, "runs", "show", done["run_id"])
    found: list[str] = shown["history"][0]["included"]
    return found


def test_a_run_trains_where_it_is_addressed(home: Path, tmp_path: Path) -> None:
    assert cohort(home, tmp_path, "--target", "edge-2") == ["edge-2"]
    told = rengo("devices", "label", "edge-1,edge-2", "room=attic", "floor=1", home=home)
    assert told.out.splitlines() == ["edge-1: floor=1, room=attic", "edge-2: floor=1, room=attic"]
    assert rengo("devices", "label", "edge-2", "room=hall", "floor-", home=home).code == DONE
    assert cohort(home, tmp_path, "--where", "room=attic", "--where", "ram>=100MB") == ["edge-1"]
    assert rengo("devices", "group", "edge-2", "lab", home=home).out == "edge-2: in group lab\n"
    assert cohort(home, tmp_path, "--target", "group:lab") == ["edge-2"]
    audit = rengo("audit", home=home).out
    assert "labels changed" in audit
    assert "group changed" in audit
    assert "room hall" in rengo("devices", "show", "edge-2", home=home).out


def test_a_run_that_fits_nobody_says_why_until_somebody_fits(home: Path, tmp_path: Path) -> None:
    told = rengo("run", "digits", *SHORT, "--where", "shelf=2", home=home)
    assert told.code == DONE
    for line in ("2 devices: not label.shelf=2", "  edge-1 has no label shelf"):
        assert line in told.out.splitlines(), told
    run_id = submitted(told)
    shown = rengo("runs", "show", run_id, home=home).out
    assert "target    everybody, with shelf=2" in shown
    assert "devices   0 of 2 can train now" in shown
    assert "edge-2 has no label shelf" in shown
    argv = [sys.executable, "-m", "rengo", "runs", "follow", run_id]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=surroundings(home), cwd=tmp_path
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("  edge-2"):
                break
        assert "  edge-1 has no label shelf" in lines
        wait = "waiting for devices that have task 'digits', of everybody, with shelf=2: 0 of 1"
        assert wait in lines
        assert rengo("devices", "label", "edge-1", "shelf=2", home=home).code == DONE
        rest, _ = process.communicate(timeout=60.0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "completed" in rest
    row = document(home, "runs", "show", run_id)["history"][0]
    assert row["included"] == ["edge-1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "digits", "--where", "profle=cpu"), "did you mean profile?"),
        (("run", "digits", "--where", "ram>=4"), "4 has no unit"),
        (("run", "digits", "--target", "edge-3"), "did you mean edge-"),
        (("run", "digits", "--target", "Lab"), "'Lab' is no target"),
        (("devices", "label", "edge-9", "a=b"), "no active device 'edge-9'; did you mean edge-"),
        (("devices", "label", "edge-1", "a"), "write a=VALUE, or a- to take it away"),
        (("devices", "group", "edge-1"), "name one group, or"),
    ],
)
def test_bad_input_is_one_line(home: Path, arguments: tuple[str, ...], words: str) -> None:
    told = rengo(*arguments, home=home)
    assert told.code == USAGE
    [line] = told.err.splitlines()
    assert words in line


def test_the_topology_of_a_flat_site(home: Path) -> None:
    lines = rengo("topology", home=home).out.splitlines()
    assert lines[0].startswith("main ")
    assert "2 of 2 devices online" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["├─", "edge-1"], ["└─", "edge-2"]]
    nodes = document(home, "topology")["nodes"]
    assert [each["path"] for each in nodes] == ["main", "main/edge-1", "main/edge-2"]
    assert nodes[1]["bytes_up"] > 1000, "of the runs before"
    told = rengo("topology", "--limit", "-1", home=home)
    assert (told.code, told.err) == (USAGE, "rengo: --limit -1: list 0 members or more\n")


def test_the_topology_is_live_on_a_terminal(home: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rengo", "topology"],
        stdin=theirs,
        stdout=theirs,
        env={**surroundings(home), "TERM": "xterm", "COLUMNS": "100"},
        cwd=tmp_path,
    )
    os.close(theirs)
    try:
        seen = b""
        while seen.count(b"edge-2") < 2:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal's end
            while os.read(ours, 4096):
                pass
        assert process.wait(30.0) == DONE
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"\x1b[" in seen
