"""Every broker as a process: its files, ports and starts, and what its parent leaves."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from runtime.errors import ConfigError, TransportError
from runtime.processes.ports import free_port
from tests.contract.broker_places import Place, kind, place
from tests.integration.broker_fixtures import USERS, Owner, eventually
from tests.support import hold_still

__all__ = ["kind", "place"]


def test_secrets_are_in_private_files_only(place: Place) -> None:
    folder = place.broker.data_dir
    place.session(Owner(), endpoint=place.endpoint("dev-a"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        if path.is_file() and path.name not in {"broker.pid", "broker.lock", "users.lock"}:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    holding = {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and b"secret-of-dev-a" in path.read_bytes()
    }
    assert holding == set()
    assert "secret-of" not in " ".join(psutil.Process(place.broker.pid).cmdline())


def test_it_listens_on_loopback_alone(place: Place) -> None:
    listening = [
        each.laddr
        for each in psutil.Process(place.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    assert {each.ip for each in listening} == {"127.0.0.1"}
    assert place.broker.endpoint.port in {each.port for each in listening}


def test_a_start_says_nothing_of_an_error(place: Place) -> None:
    log = (place.broker.data_dir / "broker.log").read_text()
    assert "error" not in log.lower()
    assert len(log.splitlines()) < 40


def test_a_folder_with_a_space_serves(place: Place, tmp_path: Path) -> None:
    place.broker.stop()
    place.folder = tmp_path / "a folder with spaces"
    place.renew()
    place.start()
    place.session(Owner(), endpoint=place.endpoint("dev-a"))
    place.access().apply(USERS)


def test_a_port_and_a_folder_in_use_are_named(place: Place, tmp_path: Path) -> None:
    broker, port = place.broker, place.broker.endpoint.port
    place.renew(free_port())
    with pytest.raises(ConfigError, match="another MQTT broker uses"):
        place.start()
    folder, place.folder = place.folder, tmp_path / "elsewhere"
    place.renew(port)
    with pytest.raises(ConfigError, match=f"port {port} for the MQTT broker"):
        place.start()
    place.folder, place.broker = folder, broker
    assert broker.running


PARENT = """
import sys, threading
from pathlib import Path
from broker.brokers.nats import EmbeddedBroker
from broker.brokers.mosquitto import MosquittoBroker
from tests.integration.broker_fixtures import USERS
kind = {"nats": EmbeddedBroker, "mosquitto": MosquittoBroker}[sys.argv[1]]
broker = kind(Path(sys.argv[2]), int(sys.argv[3]))
broker.start(USERS)
print(broker.pid, flush=True)
threading.Event().wait()
"""


def test_a_killed_parent_leaves_nothing_in_the_way(place: Place, tmp_path: Path) -> None:
    place.broker.stop()
    port, place.folder = free_port(), tmp_path / "orphan"
    arguments = [place.kind.server, str(place.folder / "broker"), str(port)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    place.renew(port)
    place.start()
    assert place.broker.pid != pid
    eventually(lambda: not psutil.pid_exists(pid))


def test_a_server_that_cannot_start_says_why(place: Place) -> None:
    place.broker.stop()
    block = place.broker.data_dir / ("jetstream" if place.kind.server == "nats" else "passwords")
    if block.is_dir():
        block.rename(block.with_name("aside"))
    block.unlink(missing_ok=True)
    if place.kind.server == "nats":
        block.write_text("a file where a folder must be")
    else:
        block.mkdir()
    with pytest.raises((TransportError, OSError)):
        place.broker.start(USERS)
    assert not place.broker.running


def test_one_that_answers_nobody_is_of_no_use(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.brokers.mosquitto._WRITE_EVERY_S", 0.0)
    place.session(Owner(), endpoint=place.endpoint("dev-a"))
    assert [place.broker.fault() for _ in range(10)] == 10 * [""]
    hold_still(place.broker.pid)
    # it does not answer, however long it is given
    monkeypatch.setattr("broker.brokers.mosquitto._WRITE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("broker.brokers.nats_api._TIMEOUT_S", 0.1)
    found = [place.broker.fault() for _ in range(6)]
    psutil.Process(place.broker.pid).resume()
    monkeypatch.undo()
    assert found[:5] == 5 * [""], "a busy one may be late"
    assert "the MQTT broker" in found[5]
    eventually(lambda: place.broker.fault() == "")
