"""What the service manager hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_client.agent.status.history import History
from fl_client.agent.status.question_socket import Question
from fl_client.agent.status.server import StatusServer
from fl_client.session.events import JobKey
from runtime.errors import TransportError
from runtime.processes.environments import TRIAL_S, Environments, UpdateTrial
from runtime.processes.notify import Notifier


class Manager:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        words: list[str] = []
        while True:
            try:
                words += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return words

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.chdir(tmp_path)  # the kernel takes an address of 107 bytes
    manager = Manager(Path("notify"))
    yield manager
    manager.close()


def test_the_status_server_tells_the_service_manager(manager: Manager) -> None:
    status = StatusServer(Notifier(str(manager.path), watchdog_s=60.0))
    status.watchdog.poll(0.0)
    assert manager.heard() == ["WATCHDOG=1"]
    assert status.watchdog.left_s(0.0) is not None
    status.watchdog.poll(29.0)
    assert manager.heard() == [], "fed within the half of its time already"
    status.connected("broker:1")
    assert manager.heard() == ["READY=1", "STATUS=connected to broker:1"]
    status.disconnected("no route")
    status.connected("broker:1")
    assert manager.heard() == ["STATUS=not connected: no route", "STATUS=connected to broker:1"]
    status.close()
    assert manager.heard() == ["STOPPING=1"]


def test_a_device_without_a_network_is_ready_all_the_same(manager: Manager) -> None:
    status = StatusServer(Notifier(str(manager.path)))
    left_s = status.watchdog.left_s(status._history.started_s)
    assert left_s is not None
    status.watchdog.poll(status._history.started_s + left_s)
    assert "READY=1" in manager.heard()


def test_a_trial_is_ready_with_the_broker_alone(manager: Manager, tmp_path: Path) -> None:
    links = Environments(tmp_path / "links")
    links.propose(tmp_path / "new")
    (links.links / "next").rename(links.links / "trying")  # what the launcher does
    status = StatusServer(Notifier(str(manager.path)), UpdateTrial(links))
    status.watchdog.poll(status._history.started_s + TRIAL_S - 1)
    assert manager.heard() == []
    assert links.current is None
    with pytest.raises(TransportError, match="the earlier one comes back"):
        status.watchdog.poll(status._history.started_s + TRIAL_S)
    status.connected("broker:1")
    assert links.current == tmp_path / "new"
    assert "READY=1" in manager.heard()


def test_an_agent_about_to_be_updated_takes_nothing_and_does_not_end_in_a_round() -> None:
    status, answers = StatusServer(), []
    asked = {name: Question(name, 7, answers.append) for name in ("hold", "restart", "release")}  # type: ignore[arg-type]
    assert not status.answer(asked["hold"], {"busy": "it is at work"})
    assert status.held
    assert not status.answer(asked["restart"], {"busy": "it is at work"})
    assert status.answer(asked["restart"], {"busy": ""})
    assert [each["restarting"] for each in answers] == [False, False, True]
    status.answer(asked["release"], {"busy": ""})
    assert not status.held


def test_the_history_keeps_the_last_ten_and_tells_their_age() -> None:
    history = History()
    for number in range(12):
        history.record_decline(JobKey("r", "train", number, 1), "too hot")
    told = history.document()["declines"]
    assert [each["round"] for each in told] == list(range(11, 1, -1))
    assert all(each["ago_s"] >= 0 and each["reason"] == "too hot" for each in told)


def test_a_notifier_is_this_process_s_alone() -> None:
    given = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}
    assert Notifier.of_environment(given).beat_every_s is None, "another process is watched"
    assert given == {}, "the training process must not speak for the agent"
    given = {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.of_environment(given).beat_every_s == 30.0


def test_without_a_manager_nothing_is_said() -> None:
    Notifier().ready("x")
    Notifier("/nowhere/at/all").alive()
