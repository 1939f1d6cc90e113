"""Every broker, with every MQTT version it speaks, over TLS and mutual TLS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from broker.brokers.listener import ListenerTls
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.access import Role
from broker.wire.limits import MAX_MESSAGE_BYTES
from rengo.site.certificates import Authority, Validity
from runtime.errors import AuthenticationFailed, ConfigError, TransportError, UntrustedPeer
from runtime.security.tls import Tls
from tests.contract.broker_clients import RESULT_A, STATE_A, STATE_B, WITHOUT_A, watcher
from tests.contract.broker_places import Kind, Place, kind, place
from tests.integration.broker_fixtures import Owner, eventually, user

__all__ = ["kind", "place"]


@dataclass(frozen=True)
class Secured:
    """A place that speaks TLS, and the authority of its certificates."""

    place: Place
    authority: Authority

    def client(self, name: str) -> Tls:
        """What a client with a certificate of its own shows."""
        certificate, key = self.authority.issue_client(name)
        files = [self.place.folder / f"{name}.{kind}" for kind in ("crt", "key")]
        for path, text in zip(files, (certificate, key), strict=True):
            path.write_text(text)
        return Tls(self.authority.certificate_pem, *files)

    def attempt(self, name: str, tls: Tls | None, password: str = "") -> MqttSession:
        """A session of ``name`` that has begun to connect."""
        endpoint = replace(self.place.endpoint(name), tls=tls)
        if password:
            endpoint = replace(endpoint, password=password)
        return self.place.session(Owner(), endpoint=endpoint, wait=False)


def secured(
    place: Place, *, names: Sequence[str] = ("127.0.0.1",), mutual: bool = False
) -> Secured:
    """Restart the broker of ``place`` with TLS."""
    place.broker.stop()
    authority = Authority(place.folder / "authority")
    client_ca = authority.certificate_path if mutual else None
    place.renew(tls=ListenerTls(*authority.issue_server(names), client_ca))
    place.tls = Tls(authority.certificate_pem)
    place.broker.start(None)
    return Secured(place, authority)


def test_tls_serves_those_who_trust_its_authority(place: Place) -> None:
    site = secured(place)
    reader = watcher(place, RESULT_A)
    session = site.attempt("dev-a", place.tls)
    session.wait_connected(10)
    session.publish(Publication(RESULT_A, bytes(MAX_MESSAGE_BYTES)))
    reader.wait(lambda: [len(each) for each in reader.payloads] == [MAX_MESSAGE_BYTES])
    place.access().apply(WITHOUT_A)
    eventually(lambda: not session.connected, 5)
    assert not reader.losses


def test_a_broker_with_tls_may_listen_everywhere(place: Place) -> None:
    site = secured(place)
    place.broker.stop()
    tls = ListenerTls(*site.authority.issue_server(["127.0.0.1"]))
    place.renew(host="0.0.0.0", tls=tls)
    place.broker.start(None)
    site.attempt("dev-a", place.tls).wait_connected(10)
    mqtt_port = place.broker.endpoint.port
    others = {
        each.laddr.ip
        for each in psutil.Process(place.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port != mqtt_port
    }
    assert others <= {"127.0.0.1"}


def test_a_broker_of_an_unknown_authority_is_not_trusted(place: Place, tmp_path: Path) -> None:
    site = secured(place)
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(UntrustedPeer, match="no authority that is trusted"):
        site.attempt("dev-a", Tls(stranger.certificate_pem)).wait_connected(10)


def test_a_broker_of_another_name_is_not_trusted(place: Place) -> None:
    site = secured(place, names=["broker.example"])
    with pytest.raises(UntrustedPeer, match=r"127\.0\.0\.1"):
        site.attempt("dev-a", place.tls).wait_connected(10)


def test_an_expired_certificate_is_named(place: Place) -> None:
    past = Validity(datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC))
    place.broker.stop()
    authority = Authority(place.folder / "expired", past)
    place.renew(tls=ListenerTls(*authority.issue_server(["127.0.0.1"])))
    place.broker.start(None)
    site = Secured(place, authority)
    with pytest.raises(TransportError, match="expired"):
        site.attempt("dev-a", Tls(authority.certificate_pem)).wait_connected(3)


def test_plaintext_does_not_pass_where_tls_is_spoken(place: Place) -> None:
    site = secured(place)
    session = site.attempt("dev-a", None)
    with pytest.raises(TransportError):
        session.wait_connected(2)
    assert not session.connected


def test_tls_does_not_pass_where_plaintext_is_spoken(place: Place, tmp_path: Path) -> None:
    site = Secured(place, Authority(tmp_path / "authority"))
    with pytest.raises(TransportError):
        site.attempt("dev-a", Tls(site.authority.certificate_pem)).wait_connected(2)


def test_mutual_tls_admits_a_certificate_with_its_password(place: Place) -> None:
    site = secured(place, mutual=True)
    with pytest.raises(TransportError):
        site.attempt("dev-b", place.tls).wait_connected(3)
    reader, ours = Owner(), site.client("anyone")
    place.session(reader, STATE_A, endpoint=replace(place.endpoint(), tls=ours))
    session = site.attempt("dev-a", site.client("dev-a"))
    session.wait_connected(10)
    for topic in (STATE_B, STATE_A):
        session.publish(Publication(topic, b"ready"))
    reader.wait(lambda: bool(reader.payloads))
    assert [each.topic for each in reader.deliveries] == [STATE_A]


def test_mutual_tls_refuses_a_certificate_with_a_wrong_password(place: Place) -> None:
    site = secured(place, mutual=True)
    with pytest.raises(AuthenticationFailed):
        site.attempt("dev-a", site.client("dev-a"), "not-the-secret").wait_connected(10)


def test_mutual_tls_refuses_a_certificate_of_another_authority(
    place: Place, tmp_path: Path
) -> None:
    site = secured(place, mutual=True)
    stranger = Secured(place, Authority(tmp_path / "stranger"))
    forged = replace(stranger.client("dev-a"), ca=site.authority.certificate_pem)
    with pytest.raises(TransportError):
        site.attempt("dev-a", forged).wait_connected(3)


def test_mutual_tls_binds_the_name_to_the_certificate_on_nats_alone(place: Place) -> None:
    site = secured(place, mutual=True)
    session = site.attempt("dev-b", site.client("dev-a"))
    if place.kind.server == "nats":
        with pytest.raises(AuthenticationFailed):
            session.wait_connected(10)
    else:
        session.wait_connected(10)


def test_mutual_tls_cuts_off_a_removed_user(place: Place) -> None:
    site = secured(place, mutual=True)
    removed = site.attempt("dev-a", site.client("dev-a"))
    kept = site.attempt("dev-b", site.client("dev-b"))
    for session in (removed, kept):
        session.wait_connected(10)
    place.access().apply([*WITHOUT_A, user("dev-c", Role.DEVICE)])
    eventually(lambda: not removed.connected, 5)
    assert kept.connected
    site.attempt("dev-c", site.client("dev-c")).wait_connected(10)


def test_users_stay_known_when_mutual_tls_is_switched_off(place: Place) -> None:
    secured(place, mutual=True)
    place.broker.stop()
    place.tls = None
    place.renew()
    place.broker.start(None)
    place.session(Owner(), endpoint=place.endpoint("dev-a"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
def test_no_plaintext_beyond_loopback(kind: Kind, tmp_path: Path, host: str) -> None:
    place = Place(kind, tmp_path)
    with pytest.raises(ConfigError, match="needs TLS"):
        place.renew(host=host)
    with pytest.raises(ConfigError, match="IPv4"):
        place.renew(host="broker.example")
    with pytest.raises(ConfigError, match="does not exist"):
        ListenerTls(tmp_path / "none.crt", tmp_path / "none.key")
