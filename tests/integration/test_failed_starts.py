"""Servers, agents and operators beside a broker and a store that are not there or refuse them."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Role, grants
from fl_server.persistence.journal import Journal
from runtime.processes.ports import free_port
from runtime.security.identity import Identity, new_identity, write_identity
from storage.store.embedded import EmbeddedStore
from tests.integration.bad_input import (
    FAILED,
    UNREACHABLE,
    USAGE,
    home,
    identity_file,
    no_room,
    server_file,
)
from tests.integration.commands import rengo, surroundings

__all__ = ["home"]


@dataclass
class Place:
    """A real broker and a real store with the identities of a server and a device."""

    folder: Path
    broker: EmbeddedBroker
    store: EmbeddedStore
    server: Identity
    device: Identity
    operator: Identity

    def server_file(self, folder: Path, **changes: Any) -> Path:
        settings = self.store.settings
        write_identity(folder / "server.json", self.server)
        values: dict[str, Any] = {
            "store__endpoint": settings.endpoint,
            "store__access_key": settings.access_key,
            "store__secret": settings.secret.get_secret_value(),
        }
        return server_file(folder, **values | changes)


def with_role(role: Any, name: str, port: int) -> tuple[Identity, BrokerUser]:
    identity = new_identity(role, "home", name, "127.0.0.1", port)
    password = identity.password.get_secret_value()
    return identity, BrokerUser(name, password, grants(Role(role), "home", name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    port = free_port()
    found = [
        with_role(role, name, port)
        for role, name in (("server", "server"), ("device", "d-1"), ("operator", "operator"))
    ]
    broker = EmbeddedBroker(folder / "broker", port)
    store = EmbeddedStore(folder / "store")
    broker.start([user for _, user in found])
    try:
        store.start()
        yield Place(folder, broker, store, *(identity for identity, _ in found))
    finally:
        store.stop()
        broker.stop()


def wrong(identity: Identity) -> Identity:
    other = new_identity("device", "home", "x", "127.0.0.1", 1).password
    return identity.model_copy(update={"password": other})


@dataclass
class Away:
    """A command whose other side is not there, and what it must say."""

    name: str
    arguments: tuple[object, ...]
    said: tuple[str, ...]
    home: Path | None = None


def operator_home(folder: Path, identity: Identity, **changes: Any) -> Path:
    path = folder / "identities" / "operator.json"
    write_identity(path, identity.model_copy(update=changes))
    return folder


def commands_to_nobody(place: Place, folder: Path) -> list[Away]:
    port, endpoint = free_port(), f"http://127.0.0.1:{free_port()}"
    for name in ("broker", "store"):
        (folder / name).mkdir()
    broker_file = place.server_file(folder / "broker")
    store_file = place.server_file(folder / "store", store__endpoint=endpoint)
    elsewhere = place.server.model_copy(update={"port": port})
    write_identity(folder / "broker" / "server.json", elsewhere)
    closed = operator_home(folder / "closed", place.operator, port=port)
    unknown = operator_home(folder / "unknown", place.operator, host="no-such-host.invalid")
    alone = operator_home(folder / "alone", place.operator)
    refused = (f"127.0.0.1:{port}", "Connection refused")
    return [
        Away("server, no broker", ("server", "--config", broker_file), refused),
        Away("server, no store", ("server", "--config", store_file), (endpoint, "store.endpoint")),
        Away("operator, no broker", ("runs", "ls"), refused, closed),
        Away("submitter, no broker", ("run", "digits"), refused, closed),
        Away("operator, no such host", ("runs", "ls"), ("no-such-host.invalid:",), unknown),
        Away(
            "operator, no server",
            ("runs", "ls"),
            ("the server did not answer 'runs_ls'", "is it running?"),
            alone,
        ),
    ]


def test_whoever_is_away_is_told_within_a_bounded_time(place: Place, tmp_path: Path) -> None:
    """All at the same time, since each waits a while for the other side to come."""
    cases = commands_to_nobody(place, tmp_path)
    with ThreadPoolExecutor(len(cases)) as pool:
        ends = [pool.submit(rengo, *case.arguments, home=case.home) for case in cases]
    for case, end in zip(cases, ends, strict=True):
        told = end.result()
        for said in case.said:
            assert said in told.line, case.name
        assert told.code == UNREACHABLE, case.name
        assert told.seconds < 55, case.name


def test_an_agent_waits_for_a_broker_and_says_so(tmp_path: Path) -> None:
    """A device may be switched on before its network: it keeps trying, and ends when told to."""
    port = free_port()
    argv = [
        "client",
        "--identity",
        identity_file(tmp_path, port=port),
        "--data-dir",
        tmp_path / "d",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "rengo", *map(str, argv)],
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings(None),
    ) as child:
        assert child.stderr is not None
        line = child.stderr.readline()
        child.send_signal(signal.SIGTERM)
        rest = child.stderr.read()
        assert child.wait(30) == 0
    assert f"cannot reach the MQTT broker at 127.0.0.1:{port}" in line
    assert "trying again" in line
    assert "Traceback" not in rest


@pytest.mark.parametrize("key", ["store__secret", "store__access_key"])
def test_a_server_whose_store_refuses_its_keys(key: str, place: Place, tmp_path: Path) -> None:
    path = place.server_file(tmp_path, **{key: "not-the-right-one"})
    told = rengo("server", "--config", path)
    assert place.store.settings.endpoint in told.line
    assert "store.access_key and store.secret" in told.line
    assert "not-the-right-one" not in told.err
    assert told.code == UNREACHABLE


@pytest.mark.parametrize("bucket", ["", "A_B", "x", "a/b"])
def test_a_bucket_that_is_none(bucket: str, place: Place, tmp_path: Path) -> None:
    told = rengo("server", "--config", place.server_file(tmp_path, store__bucket=bucket))
    assert "bucket" in told.line.lower()
    assert told.code == USAGE


def test_a_server_with_a_wrong_password(place: Place, tmp_path: Path) -> None:
    path = place.server_file(tmp_path)
    write_identity(tmp_path / "server.json", wrong(place.server))
    told = rengo("server", "--config", path)
    assert "refused user 'server'" in told.line
    assert told.code == UNREACHABLE
    assert told.seconds < 30


def test_an_operator_with_a_wrong_password(place: Place, home: Path) -> None:
    write_identity(home / "identities" / "operator.json", wrong(place.operator))
    told = rengo("runs", "ls", home=home)
    assert "refused user 'operator'" in told.line
    assert told.code == UNREACHABLE
    assert told.seconds < 30


@pytest.mark.parametrize("role", ["client", "iot"])
def test_an_agent_with_a_wrong_password(role: str, place: Place, tmp_path: Path) -> None:
    write_identity(tmp_path / "d.json", wrong(place.device))
    told = rengo(role, "--identity", tmp_path / "d.json", "--data-dir", tmp_path / "data")
    assert "refused user 'd-1'" in told.line
    assert told.code == UNREACHABLE
    assert told.seconds < 30


def test_a_server_whose_journal_is_of_another_version(place: Place, tmp_path: Path) -> None:
    path = place.server_file(tmp_path)
    journal = tmp_path / "data" / "journal.sqlite"
    journal.parent.mkdir()
    Journal(f"sqlite:///{journal}").close()
    db = sqlite3.connect(journal)
    with db:
        db.execute("UPDATE rengo_meta SET value = 9 WHERE name = 'schema_version'")
    db.close()
    told = rengo("server", "--config", path)
    assert str(journal) in told.line
    assert "another version of Rengo (schema 9" in told.line
    assert told.code == USAGE


def test_a_server_whose_journal_is_damaged(place: Place, tmp_path: Path) -> None:
    path = place.server_file(tmp_path)
    journal = tmp_path / "data" / "journal.sqlite"
    journal.parent.mkdir()
    journal.write_bytes(b"no database, but long enough to be taken for one " * 20)
    told = rengo("server", "--config", path)
    assert str(journal) in told.line
    assert "not a database" in told.line
    assert told.code == USAGE


def test_a_server_whose_disk_is_full(place: Place, tmp_path: Path) -> None:
    told = rengo("server", "--config", place.server_file(tmp_path), before=no_room)
    assert str(tmp_path / "data" / "journal.sqlite") in told.line
    assert "is the disk full?" in told.line
    assert told.code == FAILED


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [
        ("nonsense", "journal URL is not usable", USAGE),
        ("nosuch://h/d", "journal URL is not usable", USAGE),
        ("postgresql://rengo:hidden@127.0.0.1:1/x", "127.0.0.1:1/x: connection", UNREACHABLE),
    ],
)
def test_a_server_whose_journal_is_elsewhere(
    url: str, said: str, code: int, place: Place, tmp_path: Path
) -> None:
    told = rengo("server", "--config", place.server_file(tmp_path, journal=url))
    assert said in told.line
    assert "hidden" not in told.err
    assert told.code == code


def test_a_second_server_on_the_same_folder(place: Place, tmp_path: Path) -> None:
    path = place.server_file(tmp_path)
    argv = [sys.executable, "-m", "rengo", "server", "--config", str(path)]
    log = tmp_path / "first.log"
    with log.open("wb") as out, subprocess.Popen(argv, stderr=out, env=surroundings(None)) as first:
        try:
            journal = tmp_path / "data" / "journal.sqlite"
            deadline = time.monotonic() + 30
            while not journal.exists():
                assert first.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            told = rengo("server", "--config", path)
        finally:
            first.terminate()
            # until it serves, the signal ends it as any process
            assert first.wait(30) in {0, -signal.SIGTERM}, log.read_text()
    assert told.line == (
        f"another `rengo server` uses {tmp_path / 'data'}; stop it, or set another data_dir"
    )
    assert told.code == USAGE


def test_a_site_whose_server_cannot_start_says_why(home: Path) -> None:
    """The server is a process of the site: what it says is what the user must read."""
    journal = home / "server" / "journal.sqlite"
    journal.parent.mkdir(parents=True)
    journal.write_bytes(b"no database, but long enough to be taken for one " * 20)
    told = rengo("up", "--data-dir", home)
    assert str(journal) in told.line
    assert "not a database" in told.line
    assert told.code == USAGE
    assert told.seconds < 50


def test_a_site_whose_store_keys_are_damaged(home: Path) -> None:
    keys = home / "store" / "keys.json"
    keys.parent.mkdir(parents=True)
    keys.write_text("{")
    told = rengo("up", "--data-dir", home)
    assert told.line == f"{keys} does not hold the store's keys"
    assert told.code == USAGE


def test_a_site_that_is_up_already(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rengo", "up", "--data-dir", str(home)],
        stdout=subprocess.PIPE,
        text=True,
        env=surroundings(None),
    ) as first:
        assert first.stdout is not None
        try:
            assert any("is up" in line for line in first.stdout)
            told = rengo("up", "--data-dir", home)
            operations(home)
        finally:
            first.terminate()
            first.stdout.read()
    assert "another `rengo up` runs the site" in told.line
    assert told.code == USAGE


def operations(home: Path) -> None:
    """What a live server answers to bad requests of the command line."""
    for arguments, said, code in (
        (["runs", "show", "nosuch"], "no run 'nosuch'; `rengo runs ls` lists them", USAGE),
        (["runs", "stop", "nosuch"], "no run 'nosuch'", USAGE),
        (["runs", "show", "No Such"], "'run_id': String should match pattern", USAGE),
        (["devices", "show", "nosuch"], "no device 'nosuch'; `rengo devices ls`", USAGE),
        (["run", "nosuch"], "no task 'nosuch'; there are: digits", USAGE),
        (["run", "digits", "--rounds", "0"], "'rounds': ", USAGE),
        (
            ["run", "digits", "--set", "algorithm.name=x"],
            "no algorithm 'x' (`rengo algorithms`",
            USAGE,
        ),
        (["run", "digits", "--set", "algorithm.mu=x"], "has no setting 'mu'", USAGE),
        (["run", "digits", "--set", "x=2020-01-01"], "unknown key 'x'", USAGE),
        (["run", "digits", "--set", "seed=99999999999999999999999"], "'seed'", USAGE),
        (["run", "digits", "--set", "seed=x"], "'seed'", USAGE),
        (["run", "digits", "--set", "training.epochs=1"], "training setting epochs: ", USAGE),
        (["run", "digits", "--config", "none.toml"], "none.toml does not exist", USAGE),
    ):
        told = rengo(*arguments, home=home)
        assert said in told.line, arguments
        assert told.code == code, (arguments, told)
    told = rengo("runs", "ls", "--json", home / "none" / "file.json", home=home)
    assert "none/file.json" in told.line
    assert told.code == USAGE
    told = rengo("runs", "ls", "--json", "/dev/full", home=home)
    assert "No space left" in told.line
    assert told.code == FAILED
