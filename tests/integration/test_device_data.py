"""Data that devices gather themselves, in a real site: a log, the site's sensors, a task's own."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from broker.brokers.nats import EmbeddedBroker
from broker.session.endpoint import Endpoint
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser, Grants
from fl_client.collectors.order import CollectorOrder
from fl_client.collectors.owned import OwnData
from fl_client.datasets.settings import DataPlace, DataSettings
from fl_client.datasets.store import store_path, stored_refusals, stored_samples
from fl_client.settings import AgentSettings
from rengo.site.site import Site
from tests.examples import pages
from tests.integration.broker_fixtures import Owner, eventually
from tests.integration.commands import rengo, surroundings

EXAMPLE = pages.ROOT / "examples" / "pump.py"
TOPIC = "plant/a/pump"
FEATURES = ["rms", "peak", {"name": "celsius", "least": -40, "most": 150}]
PATIENCE_S = 60.0


def reading(chooser: random.Random, *, hot: float = 0.0) -> dict[str, Any]:
    worn = chooser.random() < 0.4
    rms = chooser.gauss(3.0 if worn else 1.5, 0.5)
    return {
        "at": chooser.random(),
        "rms": rms,
        "peak": 3 * rms + chooser.gauss(0, 0.5),
        "celsius": chooser.gauss(45 + hot, 5),
        "state": "worn" if worn else "ok",
    }


def append(path: Path, readings: list[dict[str, Any]]) -> None:
    if not path.exists():
        path.write_text(",".join(readings[0]) + "\n")
    with path.open("a") as file:
        file.writelines(",".join(str(each) for each in row.values()) + "\n" for row in readings)


@contextmanager
def sensors(folder: Path) -> Iterator[tuple[EmbeddedBroker, MqttSession]]:
    """Yield the plant's own broker and the session of a pump."""
    broker = EmbeddedBroker(folder)
    broker.start(
        [
            BrokerUser("collector", "secret-of-collector", Grants((), ("plant/+/pump",))),
            BrokerUser("pump", "secret-of-pump", Grants((TOPIC,), ())),
        ]
    )
    host, port = broker.endpoint
    endpoint = Endpoint(host, port, "pump", "secret-of-pump", "pump-1", persistent=False)
    session = MqttSession(endpoint, [], Owner())
    session.start()
    try:
        session.wait_connected(10)
        yield broker, session
    finally:
        session.stop()
        broker.stop()


@contextmanager
def process(argv: list[str], home: Path | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *argv], stdout=output, stderr=output, env=surroundings(home)
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
        started.wait(PATIENCE_S)


def agent_file(site: Site, name: str, source: dict[str, Any]) -> Path:
    data = {
        "classes": ["ok", "worn"],
        "source": {**source, "features": FEATURES, "label": "state"},
        "store": {"flush_s": 0.2},
        "drift": {"every_s": 0, "window": 200},
    }
    settings = {
        "identity": str(site.folder.identity_path(name)),
        "data_dir": str(site.folder.root / "devices" / name),
        "tasks": [f"{EXAMPLE}:Pump"],
        "engine": "numpy",
        "data": {"pump": data},
    }
    path = site.folder.root / f"{name}.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


def count(folder: Path) -> int:
    return sum(1 for _ in stored_samples(store_path(folder), 1 << 20))


def test_two_devices_learn_from_a_log_and_from_the_plants_sensors(tmp_path: Path) -> None:
    chooser, log, home = random.Random(7), tmp_path / "pump.csv", tmp_path / "site"
    append(log, [reading(chooser) for _ in range(300)])
    password = tmp_path / "sensors.password"
    password.write_text("secret-of-collector\n")
    password.chmod(0o600)
    with ExitStack() as stack:
        plant, pump = stack.enter_context(sensors(tmp_path / "plant"))
        host, port = plant.endpoint
        site = stack.enter_context(Site(home, devices=2))
        by_mqtt = {
            "kind": "mqtt",
            **{"host": host, "port": port, "username": "collector", "client_id": "rengo-pump"},
            **{"password_file": str(password), "topics": ["plant/+/pump"], "time": "at"},
        }
        sources = {"device-1": {"kind": "csv", "path": str(log)}, "device-2": by_mqtt}
        for name, source in sources.items():
            argv = ["rengo", "client", "--config", str(agent_file(site, name, source))]
            stack.enter_context(process(argv, home, tmp_path / f"{name}.log"))
        gathered = home / "devices" / "device-2" / "data" / "pump"

        def send(row: dict[str, Any]) -> None:
            assert pump.publish(Publication(TOPIC, json.dumps(row).encode()))

        def arrives() -> bool:
            send(reading(chooser))
            return count(gathered) > 0

        eventually(arrives, PATIENCE_S)
        for _ in range(250):
            send(reading(chooser))
        send({"rms": "broken"})
        # gathered while no round runs, and the faulty one counted
        eventually(lambda: count(gathered) > 250, PATIENCE_S)
        eventually(lambda: stored_refusals(store_path(gathered)) == 1, PATIENCE_S)
        assert trained(home, tmp_path) > 0.85
        for name in sources:
            shown = rengo("devices", "show", name, home=home)
            assert "data of pump: about " in shown.out
            assert "celsius: PSI 0.0" in shown.out, shown.out
        # the sensor of the log begins to drift: training goes on, and a person is told
        append(log, [reading(chooser, hot=30) for _ in range(200)])
        trained(home, tmp_path)
        shown = rengo("devices", "show", "device-1", home=home)
        told = shown.out.partition("  celsius: PSI ")[2]
        assert "WARNING: these data have changed" in told, shown.out
        calm = rengo("devices", "show", "device-2", home=home)
        assert "PSI 0.0" in calm.out
        assert "WARNING" not in calm.out
        document = rengo("devices", "show", "device-1", "--json", "-", home=home)
        (data,) = json.loads(document.out)["data_report"]["tasks"]
        bars = [bar["count"] for each in data["quantities"] for bar in each["bars"]]
        assert all(each >= data["min_count"] for each in bars)


def trained(home: Path, folder: Path) -> float:
    output = folder / "output"
    cohort = ("--set", "cohort.size=2", "--set", "evaluation.on=devices")
    more = ("--rounds", "3", "--output", output, "--json", "-", *cohort)
    done = rengo("run", f"{EXAMPLE}:Pump", *more, home=home, patience_s=120)
    assert done.code == 0, done.err + done.out
    return float(json.loads(done.out)["accuracy"])


SENSOR = """
import itertools
from rengo import Task

class Thermometer(Task):
    def samples(self, device):
        for number in itertools.count():
            if number == 500:
                raise RuntimeError("the wire is loose")
            yield {"celsius": float(number), "state": "ok"} if number % 50 else None
"""


def test_a_tasks_own_sensor_is_read_until_it_fails(tmp_path: Path) -> None:
    (tmp_path / "thermometer.py").write_text(SENSOR)
    settings = {
        "source": {"kind": "sensor", "features": ["celsius"], "label": "state"},
        "classes": ["ok"],
    }
    place = DataPlace(
        task="thermometer", folder=tmp_path / "own", settings=DataSettings.model_validate(settings)
    )
    order = CollectorOrder(
        place=place, spec=f"{tmp_path}/thermometer.py:Thermometer", device_id="d-1"
    )
    argv = ["fl_client.collectors.process", order.model_dump_json()]
    with process(argv, None, tmp_path / "log") as collector:
        assert collector.wait(PATIENCE_S) != 0
    assert "the wire is loose" in (tmp_path / "log").read_text()
    # what it had given is kept, and equal readings would be too
    assert count(place.folder) == 490
    assert stored_refusals(store_path(place.folder)) == 10


def test_a_collector_that_ends_is_started_again_and_goes_with_its_agent(tmp_path: Path) -> None:
    (tmp_path / "thermometer.py").write_text(SENSOR)
    source = {"kind": "sensor", "features": ["celsius"], "label": "state"}
    settings = AgentSettings.model_validate(
        {
            "identity": tmp_path / "unused",
            "data_dir": tmp_path,
            "data": {"thermometer": {"source": source, "classes": ["ok"]}},
        }
    )
    own = OwnData("d-1", settings, {"thermometer": f"{tmp_path}/thermometer.py:Thermometer"})
    own.start()
    try:
        # the sensor fails after 490 readings each time; equal readings are readings
        eventually(lambda: count(tmp_path / "data" / "thermometer") > 490, PATIENCE_S)
    finally:
        own.stop()
    assert not [each for each in threading.enumerate() if each.name.startswith("collector-")]
