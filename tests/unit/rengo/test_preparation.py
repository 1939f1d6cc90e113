"""What `rengo up --prepare` writes, and what it leaves as it is."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from broker.brokers.mosquitto import MosquittoAccess
from rengo.cli.main import main
from rengo.site.components import BrokerPart, StorePart
from rengo.site.folder import SiteFolder
from rengo.site.preparation import Preparation, SiteOptions
from runtime.config import load
from runtime.errors import ConfigError
from runtime.security.identity import read_identity

CONTAINED = SiteOptions(
    broker="mosquitto",
    broker_port=8883,
    store_port=9000,
    host="0.0.0.0",
    advertise="192.0.2.10",
    broker_at="broker",
    store_at="store",
)


def prepared(root: Path, options: SiteOptions = CONTAINED) -> Preparation:
    return Preparation(SiteFolder(root), options)


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def settings(made: Preparation, part: str) -> dict[str, Any]:
    return tomllib.loads(made.settings[part].read_text())


def test_each_part_finds_the_others_by_their_names(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    assert list(made.settings) == ["broker", "store", "server"]
    server = settings(made, "server")
    assert server["store"]["endpoint"] == "https://store:9000"
    assert server["store"]["public_endpoint"] == "https://192.0.2.10:9000"
    assert server["broker"]["public_url"] == "mqtts://192.0.2.10:8883"
    assert server["broker"]["folder"] == settings(made, "broker")["folder"]
    for path in [server["identity"], *server["operators"]]:
        identity = read_identity(Path(path))
        assert (identity.host, identity.port) == ("broker", 8883)


def test_the_settings_are_what_the_parts_read(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    assert load(BrokerPart, made.settings["broker"], "NOTHING") == made.broker
    assert load(StorePart, made.settings["store"], "NOTHING") == made.store
    assert made.store.store().settings.endpoint == "https://store:9000"


def test_the_certificate_is_for_every_name(tmp_path: Path) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    made = prepared(tmp_path)
    assert made.broker is not None
    assert made.broker.certificate is not None
    leaf = x509.load_pem_x509_certificate(made.broker.certificate.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"broker", "store", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    addresses = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    assert {"192.0.2.10", "127.0.0.1"} <= addresses


def test_a_second_preparation_changes_nothing(tmp_path: Path) -> None:
    prepared(tmp_path)
    before = files(tmp_path)
    prepared(tmp_path)
    assert files(tmp_path) == before


def test_whom_the_server_added_stays(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    access = MosquittoAccess(tmp_path / "broker")
    assert access.passwords.read_text().count("\n") == 2
    with access.passwords.open("a") as file:
        file.write("the server's\n")
    prepared(tmp_path)
    assert access.passwords.read_text().endswith("the server's\n")
    assert made.operator.id in access.acl.read_text()


def test_what_is_secret_is_the_owner_s_alone(tmp_path: Path) -> None:
    root = tmp_path / "site"
    prepared(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for name in files(root):
        if not name.endswith((".lock", ".crt")):
            assert stat.S_IMODE((root / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--broker-at", "broker"], "--broker-at and --store-at are for --prepare"),
        (["--prepare", "--store-at", "store"], "--broker-at and --store-at need --host"),
        (["--prepare", "--devices", "2"], "join by `rengo devices invite`"),
        (["--prepare", "--broker", "mqtt://b:1"], "--prepare is for a broker of the site's own"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--data-dir", str(tmp_path / "site"), *words]) == 2
    assert said in capsys.readouterr().err


def test_it_says_how_each_part_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--prepare", "--data-dir", str(tmp_path)]) == 0
    lines = [line.split()[-3:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == [
        [part, "--config", str(tmp_path / part / f"{part}.toml")]
        for part in ("broker", "store", "server")
    ]


def test_a_site_that_runs_is_not_prepared(tmp_path: Path) -> None:
    folder = SiteFolder(tmp_path)
    with folder.lock():
        assert main(["up", "--prepare", "--data-dir", str(tmp_path)]) == 2
    assert folder.record() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 0}, "'port'"),
        ({"certificate": "c.pem"}, "certificate and certificate_key belong together"),
        ({"kind": "emqx"}, "'kind'"),
        ({"hots": "h"}, "unknown key 'hots'"),
    ],
)
def test_a_part_s_wrong_settings_are_named(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(tomli_w.dumps({"folder": str(tmp_path), "port": 1883, **changes}))
    with pytest.raises(ConfigError, match=said):
        load(BrokerPart, path, "NOTHING")
