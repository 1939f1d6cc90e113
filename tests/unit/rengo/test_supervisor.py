"""A site's supervisor: what is alive but of no use is started again."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rengo.site.supervisor import Supervisor
from runtime.disk import DiskRoom

GIB = 1 << 30
_LONG_S = 20.0


class Service:
    """A service that becomes useless when it is told to."""

    def __init__(self) -> None:
        self.running = False
        self.starts = 0
        self.broken = ""
        self.started_again = threading.Event()

    def start(self) -> None:
        self.running, self.broken = True, ""
        self.starts += 1
        if self.starts > 1:
            self.started_again.set()

    def stop(self) -> None:
        self.running = False

    def fault(self) -> str:
        return self.broken


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    found = Supervisor(probe_every_s=0.02)
    found.start()
    yield found
    found.stop()


def test_what_is_alive_but_of_no_use_is_started_again(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    service, other = Service(), Service()
    supervisor.add("a", service, service.start, service.fault)
    supervisor.add("b", other, other.start)
    service.broken = other.broken = "it cannot write"
    assert service.started_again.wait(_LONG_S)
    supervisor.call(lambda: None)
    assert (service.running, service.starts, other.starts) == (True, 2, 1)
    assert supervisor.restarts() == {"a": 1, "b": 0}
    assert "a is alive but of no use; starting it again: it cannot write" in caplog.text


def test_a_probe_that_fails_is_told_and_ends_nothing(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Event()

    def fault() -> str:
        if asked.is_set():
            return ""
        asked.set()
        raise OSError("no such log")

    service = Service()
    supervisor.add("a", service, service.start, fault)
    assert asked.wait(_LONG_S)
    supervisor.call(lambda: None)
    assert service.starts == 1
    service.running = False
    assert service.started_again.wait(_LONG_S)
    assert "a cannot be probed: no such log" in caplog.text


def test_a_start_that_meets_a_full_disk_is_tried_again(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the system must not end the thread, and with it every process of the site."""
    service, other = Service(), Service()
    supervisor.add("other", other, other.start)
    failures = iter([OSError(errno.ENOSPC, "No space left on device", "/site/broker.conf")])

    def start() -> None:
        if service.starts:
            for failure in failures:
                raise failure
        service.start()

    supervisor.add("a", service, start)
    service.running = False
    assert service.started_again.wait(_LONG_S)
    supervisor.call(lambda: None)
    assert "a did not start again: [Errno 28] No space left on device" in caplog.text
    assert supervisor.restarts() == {"other": 0, "a": 2}


def test_what_a_new_start_does_not_help_is_started_seldom(supervisor: Supervisor) -> None:
    service = Service()
    asked = threading.Semaphore(0)

    def fault() -> str:
        asked.release()
        return "it cannot write"

    supervisor.add("a", service, service.start, fault)
    assert service.started_again.wait(_LONG_S)
    for _ in range(20):
        assert asked.acquire(timeout=_LONG_S)
    supervisor.call(lambda: None)
    assert service.starts == 2


@pytest.mark.parametrize("lack", [(0, None, "full (0 KiB free)"), (GIB, 0, "no file can be added")])
def test_a_full_disk_is_one_line_and_no_new_start(
    lack: tuple[int, int | None, str],
    supervisor: Supervisor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    room = DiskRoom(1, GIB, 1000)
    found = [DiskRoom(1, *lack[:2])]
    monkeypatch.setattr("rengo.site.supervisor.disk_room", lambda _: found[0])
    services = {name: Service() for name in ("broker", "store")}
    for name, service in services.items():
        service.broken = "it cannot write"
        supervisor.add(name, service, service.start, service.fault, tmp_path / name)
        service.broken = "it cannot write"
    wait_for_text(caplog, "which goes on when there is room")
    assert [service.starts for service in services.values()] == [1, 1]
    found[0] = room
    for service in services.values():
        assert service.started_again.wait(_LONG_S)
    told = [each for each in caplog.messages if "full" in each]
    assert len(told) == 2, told
    assert lack[2] in told[0]
    assert "it holds the data of broker, store" in told[0]
    assert told[1] == "a disk that was full has room again"


def wait_for_text(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + _LONG_S
    while text not in caplog.text:
        assert time.monotonic() < deadline
