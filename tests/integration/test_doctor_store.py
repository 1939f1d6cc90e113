"""``rengo doctor store`` as its users meet it, on both embedded stores and on none."""

from __future__ import annotations

import http.server
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import SecretStr

from rengo.doctor.store import FEATURES, checks, speed_lines
from rengo.site.certificates import Authority
from runtime.errors import AccessDenied, ConfigError
from runtime.processes.ports import free_port
from storage.store.embedded import EmbeddedStore, Kind
from storage.store.objects import ObjectInfo, abort_uploads
from storage.store.probe import Capabilities, Findings, check_encryption, clock_offset_s, probe
from storage.store.s3 import S3Store
from storage.store.servers.base import StoreTls
from storage.store.settings import StoreSettings
from storage.store.speed import TransferSpeed
from tests.certificates import LOOPBACK
from tests.integration.commands import Told, rengo, surroundings
from tests.integration.store_fixtures import (  # noqa: F401
    KINDS,
    bucket_of,
    embedded_store,
    running_store,
)

ONCE = {"storage.store.speed._REPETITIONS": 1}
# the table of docs/stores.md
ANSWERS = {
    "juicefs": {
        **dict.fromkeys(FEATURES, True),
        **{"conditional_put": False, "versioning": False, "lifecycle": False},
        **{"sse_s3": False, "sse_kms": False},
    },
    "seaweedfs": {**dict.fromkeys(FEATURES, True), "sse_kms": False},
}


def written(path: Path, settings: StoreSettings, **changes: Any) -> Path:
    """Write a server's file that knows its store alone, and return its path."""
    values = settings.model_dump(mode="json", exclude_none=True)
    values["secret"] = settings.secret.get_secret_value()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tomli_w.dumps({"store": values | changes}).encode())
    return path


def doctor_store(*arguments: object, **more: Any) -> Told:
    """Ask the store; each size is timed once, where a user has the median of five."""
    return rengo("doctor", "store", *arguments, constants=ONCE, **more)


def kind_of(embedded: EmbeddedStore) -> str:
    seaweedfs = "weed" in Path(f"/proc/{embedded.pid}/cmdline").read_text()
    return "seaweedfs" if seaweedfs else "juicefs"


@pytest.fixture
def store(embedded_store: EmbeddedStore) -> S3Store:  # noqa: F811
    return bucket_of(embedded_store)


@pytest.fixture
def config(store: S3Store, tmp_path: Path) -> Path:
    return written(tmp_path / "server.toml", store.settings)


def empty(store: S3Store) -> bool:
    return not list(store.list("")) and abort_uploads(store, "") == 0


def test_it_tells_what_the_store_can_do_how_fast_and_how_late(
    store: S3Store,
    config: Path,
    embedded_store: EmbeddedStore,  # noqa: F811
) -> None:
    told = doctor_store("--config", config)
    assert told.code == 0, told.err
    assert told.err == ""
    shown = told.out.splitlines()
    assert shown[0] == f"Store {store.settings.endpoint}, bucket rengo"
    for line, size in zip(shown[1:4], (1, 8, 64), strict=True):
        assert line.strip().startswith(f"{size} MB: PUT ")
        assert "MB/s, GET " in line
    assert "ok    clock: equal to this machine's, to the second" in shown
    for name, there in ANSWERS[kind_of(embedded_store)].items():
        line = next(line for line in shown if f"  {FEATURES[name].name}: " in line)
        assert line.startswith("ok  ")
        assert ("not there: " in line) is not there, line
    assert shown[-1] == "All well."
    assert store.settings.secret.get_secret_value() not in told.out
    assert empty(store)


def test_the_document_says_the_same(
    store: S3Store,
    tmp_path: Path,
    embedded_store: EmbeddedStore,  # noqa: F811
) -> None:
    written(tmp_path / "server" / "server.toml", store.settings, prefix="berlin/lab")
    told = doctor_store("--json", home=tmp_path)
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["ok"] is True
    assert document["endpoint"] == store.settings.endpoint
    assert (document["bucket"], document["prefix"]) == ("rengo", "berlin/lab")
    assert document["can"] == ANSWERS[kind_of(embedded_store)]
    assert document["keeps_versions"] is False
    assert abs(document["clock_offset_s"]) <= 2
    assert 0 < document["round_trip_s"] < 5
    assert [each["size_mb"] for each in document["speeds"]] == [1, 8, 64]
    for each in document["speeds"]:
        assert each["put_mb_s"] > 0
        assert each["get_mb_s"] > 0
    assert empty(store)


def test_a_terminal_shows_what_is_asked(config: Path) -> None:
    leader, follower = pty.openpty()
    argv = [sys.executable, "-m", "rengo", "doctor", "store", "--config", str(config)]
    environment = surroundings(None, {"TERM": "xterm", "COLUMNS": "100"})
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=follower, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(follower)
        seen = b""
        try:
            while block := os.read(leader, 1 << 16):
                seen += block
        except OSError:
            pass  # the other end is closed
        finally:
            os.close(leader)
    assert process.returncode == 0
    assert b"asking the store" in seen


def test_the_environment_alone_names_a_store(store: S3Store) -> None:
    settings = store.settings
    environment = {
        "RENGO_SERVER_STORE__ENDPOINT": settings.endpoint,
        "RENGO_SERVER_STORE__ACCESS_KEY": settings.access_key,
        "RENGO_SERVER_STORE__SECRET": settings.secret.get_secret_value(),
    }
    assert doctor_store(environment=environment).code == 0


def test_no_store_at_all_is_said(tmp_path: Path) -> None:
    told = doctor_store(home=tmp_path / "none")
    assert told.code == 2
    assert told.line.startswith("no store is named: give")
    told = rengo("doctor", "--bucket", "x", home=tmp_path / "none")
    assert (told.code, told.line) == (2, "--bucket goes with `rengo doctor store`")


def test_a_wrong_endpoint_is_one_line(config: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    told = doctor_store("--config", config, "--endpoint", nowhere)
    assert told.code == 4
    assert nowhere in told.line
    assert "is store.endpoint right?" in told.line
    told = doctor_store("--config", config, "--endpoint", "127.0.0.1:9000")
    assert told.code == 2
    assert "'store.endpoint': must be http://host:port" in told.line


def test_a_wrong_secret_is_one_line_without_it(store: S3Store, tmp_path: Path) -> None:
    config = written(tmp_path / "server.toml", store.settings, secret="wrong-and-private")
    told = doctor_store("--config", config)
    assert told.code == 4
    assert "check store.access_key and store.secret" in told.line
    assert "private" not in told.err
    assert "X-Amz" not in told.err


def test_a_wrong_bucket_is_one_line_and_is_not_made(store: S3Store, config: Path) -> None:
    told = doctor_store("--config", config, "--bucket", "another")
    assert told.code == 2
    assert told.line.startswith(f"there is no bucket another at {store.settings.endpoint}")
    assert [each["Name"] for each in store.client.list_buckets()["Buckets"]] == ["rengo"]


def test_a_wrong_ca_is_one_line(tmp_path: Path) -> None:
    site, stranger = Authority(tmp_path / "site"), Authority(tmp_path / "stranger")
    tls = StoreTls(*site.issue_server(LOOPBACK), ca=site.certificate_path)
    embedded = EmbeddedStore(tmp_path / "data", tls=tls)
    embedded.start()
    try:
        settings = bucket_of(embedded).settings
        config = written(tmp_path / "wrong.toml", settings, ca=str(stranger.certificate_path))
        told = doctor_store("--config", config)
        assert told.code == 4
        assert "comes from no authority that is trusted here" in told.line
        config = written(tmp_path / "none.toml", settings, ca=str(tmp_path / "none.crt"))
        told = doctor_store("--config", config)
        assert told.code == 2
        assert "none.crt cannot be read" in told.line
        config = written(tmp_path / "right.toml", settings)
        assert doctor_store("--config", config).code == 0
    finally:
        embedded.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_encryption_that_is_asked_for_and_not_there_is_said(kind: Kind, tmp_path: Path) -> None:
    with running_store(tmp_path / "data", kind, encrypts=True) as embedded:
        encryption_is_said(bucket_of(embedded), tmp_path, ANSWERS[kind])


def encryption_is_said(store: S3Store, tmp_path: Path, can: dict[str, bool]) -> None:
    for sse, name in (("AES256", "sse_s3"), ("aws:kms", "sse_kms")):
        config = written(tmp_path / "server.toml", store.settings, sse=sse)
        told = doctor_store("--config", config)
        asked = S3Store(store.settings.model_copy(update={"sse": sse}))
        if can[name]:
            assert told.code == 0
            check_encryption(asked)
        else:
            assert told.code == 2
            assert told.line.startswith(f"store.sse = '{sse}' does not work on this store: ")
            with pytest.raises(ConfigError, match=f"store.sse = '{sse}'"):
                check_encryption(asked)
        assert empty(store)


# --- a store whose clock is its own -----------------------------------------------------------


class _Late(http.server.BaseHTTPRequestHandler):
    offset_s = 0.0

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.offset_s, usegmt=True)

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@contextmanager
def late_store(offset_s: float) -> Iterator[S3Store]:
    """A store that refuses everything, and tells a time of its own."""
    handler = type("Handler", (_Late,), {"offset_s": offset_s})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield S3Store(StoreSettings(endpoint=endpoint, access_key="a", secret=SecretStr("b")))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("offset_s", [3600, -3600])
def test_a_clock_that_is_far_off_is_named_as_the_reason(offset_s: int) -> None:
    with late_store(offset_s) as store:
        assert abs(clock_offset_s(store) - offset_s) <= 2
        with pytest.raises(
            AccessDenied, match=r"clock is [+-]3[56]\d\d s off.*set the clock first"
        ):
            probe(store)


def test_a_refusal_with_a_right_clock_does_not_blame_it() -> None:
    with late_store(0) as store, pytest.raises(AccessDenied) as caught:
        probe(store)
    assert "clock" not in str(caught.value)


# --- what answers mean ------------------------------------------------------------------------


class EmptyStore(S3Store):
    """A store that nothing is asked of: it has no objects to read."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())


def meaning(**changes: Any) -> dict[str, tuple[bool, bool, str]]:
    """Return each check's verdict, for a store that can do all but what is changed."""
    answers = dict.fromkeys(FEATURES, True) | {"lifecycle": False}
    found = {"keeps_versions": False, "round_trip_s": 0.001, "clock_offset_s": 0.0}
    settings = {"endpoint": "http://h", "access_key": "a", "secret": "b"}
    for name, value in changes.items():
        into: dict[str, Any] = next(
            each for each in (answers, found, settings | {"sse": None}) if name in each
        )
        into[name] = value
    store = EmptyStore(StoreSettings.model_validate(settings | {"sse": changes.get("sse")}))
    checked = checks(store, Findings(Capabilities(**answers), **found))
    return {each.name: (each.ok, each.required, each.detail) for each in checked}


def test_what_is_lacking_is_told_by_what_follows() -> None:
    ok, required, detail = meaning(range=False)["byte ranges"]
    assert (ok, required) == (False, False)
    assert detail == "not there: an interrupted download begins anew"
    ok, required, detail = meaning(delete_many=False)["delete many"]
    assert (ok, required) == (False, True)
    ok, _, detail = meaning(versioning=None)["versioning"]
    assert ok
    assert detail.startswith("this key may not ask for it: ")
    assert meaning(keeps_versions=True)["old versions"][:2] == (False, False)
    ok, required, detail = meaning(sse_s3=False, sse="AES256")["encryption, store's key"]
    assert (ok, required) == (False, True)


@pytest.mark.parametrize(
    ("offset_s", "ok", "required", "said"),
    [
        (0, True, True, "equal to this machine's"),
        (-30, True, True, "30 s behind this machine's"),
        (120, False, False, "120 s ahead of this machine's; URLs live that much"),
        (-1000, False, True, "1000 s behind this machine's; stores refuse"),
    ],
)
def test_a_clock_s_difference_in_words(
    offset_s: float, ok: bool, required: bool, said: str
) -> None:
    found = meaning(clock_offset_s=offset_s)["clock"]
    assert found[:2] == (ok, required)
    assert found[2].startswith(said)


def test_a_size_that_was_left_out_is_said() -> None:
    lines = speed_lines([TransferSpeed(1, 0.25, 12.4)])
    assert lines[0] == "  1 MB: PUT 0.2 MB/s, GET 12 MB/s"
    assert lines[1].startswith("8 and 64 MB left out")
