"""TLS between devices, the server and both embedded stores: what is trusted and what is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import urllib3

from rengo.site.certificates import Authority
from runtime.errors import ConfigError, StorageError, Unavailable
from runtime.retry import instant
from runtime.security.tls import Tls
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.probe import probe
from storage.store.s3 import S3Store
from storage.store.servers.base import StoreTls
from storage.transfer.files import Transfers, TransferSettings
from tests.certificates import LOOPBACK, PAST, issued_then, trust
from tests.integration.broker_fixtures import eventually
from tests.integration.store_fixtures import KINDS, bucket_of

HOST = "127.0.0.1"
BODY = os.urandom(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("site") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger") / "authority")


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
    assert found.can.range
    assert found.can.pinned_length


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
    assert probe(store).can.range


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
