"""Who keeps a broker is asked by others, whatever became of it."""

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

from broker.brokers.control_socket import SOCKET, ControlSocket, ask_keeper
from runtime.errors import ConfigError, TransportError
from runtime.processes.child import Child
from runtime.processes.unix_socket import short_address
from tests.integration.broker_fixtures import eventually

# counts its signals in a file
COUNTING = """
import pathlib, signal, sys
told = pathlib.Path(sys.argv[1])
def count(*_):
    with told.open("a") as file:
        file.write("x")
signal.signal(signal.SIGHUP, count)
told.touch()
while True:
    signal.pause()
"""
KEEPING = """
import pathlib, sys, threading
from broker.brokers.control_socket import KeeperDoor
from runtime.processes.child import Child
child = Child("a child", [sys.executable, "-c", "input()"], pathlib.Path(sys.argv[1]) / "log")
door = KeeperDoor(pathlib.Path(sys.argv[1]), child)
print("kept", flush=True)
threading.Event().wait()
"""


@contextmanager
def kept(folder: Path) -> Iterator[tuple[Child, Path]]:
    """A child that is kept, and the file with a character for each signal that it got."""
    told = folder / "told"
    child = Child("a broker", [sys.executable, "-c", COUNTING, str(told)], folder / "log")
    door = ControlSocket(folder, child)
    try:
        child.start()
        eventually(told.exists)
        yield child, told
    finally:
        child.kill()
        door.close()


@pytest.mark.parametrize("depth", [0, 3])
def test_a_wish_reaches_the_broker_in_a_folder_of_any_depth(depth: int, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-name-of-fifty-characters-or-more-yes"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    with kept(folder) as (child, told):
        assert stat.S_IMODE((folder / SOCKET).stat().st_mode) == 0o600
        assert ask_keeper(folder, "pid") == child.pid
        assert told.read_text() == ""
        assert ask_keeper(folder, "reload") == child.pid
        eventually(lambda: told.read_text() == "x")
    assert ask_keeper(folder, "pid") is None
    assert not (folder / SOCKET).exists()


def test_a_broker_that_has_ended_is_none_while_its_keeper_stays(tmp_path: Path) -> None:
    with kept(tmp_path) as (child, _):
        child.signal(signal.SIGKILL)
        eventually(lambda: ask_keeper(tmp_path, "reload") is None)
        child.start()
        assert ask_keeper(tmp_path, "pid") == child.pid


def test_a_killed_keeper_is_none_and_in_nobody_s_way(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPING, str(tmp_path)], stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"kept\n"
        keeper.kill()
    assert (tmp_path / SOCKET).exists()
    assert ask_keeper(tmp_path, "reload") is None
    with kept(tmp_path) as (child, _):
        assert ask_keeper(tmp_path, "pid") == child.pid


def test_a_keeper_that_hangs_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.brokers.control_socket._ANSWER_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging, short_address(tmp_path / SOCKET) as address:
        hanging.bind(address)
        hanging.listen()
        with pytest.raises(TransportError, match="does not answer"):
            ask_keeper(tmp_path, "pid")


def test_who_asks_nothing_keeps_nobody_else_waiting_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.brokers.control_socket._PATIENCE_S", 0.2)
    with kept(tmp_path) as (child, told), socket.socket(socket.AF_UNIX) as silent:
        with short_address(tmp_path / SOCKET) as address:
            silent.connect(address)
        assert ask_keeper(tmp_path, "pid") == child.pid
        with socket.socket(socket.AF_UNIX) as strange, short_address(tmp_path / SOCKET) as address:
            strange.connect(address)
            strange.sendall(b"destroy it\n")
            assert strange.recv(16) == b"%d\n" % child.pid
        assert told.read_text() == ""


def test_a_folder_that_takes_no_socket_is_named(tmp_path: Path) -> None:
    child = Child("a broker", ["true"], tmp_path / "log")
    with pytest.raises(ConfigError, match="there can be no socket"):
        ControlSocket(tmp_path / "absent", child)
