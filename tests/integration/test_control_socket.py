"""Other processes ask the supervisor of a broker, whether it runs or not."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.brokers.control_socket import SOCKET, ControlSocket, ask_supervisor
from runtime.errors import ConfigError, TransportError
from runtime.processes.child import Child
from runtime.processes.unix_socket import short_address
from tests.integration.broker_fixtures import eventually

# counts its signals in a file
COUNTING = """
import pathlib, signal, sys
signals = pathlib.Path(sys.argv[1])
def count(*_):
    with signals.open("a") as file:
        file.write("x")
signal.signal(signal.SIGHUP, count)
signals.touch()
while True:
    signal.pause()
"""
SUPERVISING = """
import pathlib, sys, threading
from broker.brokers.control_socket import ControlSocket
from runtime.processes.child import Child
child = Child("a child", [sys.executable, "-c", "input()"], pathlib.Path(sys.argv[1]) / "log")
control = ControlSocket(pathlib.Path(sys.argv[1]), child)
print("kept", flush=True)
threading.Event().wait()
"""


@contextmanager
def supervised(folder: Path) -> Iterator[tuple[Child, Path]]:
    """A supervised child, and the file with a character for each signal that it got."""
    signals = folder / "signals"
    child = Child("a broker", [sys.executable, "-c", COUNTING, str(signals)], folder / "log")
    control = ControlSocket(folder, child)
    try:
        child.start()
        eventually(signals.exists)
        yield child, signals
    finally:
        child.kill()
        control.close()


@pytest.mark.parametrize("depth", [0, 3])
def test_a_request_reaches_the_broker_in_a_folder_of_any_depth(depth: int, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-name-of-fifty-characters-or-more-yes"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    with supervised(folder) as (child, signals):
        assert stat.S_IMODE((folder / SOCKET).stat().st_mode) == 0o600
        assert ask_supervisor(folder, "pid") == child.pid
        assert signals.read_text() == ""
        assert ask_supervisor(folder, "reload") == child.pid
        eventually(lambda: signals.read_text() == "x")
    assert ask_supervisor(folder, "pid") is None
    assert not (folder / SOCKET).exists()


def test_a_broker_that_has_ended_is_none_while_its_supervisor_stays(tmp_path: Path) -> None:
    with supervised(tmp_path) as (child, _):
        child.signal(signal.SIGKILL)
        eventually(lambda: ask_supervisor(tmp_path, "reload") is None)
        child.start()
        assert ask_supervisor(tmp_path, "pid") == child.pid


def test_a_killed_supervisor_counts_as_no_broker_and_blocks_nobody(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISING, str(tmp_path)], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"kept\n"
        supervisor.kill()
    assert (tmp_path / SOCKET).exists()
    assert ask_supervisor(tmp_path, "reload") is None
    with supervised(tmp_path) as (child, _):
        assert ask_supervisor(tmp_path, "pid") == child.pid


def test_a_supervisor_that_hangs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.brokers.control_socket._ANSWER_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging, short_address(tmp_path / SOCKET) as address:
        hanging.bind(address)
        hanging.listen()
        with pytest.raises(TransportError, match="does not answer"):
            ask_supervisor(tmp_path, "pid")


def test_a_silent_client_does_not_block_others_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.brokers.control_socket._REQUEST_TIMEOUT_S", 0.2)
    with supervised(tmp_path) as (child, signals), socket.socket(socket.AF_UNIX) as silent:
        with short_address(tmp_path / SOCKET) as address:
            silent.connect(address)
        assert ask_supervisor(tmp_path, "pid") == child.pid
        with socket.socket(socket.AF_UNIX) as strange, short_address(tmp_path / SOCKET) as address:
            strange.connect(address)
            strange.sendall(b"destroy it\n")
            assert strange.recv(16) == b"%d\n" % child.pid
        assert signals.read_text() == ""


def test_a_folder_that_takes_no_socket_is_named(tmp_path: Path) -> None:
    child = Child("a broker", ["true"], tmp_path / "log")
    with pytest.raises(ConfigError, match="there can be no socket"):
        ControlSocket(tmp_path / "absent", child)
