"""What libraries and servers would take from the user's variables and files reaches no site."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, get_args

import psutil
import pytest
import urllib3

from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Grants
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.s3 import S3Store
from storage.transfer.multipart import PartSizes

_NOWHERE = "http://127.0.0.1:9"
_AWS_FILE = """\
[default]
region = eu-central-1
endpoint_url = http://127.0.0.1:9
s3 =
    addressing_style = virtual
    use_accelerate_endpoint = true
    payload_signing_enabled = true
services = elsewhere
[services elsewhere]
s3 =
    endpoint_url = http://127.0.0.1:9
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables and files of a user who works with other stores and brokers too."""
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "config").write_text(_AWS_FILE)
    (home / ".aws" / "credentials").write_text("[default]\naws_access_key_id = other\n")
    variables = {
        "HOME": str(home),
        **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), _NOWHERE),
        **dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), _NOWHERE),
        "AWS_PROFILE": "not-there",
        "AWS_DEFAULT_PROFILE": "not-there",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "others-secret",
        "AWS_SESSION_TOKEN": "others-token",
        "AWS_CA_BUNDLE": "/nowhere.pem",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_DEFAULTS_MODE": "wrong",
        "AWS_RETRY_MODE": "wrong",
        "AWS_MAX_ATTEMPTS": "wrong",
        "MINIO_REGION": "eu-central-1",
        "MINIO_REGION_NAME": "eu-central-1",
        "MINIO_DOMAIN": "elsewhere.example",
        "MINIO_ACCESS_KEY": "other",
        "MINIO_SECRET_KEY": "others-secret",
        "MINIO_IDENTITY_OPENID_CONFIG_URL": _NOWHERE,
        "JFS_RSA_PASSPHRASE": "other",
        "META_PASSWORD": "other",
        "ACCESS_KEY": "other",
        "SECRET_KEY": "other",
        "WEED_JWT_FILER_SIGNING_KEY": "other",
        "WEED_MASTER_MAINTENANCE_SCRIPTS": "fs.rm -rf /",
        "NATS_URL": "nats://elsewhere.example",
        "RENGO_JOIN_TOKEN": "rengo_secret",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@contextmanager
def _serving(folder: Path, kind: Kind) -> Iterator[EmbeddedStore]:
    server = EmbeddedStore(folder, kind)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_sites_own_store_takes_nothing_of_it(tmp_path: Path, kind: Kind) -> None:
    with _serving(tmp_path / "store", kind) as server:
        store = S3Store(server.settings)
        store.ensure_bucket()
        store.put("a/b", b"123")
        assert [each.size for each in store.list("a/")] == [3]
        store.abort_upload("a/c", store.begin_upload("a/c"))
        store.delete(["a/b"])
        assert not list(store.list(""))
        _require_plain(server.pid)


@pytest.mark.usefixtures("hostile")
def test_a_sites_own_broker_takes_nothing_of_it(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.start([BrokerUser("server", "12345678", Grants((), ()))])
    try:
        _require_plain(broker.pid)
    finally:
        broker.stop()


def _require_plain(pid: int) -> None:
    """Fail where the process has a variable that a user sets for something else."""
    has = psutil.Process(pid).environ()
    leaked = {name for name, value in has.items() if os.environ.get(name) == value}
    usual = {"PATH", "TMPDIR", "TZ", "LANG", "GOMAXPROCS", "LD_LIBRARY_PATH"}
    assert {each for each in leaked if not each.startswith("LC_")} <= usual


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Forwards requests with a whole URL, and counts them."""

    passed: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        assert self.path.startswith("http://"), self.path
        self.passed.append(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with urllib3.PoolManager() as pool:
            answer = pool.request(
                self.command, self.path, body=body or None, headers=dict(self.headers)
            )
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        length = answer.headers["Content-Length"] if self.command == "HEAD" else len(answer.data)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer.data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_store_behind_a_proxy_is_reached_by_it_alone(tmp_path: Path) -> None:
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as proxy,
        _serving(tmp_path / "store", "juicefs") as server,
    ):
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            settings = server.settings.model_copy(
                update={"proxy": f"http://127.0.0.1:{proxy.server_address[1]}"}
            )
            store = S3Store(settings, PartSizes())
            store.ensure_bucket()  # HEAD and PUT by boto3
            store.put("a", b"123")
            with store.open("a") as found:
                assert found.read(10) == b"123"
            store.delete(["a"])
        finally:
            proxy.shutdown()
            thread.join()
    assert _Proxy.passed == ["HEAD", "PUT", "PUT", "GET", "DELETE"]
