"""TLS with real brokers and stores: what is trusted, what is refused, and how it is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from rengo.site.certificates import Authority
from runtime.errors import (
    AuthenticationFailed,
    ConfigError,
    TransportError,
    UntrustedPeer,
)
from runtime.processes.ports import free_port
from runtime.security.tls import Tls, fetch_authority
from tests.certificates import FUTURE, LOOPBACK, PAST, issued_then, listener, own_pair, trust
from tests.integration.broker_fixtures import Owner
from tests.integration.tls_fixtures import (
    Broker,
    Pair,
    listening,
    saying,
    speaking_tls,
    tls_broker,
)

HOST = "127.0.0.1"
BROKERS: tuple[Broker, ...] = ("nats", "mosquitto")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("site") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger") / "authority")


@pytest.fixture(scope="module")
def pair(site: Authority) -> Pair:
    return site.issue_server(LOOPBACK)


def connects(port: int, tls: Tls | None, host: str = HOST, timeout_s: float = 10.0) -> None:
    """Return when a session with the broker stands; raise what its owner is told."""
    endpoint = Endpoint(host, port, "anyone", "", "anyone-1", tls=tls, persistent=False)
    session = MqttSession(endpoint, ["a/b"], Owner())
    session.start()
    try:
        session.wait_connected(timeout_s)
    finally:
        session.stop()


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_is_believed_by_its_authority_and_name(
    kind: Broker, site: Authority, stranger: Authority, tmp_path: Path
) -> None:
    pair = site.issue_server(["localhost"], "localhost")
    with tls_broker(tmp_path / kind, kind, pair) as port:
        connects(port, trust(site), "localhost")
        for tls in (trust(stranger), Tls()):
            started = time.monotonic()
            with pytest.raises(UntrustedPeer, match="no authority that is trusted here"):
                connects(port, tls, "localhost", timeout_s=30)
            assert time.monotonic() - started < 10
        with pytest.raises(UntrustedPeer, match=r"another name.*127\.0\.0\.1"):
            connects(port, trust(site))
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
            connects(port, None, timeout_s=1)


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_out_of_its_time_is_told_and_tried_again(
    kind: Broker, site: Authority, tmp_path: Path
) -> None:
    for name, validity, words in (("old", PAST, "has expired"), ("new", FUTURE, "not valid yet")):
        pair = issued_then(site, validity, name)
        with tls_broker(tmp_path / name, kind, pair) as port:
            with pytest.raises(TransportError, match=words) as caught:
                connects(port, trust(site), timeout_s=1)
            assert not isinstance(caught.value, AuthenticationFailed)


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_that_wants_a_certificate_gets_one_or_says_so(
    kind: Broker, pair: Pair, site: Authority, stranger: Authority, tmp_path: Path
) -> None:
    with tls_broker(tmp_path / kind, kind, pair, site.certificate_path) as port:
        connects(port, Tls(site.certificate_pem, *own_pair(site, tmp_path)))
        for shown in ((), own_pair(stranger, tmp_path, "stranger")):
            for _ in range(5):  # the refusal may come before or after our first message
                with pytest.raises(AuthenticationFailed, match="without a certificate that it"):
                    connects(port, Tls(site.certificate_pem, *shown))


def test_a_broker_without_tls_is_told(site: Authority) -> None:
    for said in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {}\r\n"):
        with (
            listening(saying(said)) as port,
            pytest.raises(TransportError, match=r"does not speak TLS|its TLS port|reset"),
        ):
            connects(port, trust(site), timeout_s=1)


def test_a_broker_that_hangs_up_after_tls_is_told(site: Authority, pair: Pair) -> None:
    with (
        listening(speaking_tls(listener(pair))) as port,
        pytest.raises(TransportError, match="perhaps it takes only clients with a certificate"),
    ):
        connects(port, trust(site), timeout_s=1)


def test_an_endpoint_with_material_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="CA is not a certificate"):
        Endpoint(HOST, 1, "anyone", "", "anyone-1", tls=Tls("no certificate"))


@pytest.mark.parametrize("kind", BROKERS)
def test_a_fingerprint_finds_the_authority(
    kind: Broker, pair: Pair, site: Authority, stranger: Authority, tmp_path: Path
) -> None:
    with tls_broker(tmp_path / kind, kind, pair) as port:
        assert fetch_authority(HOST, port, site.fingerprint) == site.certificate_pem
        upper = ":".join(site.fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
        assert fetch_authority("localhost", port, upper) == site.certificate_pem
        with pytest.raises(UntrustedPeer, match="not the one this token was made for") as caught:
            fetch_authority(HOST, port, stranger.fingerprint)
        assert f"{HOST}:{port}" in str(caught.value)
        assert site.fingerprint[:16] in str(caught.value)


def test_a_wrong_name_is_told_with_the_right_ones(site: Authority) -> None:
    pair = site.issue_server(["broker.example", "10.0.0.7"], "elsewhere")
    with (
        listening(speaking_tls(listener(pair))) as port,
        pytest.raises(UntrustedPeer, match=r"another name.*it is for broker\.example, 10\.0\.0\.7"),
    ):
        fetch_authority(HOST, port, site.fingerprint)


def test_an_authority_that_is_shown_but_did_not_sign_is_refused(
    site: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """Whoever shows the wanted CA beside a leaf of his own is caught by the second look."""
    leaf, key = stranger.issue_server(LOOPBACK, "spoof")
    shown = tmp_path / "spoof.crt"
    end = "-----END CERTIFICATE-----\n"
    shown.write_text(leaf.read_text().partition(end)[0] + end + site.certificate_pem)
    with (
        listening(speaking_tls(listener((shown, key)))) as port,
        pytest.raises(UntrustedPeer, match="no authority that is trusted here"),
    ):
        fetch_authority(HOST, port, site.fingerprint)


def test_who_cannot_be_asked_for_an_authority_is_told(site: Authority) -> None:
    with pytest.raises(TransportError, match="cannot be reached"):
        fetch_authority(HOST, free_port(), site.fingerprint)
    for said in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with (
            listening(saying(said)) as port,
            pytest.raises(TransportError, match=r"does not speak TLS|its TLS port|reset"),
        ):
            fetch_authority(HOST, port, site.fingerprint)
    with (
        listening(lambda connection: connection.recv(1) and None) as port,
        pytest.raises(TransportError, match=r"cannot be reached|its TLS port"),
    ):
        fetch_authority(HOST, port, site.fingerprint, timeout_s=1)
