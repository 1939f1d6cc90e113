"""The README's ways to a run of one's own, with its very words, as real processes."""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from runtime.errors import TransportError
from storage.weights import read_safetensors
from tests.examples import pages
from tests.integration.commands import rengo, surroundings

PATIENCE_S = 60.0
COMMANDS = [
    line
    for block in pages.blocks("README.md", "")
    for line in block.splitlines()
    if line.startswith("rengo ")
]
(PYTHON,) = [body for body in pages.blocks("README.md", "python") if "with Site()" in body]


def command(beginning: str) -> list[str]:
    """Return the README's one command that is or begins so, to be run from the repository's root.

    One that is exactly so comes before longer ones.
    """
    found = [line for line in COMMANDS if line.startswith(beginning)]
    (line,) = [beginning] if beginning in found else found
    return [sys.executable, "-m", *shlex.split(line)]


class Terminal:
    """A command that runs in the foreground of a terminal of its own."""

    def __init__(self, argv: list[str], home: Path) -> None:
        self._process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=surroundings(home),
            cwd=pages.ROOT,
            process_group=0,
        )
        self.lines: list[str] = []
        self._coming: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, pattern: str) -> str:
        """Return the next line that matches."""
        deadline = time.monotonic() + PATIENCE_S
        while (line := self._next(deadline)) is not None:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        pytest.fail(f"no line matches {pattern!r}: {self.lines}")

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self.end()

    def end(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while (line := self._next(deadline)) is not None:
            self.lines.append(line)
        return self._process.wait(1.0)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._coming.put(line.rstrip("\n"))
        self._coming.put(None)

    def _next(self, deadline: float) -> str | None:
        try:
            return self._coming.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None


@contextmanager
def terminals(home: Path) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    try:
        yield opened
    finally:
        for terminal in reversed(opened):
            terminal.kill()


def test_four_terminals_as_the_readme_shows_them(tmp_path: Path) -> None:
    home, output = tmp_path / "home", tmp_path / "output"
    with terminals(home) as opened:
        up = Terminal(command("rengo up"), home)
        opened.append(up)
        up.until("Ctrl-C stops the site")
        clients = [Terminal(command("rengo client"), home) for _ in range(2)]
        opened.extend(clients)
        joined = {up.until(r"^\S+ joined: ").split()[0] for _ in clients}
        assert joined == {"device-1", "device-2"}, "each client takes an identity of its own"
        run = Terminal([*command("rengo run"), "--output", str(output)], home)
        opened.append(run)
        assert run.end() == 0, run.lines
        rounds = [line for line in run.lines if line.startswith("round ")]
        assert len(rounds) == 10
        assert all("2/2 updates" in line for line in rounds)
        (model,) = output.glob("my_task-*/model.safetensors")
        assert f"  model  {model}" in run.lines
        assert list(read_safetensors(model).arrays()) == [
            *("0.weight", "0.bias", "2.weight", "2.bias")
        ]
        (done,) = [line for line in run.lines if line.startswith("Done: accuracy ")]
        assert float(done.split()[2]) > 0.9
        up.until(rf"^run my_task-\S+ is completed, accuracy {re.escape(done.split()[2])}\b")
        assert [client.interrupt() for client in clients] == [0, 0]
        assert {up.until(r" is gone \(offline\)").split()[0] for _ in clients} == joined
        assert up.interrupt() == 0
        assert up.lines[-1] == f"Stopped. Everything is kept in {home}."
    listed = rengo("runs", "ls", home=home)
    assert listed.code == 4, "the site is down"


def test_what_up_prints_to_add_a_device_and_start_a_run_works(tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    with terminals(home) as opened:
        argv = [sys.executable, "-m", "rengo", "up", "--data-dir", str(home), "--devices", "1"]
        up = Terminal(argv, tmp_path / "unused")
        opened.append(up)
        up.until("Ctrl-C stops the site")
        told = [line.strip() for line in up.lines if line.startswith("  RENGO_HOME=")]
        printed = dict(zip(("client", "invite", "run"), told, strict=True))
        for line in printed.values():
            assert line.startswith(f"RENGO_HOME={home} "), "the folder is not the usual one"
        words = {name: shlex.split(line)[1:] for name, line in printed.items()}
        bin_dir = str(Path(sys.executable).parent)
        client = Terminal([f"{bin_dir}/{words['client'][0]}", *words["client"][1:]], home)
        opened.append(client)
        up.until("^device-1 joined: ")
        invite = Terminal([f"{bin_dir}/{words['invite'][0]}", *words["invite"][1:]], home)
        opened.append(invite)
        assert invite.end() == 0, invite.lines
        assert any(line.startswith("  rengo enroll mqtt://") for line in invite.lines)
        options = ["--output", str(tmp_path / "output")]
        run = Terminal([f"{bin_dir}/{words['run'][0]}", *words["run"][1:], *options], home)
        opened.append(run)
        assert run.end() == 0, run.lines
        assert client.interrupt() == 0
        assert up.interrupt() == 0


def test_a_site_comes_up_again_with_its_runs_and_ports(tmp_path: Path) -> None:
    home = tmp_path / "home"
    addresses = []
    for _ in range(2):
        with terminals(home) as opened:
            up = Terminal([sys.executable, "-m", "rengo", "up"], home)
            opened.append(up)
            addresses.append(up.until("mqtt://"))
            up.until("Ctrl-C stops the site")
            if len(addresses) == 1:
                example = pages.ROOT / "examples" / "my_task.py"
                assert rengo("run", f"{example}:MyTask", home=home).code == 0
            listed = rengo("runs", "ls", home=home)
            assert up.interrupt() == 0
    assert addresses[0] == addresses[1]
    assert re.search(r"^my_task-\w+ +waiting ", listed.out, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_site_that_is_stopped_while_it_starts(number: signal.Signals, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with terminals(home) as opened:
        up = Terminal([sys.executable, "-m", "rengo", "up"], home)
        opened.append(up)
        up.until("^Starting the broker")
        os.killpg(up._process.pid, number)
        assert up.end() == 0
        assert up.lines[-1] == f"Stopped. Everything is kept in {home}."


def test_the_readmes_python_lines_train_a_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PYTHON],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=tmp_path,
        env=surroundings(None, {"PYTHONPATH": str(pages.ROOT), "TMPDIR": str(tmp_path)}),
    )
    assert done.returncode == 0, done.stderr
    accuracy, model = done.stdout.split()
    assert float(accuracy) > 0.9
    assert (tmp_path / model).is_file()
    left = [path.name for path in tmp_path.iterdir() if path.name != "rengo-output"]
    assert left == []


def test_a_device_whose_word_was_missed_is_found_all_the_same(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        site.start_devices([DeviceSpec("device-1", engine="numpy")], "digits")
        with site.connect() as client:
            wait_for_devices(client, ["device-1"], 60.0)
            list(client.news(2.0))
            wait_for_devices(client, ["device-1"], 30.0)


def test_a_device_that_does_not_stay_up_is_told_with_its_reason(tmp_path: Path) -> None:
    with Site(tmp_path / "site") as site:
        site.start_devices([DeviceSpec("device-1", engine="numpy")], "nosuch")

        def look_until_told() -> None:
            while True:
                site.check_processes()

        with pytest.raises(TransportError, match=r"device-1 does not stay up: .*no task 'nosuch'"):
            look_until_told()
