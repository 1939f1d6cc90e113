"""A site's supervisor: what is alive but of no use is started again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rengo.site.supervisor import Supervisor

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
