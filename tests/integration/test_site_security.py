"""A site that listens on the network: its own authority, certificates of others, mutual TLS."""

from __future__ import annotations

import json
import socket
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.brokers.listener import ListenerTls
from broker.brokers.mosquitto import MosquittoBroker
from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser, Role, grants
from rengo.site.addresses import OwnCertificate
from rengo.site.certificates import Authority
from rengo.site.device_process import DeviceSpec
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.errors import AuthenticationFailed, ConfigError, StorageError, TransportError
from runtime.security.identity import read_identity
from tests.integration.commands import rengo

BROKERS = ["nats", "mosquitto"]


def trained(site: Site, output: Path) -> None:
    """Let one device of the site train, over its broker and its store."""
    result = site.run("digits", rounds=1, devices=1, output=output)
    assert result.accuracy is not None


@pytest.mark.parametrize("broker", BROKERS)
def test_a_certificate_of_the_operator_s(broker: str, tmp_path: Path) -> None:
    company = Authority(tmp_path / "company")
    certificate, key = company.issue_server(["localhost"])
    leaf = tmp_path / "leaf.pem"
    leaf.write_text(certificate.read_text().removesuffix(company.certificate_pem))
    own = OwnCertificate(leaf, key, company.certificate_path)
    options = SiteOptions(broker=broker, host="0.0.0.0", advertise="localhost", certificate=own)
    with Site(tmp_path / "site", options=options) as site:
        trained(site, tmp_path / "out")
        home = {"home": site.folder.root}
        made = json.loads(rengo("devices", "invite", "--json", "-", **home).out)
        assert made["url"].startswith("mqtts://localhost:")
        told = rengo(*made["command"].split()[1:], "--only", home=tmp_path / "device")
        assert told.code == 0, told.err
    # the system does not know that authority, and no process of the site lets it pass
    unknown = replace(options, certificate=OwnCertificate(certificate, key))
    with (
        pytest.raises(StorageError, match="no authority that is trusted"),
        Site(tmp_path / "other", options=unknown),
    ):
        pass


@pytest.mark.parametrize("broker", BROKERS)
def test_mutual_tls_lets_in_who_has_a_certificate_of_his_own_name(
    broker: str, tmp_path: Path
) -> None:
    clients, folder = Authority(tmp_path / "clients"), tmp_path / "certificates"
    folder.mkdir()
    (folder / "ca.pem").write_text(clients.certificate_pem)
    for name in ("server", "operator", "device-1"):
        certificate, key = clients.issue_client(name)
        (folder / f"{name}.pem").write_text(certificate)
        (folder / f"{name}.key").write_text(key)
        (folder / f"{name}.key").chmod(0o600)
    options = SiteOptions(broker=broker, host="0.0.0.0", client_certificates=folder)
    with Site(tmp_path / "site", devices=1, options=options) as site:
        trained(site, tmp_path / "out")
        bare = Endpoint.of(
            site.operator.model_copy(update={"tls": site.at.tls, "client_id": "bare"})
        )
        session = MqttSession(bare, [], lambda _: True)
        session.start()
        with pytest.raises(TransportError):
            session.wait_connected(3.0)
        session.stop()


@pytest.mark.parametrize("broker", BROKERS)
def test_a_site_on_one_address_of_this_machine(broker: str, tmp_path: Path) -> None:
    addresses = [
        each.address
        for card in psutil.net_if_addrs().values()
        for each in card
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this machine has no address but loopback")
    options = SiteOptions(broker=broker, host=addresses[0])
    with Site(tmp_path / "site", options=options) as site:
        assert site.operator.host == addresses[0]
        trained(site, tmp_path / "out")


def test_client_certificates_need_tls(tmp_path: Path) -> None:
    options = SiteOptions(client_certificates=tmp_path)
    with pytest.raises(ConfigError, match="need TLS"), Site(tmp_path / "s", options=options):
        pass


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_a_site_on_a_broker_of_somebody_else_s(scheme: str, tmp_path: Path) -> None:
    users = {"central": Role.SERVER, "boss": Role.OPERATOR, "edge-a": Role.DEVICE}
    passwords = {name: f"password-of-{name}" for name in users}
    theirs, ca = Authority(tmp_path / "their-authority"), ""
    tls = None
    if scheme == "mqtts":
        tls = ListenerTls(*theirs.issue_server(["127.0.0.1"]))
        ca = f'[tls]\nca = "{theirs.certificate_path}"\n'
    broker = MosquittoBroker(tmp_path / "theirs", tls=tls)
    broker.start(
        [
            BrokerUser(name, passwords[name], grants(role, "main", name))
            for name, role in users.items()
        ]
    )
    try:
        credentials = tmp_path / "credentials.toml"
        tables = [
            f'[{table}]\nusername = "{name}"\npassword = "{passwords[name]}"\n'
            for table, name in (
                ("server", "central"),
                ("operator", "boss"),
                ("[devices]", "edge-a"),
            )
        ]
        credentials.write_text("\n".join([*tables, ca]))
        url = f"{scheme}://{broker.endpoint.host}:{broker.endpoint.port}"
        options = SiteOptions(broker=url, credentials=credentials)
        with (
            pytest.raises(ConfigError, match="readable by others; run: chmod 600"),
            Site(tmp_path / "site", options=options),
        ):
            pass
        credentials.chmod(0o600)
        with Site(tmp_path / "site", options=options) as site:
            identity = read_identity(site.folder.identity_path("edge-a"))
            assert (identity.id, identity.port) == ("edge-a", broker.endpoint.port)
            site.start_devices([DeviceSpec("edge-a", engine="numpy")], "digits")
            told = rengo(
                *("run", "digits", "--rounds", 1, "--set", "cohort.size=1", "--json", "-"),
                *("--data-dir", site.folder.root, "--follow", "--output", tmp_path / "out"),
            )
            assert told.code == 0, told.err
            assert [each["id"] for each in json.loads(told.out)["devices"]] == ["edge-a"]
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--broker", "rabbit"], "is not mqtt://HOST:PORT"),
        (["--broker", "mqtt://127.0.0.1:1"], "needs --broker URL and --credentials FILE"),
        (["--host", "nowhere"], "--host 'nowhere' is not an address"),
        (["--tls-cert", "x.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-ca", "x.pem"], "--tls-ca is the authority of --tls-cert"),
        (["--tls-cert", "x.pem", "--tls-key", "x.key"], "--tls-cert needs --advertise"),
        (["--host", "0.0.0.0", "--store", "seaweedfs"], "choose juicefs"),
        (["--credentials", "no.toml", "--broker", "mqtt://h:1"], "no.toml does not exist"),
    ],
)
def test_what_a_site_cannot_be_told(arguments: list[str], said: str, tmp_path: Path) -> None:
    told = rengo("up", *arguments, home=tmp_path / "site")
    assert (told.code, said in told.line) == (2, True), told.err


def config(site: Site) -> dict[str, Any]:
    return tomllib.loads((site.folder.root / "server" / "server.toml").read_text())


def test_a_site_on_loopback_has_no_certificates_and_one_elsewhere_is_tls_throughout(
    tmp_path: Path,
) -> None:
    with Site(tmp_path / "near") as site:
        assert not (site.folder.root / "authority").exists()
        assert config(site)["store"]["endpoint"].startswith("http://127.0.0.1:")
    options = SiteOptions(host="0.0.0.0", advertise="fleet.example")
    with Site(tmp_path / "far", devices=1, options=options) as site:
        store = config(site)["store"]
        assert store["endpoint"].startswith("https://127.0.0.1:")
        assert store["public_endpoint"].startswith("https://fleet.example:")
        assert config(site)["broker"]["public_url"].startswith("mqtts://fleet.example:")
        assert len(config(site)["broker"]["ca_fingerprint"]) == 64
        identity = read_identity(site.folder.identity_path("device-1"))
        plain = Endpoint.of(identity.model_copy(update={"tls": None}))
        session = MqttSession(plain, [], lambda _: True)
        session.start()
        with pytest.raises(TransportError):
            session.wait_connected(3.0)
        session.stop()
        wrong = Authority(tmp_path / "other").certificate_pem
        trust = identity.tls.model_copy(update={"ca": wrong}) if identity.tls else None
        session = MqttSession(
            Endpoint.of(identity.model_copy(update={"tls": trust})), [], lambda _: True
        )
        session.start()
        with pytest.raises(AuthenticationFailed, match="no authority that is trusted"):
            session.wait_connected(10.0)
        session.stop()
