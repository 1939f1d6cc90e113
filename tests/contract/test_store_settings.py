"""Prefix, encryption, addressing, lifecycle rule: what a site's settings change in a store."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from fl_server.settings import ServerConfig
from runtime.config import load
from runtime.errors import AccessDenied, ConfigError, StorageError
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.lifecycle import ensure_rule, remove_rule, rule_is_set, rules
from storage.store.objects import abort_uploads
from storage.store.probe import probe
from storage.store.s3 import S3Store
from storage.store.servers.base import Keys
from storage.store.settings import StoreSettings
from storage.transfer.files import Transfers
from storage.transfer.multipart import LARGE_BYTES
from tests.integration.store_fixtures import (  # noqa: F401
    KINDS,
    bucket_of,
    embedded_store,
    running_store,
)

KEY = "projects/p/runs/r/global/000000.safetensors"
KEYS = {"endpoint": "http://h:9000", "access_key": "a", "secret": "b"}


def having(store: S3Store, **changes: Any) -> S3Store:
    settings = store.settings.model_dump() | changes
    return S3Store(StoreSettings.model_validate(settings))


@pytest.fixture
def bare(embedded_store: EmbeddedStore) -> Iterator[S3Store]:  # noqa: F811
    """The whole bucket, empty before and after."""
    store = bucket_of(embedded_store)
    yield store
    store.delete([info.key for info in store.list("")])


@pytest.fixture
def seaweedfs(tmp_path: Path) -> Iterator[S3Store]:
    with running_store(tmp_path / "data", "seaweedfs", encrypts=True) as embedded:
        yield bucket_of(embedded)


def read(store: S3Store, key: str) -> bytes:
    with store.open(key) as stream:
        return b"".join(iter(lambda: stream.read(1 << 20), b""))


# --- prefix -----------------------------------------------------------------------------------


def test_sites_share_a_bucket_by_prefix_and_see_only_their_own(
    bare: S3Store, tmp_path: Path
) -> None:
    berlin, bern = having(bare, prefix="sites/berlin"), having(bare, prefix="/sites/bern/")
    berlin.put(KEY, b"berlin")
    bern.put(KEY, b"bern")
    assert {info.key for info in bare.list("")} == {f"sites/berlin/{KEY}", f"sites/bern/{KEY}"}
    assert (read(berlin, KEY), read(bern, KEY)) == (b"berlin", b"bern")
    assert [info.key for info in berlin.list("")] == [KEY]
    assert [info.key for info in berlin.list("projects/p/")] == [KEY]
    assert list(berlin.list("sites/")) == []
    assert berlin.head(KEY).key == KEY

    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(b"by a device")
    Transfers().upload(berlin.presign_put("u/1", 60), source)
    assert bare.head("sites/berlin/u/1").size == len(b"by a device")
    sha256 = hashlib.sha256(b"by a device").hexdigest()
    Transfers().download(berlin.presign_get("u/1", 60), back, sha256=sha256, size=11)
    assert back.read_bytes() == b"by a device"

    berlin.delete([KEY, "u/1"])
    assert [info.key for info in bare.list("")] == [f"sites/bern/{KEY}"]


def test_unfinished_uploads_are_aborted_below_the_own_prefix_alone(bare: S3Store) -> None:
    berlin, bern = having(bare, prefix="berlin"), having(bare, prefix="berlin2")
    for store in (berlin, bern):
        for key in ("projects/p/a", "projects/q/a"):
            store.client.create_multipart_upload(Bucket="rengo", Key=store.full(key))
    assert abort_uploads(berlin, "projects/p/") == 1
    assert abort_uploads(berlin, "") == 1
    assert abort_uploads(berlin, "") == 0
    assert abort_uploads(bern, "") == 2


def test_large_objects_and_the_probe_stay_below_the_prefix(bare: S3Store) -> None:
    store = having(bare, prefix="berlin")
    data = os.urandom(LARGE_BYTES + 5)
    store.put(KEY, data)
    assert [(info.key, info.size) for info in bare.list("")] == [(f"berlin/{KEY}", len(data))]
    assert read(store, KEY) == data
    assert probe(store).can.presigned_parts
    assert [info.key for info in bare.list("")] == [f"berlin/{KEY}"]
    assert abort_uploads(bare, "") == 0


# --- encryption -------------------------------------------------------------------------------


def encryption(store: S3Store, key: str) -> str | None:
    found = store.client.head_object(Bucket="rengo", Key=store.full(key))
    return found.get("ServerSideEncryption")


def test_each_way_into_the_store_asks_for_encryption(seaweedfs: S3Store, tmp_path: Path) -> None:
    store = having(seaweedfs, sse="AES256")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(200_000))
    store.put("small", b"hello")
    with source.open("rb") as file:
        store.put("file", file)
    large = os.urandom(LARGE_BYTES + 5)
    store.put("large", large)
    Transfers().upload(store.presign_put("device", 60), source, headers=store.upload_headers)
    assert {encryption(store, key) for key in ("small", "file", "large", "device")} == {"AES256"}
    assert read(store, "large") == large
    assert read(store, "device") == source.read_bytes()
    seaweedfs.put("plain", b"x")
    assert encryption(seaweedfs, "plain") is None


def test_a_url_that_asks_for_encryption_takes_nothing_without_it(
    seaweedfs: S3Store, tmp_path: Path
) -> None:
    store = having(seaweedfs, sse="AES256")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for headers in ({}, {"x-amz-server-side-encryption": "aws:kms"}):
        with pytest.raises(AccessDenied):
            Transfers().upload(store.presign_put("device", 60), source, headers=headers)
    assert list(store.list("")) == []


def test_a_store_that_does_not_encrypt_is_no_store_to_wait_for(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", "juicefs") as embedded:
        store = having(bucket_of(embedded), sse="AES256")
        for put in (lambda: store.put("k", b"x"), lambda: store.begin_upload("k")):
            with pytest.raises(StorageError) as caught:
                put()
            assert type(caught.value) is StorageError


def test_the_headers_of_a_key_service_name_its_key() -> None:
    settings = StoreSettings.model_validate(KEYS | {"sse": "aws:kms", "kms_key": "arn:aws:kms:k"})
    assert settings.upload_headers == {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:k",
    }
    url = S3Store(settings).presign_put("k", 60)
    signed = "X-Amz-SignedHeaders=host%3Bx-amz-server-side-encryption"
    assert f"{signed}%3Bx-amz-server-side-encryption-aws-kms-key-id" in url


def test_temporary_keys_sign_their_token_in() -> None:
    settings = StoreSettings.model_validate(KEYS | {"session_token": "temporary"})
    assert "X-Amz-Security-Token=temporary" in S3Store(settings).presign_get("k", 60)
    assert "temporary" not in repr(settings)


# --- addressing -------------------------------------------------------------------------------


class NamedStore(EmbeddedStore):
    """A store that takes the bucket from the host's name below ``stores.test`` as well."""

    def start(self) -> None:
        server: Any = self._server
        prepare, options = server.prepare, getattr(server, "_options", None)

        def named(keys: Keys, environment: dict[str, str]) -> list[str]:
            environment["MINIO_DOMAIN"] = "stores.test"
            return list(prepare(keys, environment))

        server.prepare = named
        if options is not None:
            server._options = lambda: options() | {"s3.domainName": "stores.test"}
        super().start()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bucket_may_stand_before_the_host(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = socket.getaddrinfo

    def loopback(host: str | None, *arguments: Any, **more: Any) -> Any:
        ours = host is not None and host.endswith("stores.test")
        return found("127.0.0.1" if ours else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)
    embedded = NamedStore(tmp_path / "data", kind)
    embedded.start()
    try:
        by_path = bucket_of(embedded)
        port = by_path.settings.endpoint.rpartition(":")[2]
        store = having(by_path, endpoint=f"http://stores.test:{port}", path_style=False)
        store.ensure_bucket()
        store.put(KEY, b"hello")
        assert read(by_path, KEY) == b"hello"
        assert store.presign_get(KEY, 60).startswith(f"http://rengo.stores.test:{port}/{KEY}?")
        assert [info.key for info in store.list("")] == [KEY]
        found_out = probe(store)
        assert found_out.can.presigned_parts
        assert found_out.can.part_copy
        store.delete([KEY])
        assert list(by_path.list("")) == []
    finally:
        embedded.stop()


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_a_bucket_is_made_in_the_region(bare: S3Store, region: str) -> None:
    store = having(bare, bucket=f"in-{region}", region=region)
    store.ensure_bucket()
    store.ensure_bucket()
    store.put(KEY, b"hello")
    assert read(store, KEY) == b"hello"
    store.delete([KEY])


def test_a_bucket_elsewhere_is_a_matter_of_the_settings(bare: S3Store) -> None:
    from storage.store.s3 import _error_of  # noqa: PLC0415  (no store here has several regions)

    for code in ("301", "PermanentRedirect", "AuthorizationHeaderMalformed"):
        error = _error_of(code, "HEAD BUCKET b")
        assert isinstance(error, ConfigError)
        assert "set store.region" in str(error)


# --- the lifecycle rule -----------------------------------------------------------------------


def test_a_store_without_rules_is_fine(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", "juicefs") as embedded:
        assert (
            ensure_rule(bucket_of(embedded)) == "the store takes no lifecycle rules: none was set"
        )


def test_the_rule_is_set_once_beside_another_site_s(seaweedfs: S3Store) -> None:
    berlin, bern = having(seaweedfs, prefix="berlin"), having(seaweedfs, prefix="ch/bern")
    assert not rule_is_set(berlin)
    for store in (berlin, bern):
        assert (
            ensure_rule(store)
            == "the bucket's rule that ends unfinished uploads after a day was set"
        )
    for store in (berlin, bern):
        assert ensure_rule(store) == "unfinished uploads end after a day by the bucket's rule"
        assert rule_is_set(store)
    assert [(rule["ID"], rule["Filter"]) for rule in rules(berlin)] == [
        ("rengo-unfinished-uploads-berlin", {"Prefix": "berlin/"}),
        ("rengo-unfinished-uploads-ch.bern", {"Prefix": "ch/bern/"}),
    ]
    remove_rule(berlin)
    assert [rule["ID"] for rule in rules(bern)] == ["rengo-unfinished-uploads-ch.bern"]
    remove_rule(bern)
    assert rules(bern) == []


def test_the_rule_of_a_whole_bucket_stands_too(seaweedfs: S3Store) -> None:
    ensure_rule(seaweedfs)
    assert ensure_rule(seaweedfs) == "unfinished uploads end after a day by the bucket's rule"


def test_rules_of_others_are_left_alone(seaweedfs: S3Store) -> None:
    theirs: Any = {
        "ID": "logs",
        "Status": "Enabled",
        "Filter": {"Prefix": "logs/"},
        "Expiration": {"Days": 30},
    }
    seaweedfs.client.put_bucket_lifecycle_configuration(
        Bucket="rengo", LifecycleConfiguration={"Rules": [theirs]}
    )
    before = rules(seaweedfs)
    said = ensure_rule(having(seaweedfs, prefix="berlin"))
    assert "stay as they are" in said
    assert "'berlin/'" in said
    assert rules(seaweedfs) == before


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prefix": "a//b"}, "'store.prefix': must be letters"),
        ({"prefix": "a/../b"}, "'store.prefix': must be letters"),
        ({"prefix": "ä"}, "'store.prefix': must be letters"),
        ({"prefix": "a" * 201}, "'store.prefix'"),
        ({"sse": "rot13"}, "'store.sse'"),
        ({"kms_key": "k"}, "'store.kms_key': is for sse = 'aws:kms' alone"),
        ({"kms_key": "k", "sse": "AES256"}, "'store.kms_key': is for sse"),
        ({"kms_key": "a b", "sse": "aws:kms"}, "'store.kms_key'"),
        ({"region": "eu central"}, "'store.region'"),
        ({"access_key": ""}, "'store.access_key'"),
        ({"secret": ""}, "'store.secret'"),
        ({"bucket": "Upper"}, "'store.bucket'"),
        ({"path_style": "perhaps"}, "'store.path_style'"),
        ({"path_style": False, "endpoint": "https://192.0.2.1"}, "path_style = false puts"),
        (
            {"path_style": False, "endpoint": "https://[2001:db8::1]:9000"},
            "path_style = false puts",
        ),
        ({"sse_key": "k"}, "unknown key 'store.sse_key'"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(
    values: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.toml"
    file.write_text('identity = "i"\ndata_dir = "d"\n')
    given = {"store": KEYS | values}
    with pytest.raises(ConfigError, match=r"server\.toml") as caught:
        load(ServerConfig, file, "RENGO_SERVER", given)
    assert said in str(caught.value)


def test_every_key_comes_by_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.toml"
    file.write_text('identity = "i"\ndata_dir = "d"\n[store]\nbucket = "another"\n')
    given = KEYS | {
        "bucket": "the-bucket",
        "region": "eu-central-1",
        "session_token": "t",
        "path_style": "false",
        "public_endpoint": "https://public",
        "ca": "ca.pem",
        "prefix": "sites/berlin/",
        "sse": "aws:kms",
        "kms_key": "k",
        "proxy": "http://proxy:3128",
    }
    assert set(given) == set(StoreSettings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(f"RENGO_SERVER_STORE__{name.upper()}", str(value))
    store = load(ServerConfig, file, "RENGO_SERVER").store
    assert store == StoreSettings(
        endpoint="http://h:9000",
        bucket="the-bucket",
        region="eu-central-1",
        access_key="a",
        secret=SecretStr("b"),
        session_token=SecretStr("t"),
        path_style=False,
        public_endpoint="https://public",
        ca=Path("ca.pem"),
        prefix="sites/berlin",
        sse="aws:kms",
        kms_key="k",
        proxy="http://proxy:3128",
    )
    monkeypatch.setenv("RENGO_SERVER_STORE__SSE", "rot13")
    with pytest.raises(ConfigError, match=r"'store\.sse'"):
        load(ServerConfig, file, "RENGO_SERVER")
