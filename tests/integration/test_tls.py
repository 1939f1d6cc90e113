"""TLS with real brokers and stores: what is trusted, what is refused, and how it is told."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import urllib3

from broker.connection import Endpoint
from broker.session import MqttSession
from rengo.authority import Authority
from runtime.errors import (
    AuthenticationFailed,
    ConfigError,
    StorageError,
    TransportError,
    Unavailable,
    UntrustedPeer,
)
from runtime.ports import free_port
from runtime.retry import instant
from runtime.tls import Tls, fetch_authority
from storage.embedded import EmbeddedStore, Kind, StoreTls
from storage.probe import probe
from storage.s3 import S3Store
from storage.transfers import Transfers, TransferSettings
from tests.certificates import FUTURE, LOOPBACK, PAST, issued_then, listener, own_pair, trust
from tests.integration.broker_fixtures import Owner, eventually
from tests.integration.store_fixtures import KINDS, bucket_of
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


# --- the store ------------------------------------------------------------------------------------

BODY = os.urandom(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Unasked(EmbeddedStore):
    """A store that is up when its port is, for one whose certificate nobody would accept."""

    def _answers(self, door: urllib3.HTTPConnectionPool) -> bool:
        return psutil.pid_exists(self.pid) and any(
            each.laddr.port == door.port and each.status == psutil.CONN_LISTEN
            for each in psutil.Process(self.pid).net_connections("tcp")
        )


@pytest.fixture(scope="module", params=KINDS)
def secure(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, site: Authority
) -> Iterator[EmbeddedStore]:
    """A store with a certificate for its address, and for no name."""
    tls = StoreTls(*site.issue_server([HOST], "store"), ca=site.certificate_path)
    store = EmbeddedStore(tmp_path_factory.mktemp("store") / "data", request.param, tls=tls)
    store.start()
    try:
        yield store
    finally:
        store.stop()


def there_and_back(store: S3Store, tls: Tls | None, folder: Path) -> None:
    """Bring a file to the store and back as a device does."""
    path, back = folder / "update", folder / "back"
    path.write_bytes(BODY)
    back.unlink(missing_ok=True)
    transfers = Transfers(TransferSettings(attempts=2), tls)
    assert transfers.upload(store.presign_put("key", 60, len(BODY)), path) == len(BODY)
    url = store.presign_get("key", 60)
    assert transfers.download(url, back, sha256=SHA, size=len(BODY)) == len(BODY)
    assert back.read_bytes() == BODY


def refusals(store: S3Store, tls: Tls | None, folder: Path) -> list[StorageError]:
    """Return what a device is told in either direction, without the URL's credential."""
    path = folder / "update"
    path.write_bytes(BODY)
    transfers = Transfers(TransferSettings(attempts=2), tls)
    told = []
    with instant():
        for way in (
            lambda: transfers.upload(store.presign_put("key", 60), path),
            lambda: transfers.download(
                store.presign_get("key", 60), folder / "none", sha256=SHA, size=len(BODY)
            ),
        ):
            with pytest.raises(StorageError) as caught:
                way()
            assert "X-Amz" not in str(caught.value)
            assert "/rengo/key: the " in str(caught.value)
            told.append(caught.value)
    return told


def test_a_store_serves_devices_that_trust_its_authority(
    secure: EmbeddedStore, site: Authority, tmp_path: Path
) -> None:
    store = bucket_of(secure)
    assert store.settings.endpoint.startswith(f"https://{HOST}:")
    there_and_back(store, trust(site), tmp_path)
    assert store.head("key").size == len(BODY)
    found = probe(store)
    assert found.range
    assert found.pinned_length


def test_a_store_that_nobody_vouches_for_is_refused_at_once(
    secure: EmbeddedStore, stranger: Authority, tmp_path: Path
) -> None:
    store = bucket_of(secure)
    for tls in (trust(stranger), Tls(), None):
        for error in refusals(store, tls, tmp_path):
            assert type(error) is StorageError
            assert "comes from no authority that is trusted here" in str(error)
    own = S3Store(store.settings.model_copy(update={"ca": stranger.certificate_path}))
    for verb in (lambda: own.put("key", b"x"), lambda: own.head("key"), own.ensure_bucket):
        with pytest.raises(StorageError, match="no authority that is trusted here") as caught:
            verb()
        assert type(caught.value) is StorageError


def test_a_store_with_a_certificate_for_another_name_is_refused_at_once(
    secure: EmbeddedStore, site: Authority, tmp_path: Path
) -> None:
    public = secure.settings.endpoint.replace(HOST, "localhost")
    store = S3Store(secure.settings.model_copy(update={"public_endpoint": public}))
    store.ensure_bucket()
    store.put("key", BODY)
    for error in refusals(store, trust(site), tmp_path):
        assert type(error) is StorageError
        assert "is for another name" in str(error)
        assert "localhost" in str(error)
    assert probe(store).range


@pytest.mark.parametrize("kind", KINDS)
def test_devices_come_by_the_public_name(kind: Kind, site: Authority, tmp_path: Path) -> None:
    pair = site.issue_server(LOOPBACK)
    tls = StoreTls(*pair, ca=site.certificate_path, name="localhost")
    embedded = EmbeddedStore(tmp_path / "data", kind, tls=tls)
    assert embedded.settings.endpoint.startswith("https://localhost:")
    embedded.start()
    try:
        public = embedded.settings.endpoint
        inner = embedded.settings.endpoint.replace("localhost", HOST)
        store = S3Store(
            embedded.settings.model_copy(update={"endpoint": inner, "public_endpoint": public})
        )
        store.ensure_bucket()
        assert store.presign_get("key", 60).startswith(f"{public}/rengo/key?")
        there_and_back(store, trust(site), tmp_path)
    finally:
        embedded.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_out_of_its_time_is_told(kind: Kind, site: Authority, tmp_path: Path) -> None:
    pair = issued_then(site, PAST, "old-store")
    tls = StoreTls(*pair, ca=site.certificate_path)
    embedded = Unasked(tmp_path / "data", kind, tls=tls)
    embedded.start()
    try:
        for error in refusals(S3Store(embedded.settings), trust(site), tmp_path):
            assert isinstance(error, Unavailable)
            assert "has expired by this machine's clock" in str(error)
    finally:
        embedded.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_tls_may_come_and_go_and_the_objects_stay(
    kind: Kind, site: Authority, tmp_path: Path
) -> None:
    pair = site.issue_server(LOOPBACK)
    for tls in (None, StoreTls(*pair, ca=site.certificate_path), None):
        embedded = EmbeddedStore(tmp_path / "data", kind, tls=tls)
        embedded.start()
        try:
            store = bucket_of(embedded)
            assert store.settings.endpoint.startswith("http://" if tls is None else "https://")
            if tls is None:
                store.put("key", BODY)
            with store.open("key", 0, 10) as stream:
                assert stream.read(10) == BODY[:10]
            if kind == "seaweedfs":
                # it writes down its options, and would use them again
                eventually((tmp_path / "data" / "objects" / "mini.options").is_file)
        finally:
            embedded.stop()


def test_a_store_without_tls_is_told_to_who_expects_it(site: Authority, tmp_path: Path) -> None:
    embedded = EmbeddedStore(tmp_path / "data")
    embedded.start()
    try:
        public = embedded.settings.endpoint.replace("http://", "https://")
        store = S3Store(embedded.settings.model_copy(update={"public_endpoint": public}))
        for error in refusals(store, trust(site), tmp_path):
            assert isinstance(error, Unavailable)
            assert "does not speak TLS" in str(error)
    finally:
        embedded.stop()


def test_beyond_loopback_the_s3_part_alone_listens(site: Authority, tmp_path: Path) -> None:
    tls = StoreTls(*site.issue_server(LOOPBACK), ca=site.certificate_path)
    embedded = EmbeddedStore(tmp_path / "data", host="0.0.0.0", tls=tls)
    embedded.start()
    try:
        beyond = {
            each.laddr.port
            for each in psutil.Process(embedded.pid).net_connections("inet")
            if each.status == psutil.CONN_LISTEN and each.laddr.ip != HOST
        }
        assert beyond == {int(embedded.settings.endpoint.rpartition(":")[2])}
        there_and_back(bucket_of(embedded), trust(site), tmp_path)
    finally:
        embedded.stop()


def test_a_store_does_not_start_with_what_nobody_can_use(
    site: Authority, stranger: Authority, tmp_path: Path
) -> None:
    certificate, key = site.issue_server(["store.example"], "named")
    elsewhere = StoreTls(certificate, key, site.certificate_path)
    unknown = StoreTls(*site.issue_server(LOOPBACK), stranger.certificate_path)
    mixed = StoreTls(certificate, site.issue_server(LOOPBACK)[1], site.certificate_path)
    missing = StoreTls(certificate, tmp_path / "none", site.certificate_path)
    cases = [
        (elsewhere, StorageError, "is for another name"),
        (unknown, StorageError, "no authority that is trusted here"),
        (mixed, ConfigError, "is not that of"),
        (missing, ConfigError, "none cannot be read"),
    ]
    for tls, kind, words in cases:
        embedded = EmbeddedStore(tmp_path / "data", tls=tls)
        with pytest.raises(kind, match=words):
            embedded.start()
        assert not embedded.running
