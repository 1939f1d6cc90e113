"""A real agent as its service manager and its owner see it: ready, alive, asked, hung, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_client.agent.status.question_socket import SOCKET
from rengo.device.status import StatusClient
from runtime.security.identity import write_identity
from tests.integration.broker_fixtures import DOMAIN, Owner, Site, site
from tests.integration.commands import rengo, surroundings
from tests.integration.test_agent import TOPICS, say
from tests.messages import SAMPLES
from tests.support import hold_still

__all__ = ["site"]
NAME = "dev-a"
PATIENCE_S = 30.0


@dataclass
class Service:
    """An agent that was started as systemd would start it."""

    process: subprocess.Popen[bytes]
    manager: socket.socket
    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "devices" / NAME

    def hear(self, word: str, patience_s: float = PATIENCE_S) -> None:
        """Return when the manager hears a word."""
        deadline = time.monotonic() + patience_s
        while (left_s := deadline - time.monotonic()) > 0:
            self.manager.settimeout(left_s)
            if word in self.manager.recv(4096).decode().splitlines():
                return
        pytest.fail(f"{word} was not heard")

    def silent(self) -> bool:
        """Whether nothing more comes within a second."""
        self.manager.settimeout(1.0)
        try:
            while True:
                self.manager.recv(4096)
        except TimeoutError:
            return True


@pytest.fixture
def service(site: Site, tmp_path: Path) -> Iterator[Service]:
    home = tmp_path / "home"
    identity = site.identity(NAME)
    write_identity(home / "identities" / f"{NAME}.json", identity)
    address = f"@rengo-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address[1:]}")
        process = subprocess.Popen(
            [sys.executable, "-m", "rengo", "iot", "--id", NAME],
            env=surroundings(home, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}),
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Service(process, manager, home)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(PATIENCE_S)


def test_an_agent_is_ready_alive_asked_and_stopped(service: Service, site: Site) -> None:
    service.hear("READY=1")
    service.hear("WATCHDOG=1")
    path = service.folder / SOCKET
    assert path.stat().st_mode & 0o777 == 0o600
    told = json.loads(rengo("agent", "status", "--json", home=service.home).out)
    assert told["pid"] == service.process.pid
    assert told["connection"]["connected"]
    assert told["rss_bytes"] > 1 << 20
    words = rengo("agent", "status", home=service.home).out
    assert f"{NAME} of {DOMAIN}: ready, waiting for an order" in words
    found = json.loads(rengo("doctor", "agent", "--json", home=service.home).out)
    (broker,) = [check for check in found["checks"] if check["name"] == "broker"]
    assert broker["ok"], broker
    _takes_nothing_while_held(service, site)
    service.process.terminate()
    service.hear("STOPPING=1")
    assert service.process.wait(PATIENCE_S) == 0
    assert not path.exists()
    gone = rengo("agent", "status", "--id", NAME, home=service.home)
    assert gone.code == 4
    assert "no agent runs in" in gone.line


def _takes_nothing_while_held(service: Service, site: Site) -> None:
    server = Owner()
    site.session(server, TOPICS.device(NAME, "ack"))
    with StatusClient(service.folder) as visit:
        assert visit.ask("hold")["held"]
        say(site, "task", SAMPLES["order"].model_copy(update={"task": "digits"}))
        server.wait(lambda: bool(server.deliveries))
        assert b"about to be updated" in server.payloads[0]
        (declined,) = visit.ask("status")["declines"]
        assert "about to be updated" in declined["reason"]


def test_an_agent_that_hangs_feeds_no_watchdog_and_its_status_says_so(service: Service) -> None:
    service.hear("WATCHDOG=1")
    hold_still(service.process.pid)
    assert service.silent()
    service.process.send_signal(signal.SIGCONT)
    service.hear("WATCHDOG=1")
