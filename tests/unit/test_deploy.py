"""compose.yaml and the Dockerfile agree with the commands, with each other and with the rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rengo.cli.main import build_parser
from rengo.site.folder import SiteFolder
from rengo.site.preparation import Preparation, SiteOptions

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())[
    "services"
]
SITE = ("prepare", "broker", "store", "server")
KEPT = [name for name in SERVICES if name != "prepare"]
HOME = "/var/lib/rengo"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def prepare_words() -> list[str]:
    return [re.sub(r"\$\{.*\}", "192.0.2.10", word) for word in SERVICES["prepare"]["command"]]


def test_a_site_is_these_services() -> None:
    assert set(SERVICES) == {*SITE, "device"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_command_exists_with_these_options(name: str) -> None:
    words = prepare_words() if name == "prepare" else SERVICES[name]["command"]
    assert build_parser(words[0]).parse_args(words).command == words[0]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_no_rights_and_cannot_write_its_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert not {"privileged", "user", "cap_add", "pid", "ipc", "network_mode"} & set(service)


@pytest.mark.parametrize("name", KEPT)
def test_every_service_is_started_again_by_itself_and_looked_after(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    own = SERVICES[name].get("healthcheck", {"test": ["CMD"]})
    assert own["test"][0] == "CMD"
    # a device's stands in its image
    assert "healthcheck" in SERVICES[name] or name == "device"


def test_what_is_prepared_is_what_the_others_read(tmp_path: Path) -> None:
    options = build_parser("up").parse_args(prepare_words())
    made = Preparation(
        SiteFolder(tmp_path),
        SiteOptions(
            broker=options.broker,
            broker_port=options.broker_port,
            store_port=options.store_port,
            host=options.host,
            advertise=options.advertise,
            broker_at=options.broker_at,
            store_at=options.store_at,
        ),
    )
    for name, path in made.settings.items():
        read = SERVICES[name]["command"][1].removeprefix("--config=")
        assert read == f"{HOME}/{path.relative_to(tmp_path)}"
        assert "prepare" in SERVICES[name]["depends_on"] or name == "server"
    assert options.broker_at in SERVICES
    assert options.store_at in SERVICES
    assert SERVICES["broker"]["ports"] == [f"{options.broker_port}:{made.record.broker_port}"]
    assert SERVICES["store"]["ports"] == [f"{options.store_port}:{made.record.store_port}"]
    trusted = re.search(rf'cafile="{HOME}/(.*?)"', SERVICES["store"]["healthcheck"]["test"][-1])
    assert trusted is not None
    assert (tmp_path / trusted[1]).is_file()


def test_no_secret_is_in_the_file() -> None:
    text = (DEPLOY / "compose.yaml").read_text().lower()
    assert not [word for word in ("password", "secret", "access_key") if word in text]
    assert SERVICES["device"]["environment"] == {"RENGO_JOIN_TOKEN": "${RENGO_TOKEN:-}"}
    assert not [name for name in SITE if SERVICES[name].get("environment")]


@pytest.mark.parametrize("name", SITE)
def test_the_processes_of_a_site_share_one_image_and_one_volume(name: str) -> None:
    assert SERVICES[name]["image"] == "rengo:site"
    assert SERVICES[name]["volumes"] == [f"site:{HOME}"]


def test_the_dockerfile_makes_what_is_built() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert SERVICES["prepare"]["build"]["target"] in stages
    assert stages[-1] == "device", "what is built without --target"
    assert DOCKERFILE.count("USER 10001:10001") == len(stages) - 2
    assert "mosquitto" in DOCKERFILE.split("AS site")[1].split("FROM")[0]
