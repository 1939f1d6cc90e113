"""A task that comes as a bundle learns from topics that the device's own settings name for it."""

from __future__ import annotations

import json
import random
import signal
from contextlib import ExitStack
from pathlib import Path

import tomli_w

from broker.session.publication import Publication
from rengo.site.site import Site
from tests.integration.broker_fixtures import eventually
from tests.integration.commands import rengo
from tests.integration.test_device_data import (
    EXAMPLE,
    FEATURES,
    PATIENCE_S,
    TOPIC,
    count,
    process,
    reading,
    sensors,
)

NAME = "device-1"


def config(site: Site, plant: tuple[str, int], password: Path, author: str) -> Path:
    """Write the file of an agent that has other tasks, and topics for one that may come."""
    host, port = plant
    source = {
        **{"kind": "mqtt", "host": host, "port": port, "username": "collector"},
        **{"client_id": "rengo-pump", "password_file": str(password), "topics": ["plant/+/pump"]},
        **{"features": FEATURES, "label": "state", "time": "at"},
    }
    data = {"classes": ["ok", "worn"], "source": source, "store": {"flush_s": 0.2}}
    settings = {
        "identity": str(site.folder.identity_path(NAME)),
        "data_dir": str(site.folder.root / "devices" / NAME),
        "tasks": ["digits"],
        "engine": "numpy",
        "bundles": {"trust": [author], "allow": ["pump"]},
        "data": {"pump": data},
    }
    path = site.folder.root / f"{NAME}.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


def test_a_bundled_task_learns_from_the_plants_sensors(tmp_path: Path) -> None:
    chooser, home = random.Random(11), tmp_path / "site"
    password = tmp_path / "sensors.password"
    password.write_text("secret-of-collector\n")
    password.chmod(0o600)
    key, bundle = tmp_path / "key", tmp_path / "pump.rtask"
    assert rengo("task", "keygen", key).code == 0
    assert rengo("task", "pack", f"{EXAMPLE}:Pump", "-o", bundle).code == 0
    assert rengo("task", "sign", bundle, "--key", key).code == 0
    author = key.with_suffix(".pub").read_text().strip()
    with ExitStack() as stack:
        plant, pump = stack.enter_context(sensors(tmp_path / "plant"))
        site = stack.enter_context(Site(home, devices=1))
        file = config(site, plant.endpoint, password, author)
        log = tmp_path / "agent.log"
        agent = stack.enter_context(process(["rengo", "client", "--config", str(file)], home, log))
        gathered = home / "devices" / NAME / "data" / "pump"

        def send() -> None:
            row = json.dumps(reading(chooser)).encode()
            assert pump.publish(Publication(TOPIC, row))

        def arrives() -> bool:
            send()
            return count(gathered) > 0

        # before there is a bundle, and before any order
        eventually(arrives, PATIENCE_S)
        for _ in range(250):
            send()
        eventually(lambda: count(gathered) > 250, PATIENCE_S)
        assert not (home / "devices" / NAME / "bundles").exists()
        assert rengo("task", "push", bundle, home=home).code == 0
        whole = ("--set", "cohort.size=1", "--set", "evaluation.on=devices")
        ran = rengo(
            *("run", f"{EXAMPLE}:Pump", "--bundle", "pump", "--rounds", "3", *whole),
            *("--output", tmp_path / "output", "--json", "-"),
            home=home,
            patience_s=120,
        )
        assert ran.code == 0, ran.err + log.read_text()
        run = json.loads(ran.out)
        assert run["accuracy"] > 0.85
        # it learned from what was gathered: the device's share of it, not of some other data
        shown = rengo("devices", "show", NAME, home=home)
        assert "data of pump: about 2" in shown.out, shown.out
        doctor = rengo("doctor", "agent", "--config", file, home=home)
        assert "pump (mqtt)" in doctor.out, doctor
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(PATIENCE_S) == 0
