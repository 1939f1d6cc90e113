"""Every port on which a child of a site listens, tried without credentials."""

from __future__ import annotations

import pwd
import socket
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest
import urllib3

from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Grants
from runtime.errors import ConfigError
from runtime.processes.accounts import other_people
from storage.store import embedded
from storage.store.embedded import EmbeddedStore
from tests.integration.store_fixtures import bucket_of, running_store

_LONG_S = 20.0
PATHS = ("/", "/rengo", "/rengo/secret", "/rengo?list-type=2", "/debug/pprof/", "/debug/vars")


def listeners(pid: int) -> dict[int, str]:
    """Return the ports of a process and its children, each with its address."""
    parent = psutil.Process(pid)
    return {
        each.laddr.port: each.laddr.ip
        for process in (parent, *parent.children(recursive=True))
        for each in process.net_connections(kind="inet")
        if each.status in {psutil.CONN_LISTEN, psutil.CONN_NONE} and each.laddr
    }


def answers(port: int, path: str) -> tuple[int, bytes]:
    with urllib3.PoolManager(retries=False, timeout=_LONG_S) as pool:
        found = pool.request("GET", f"http://127.0.0.1:{port}{path}")
        return found.status, found.data


def test_juicefs_gives_nothing_but_figures_without_keys(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", "juicefs") as server:
        store = bucket_of(server)
        store.put("secret", b"the secret")
        own = int(store.settings.endpoint.rpartition(":")[2])
        found = listeners(server.pid)
        assert set(found.values()) == {"127.0.0.1"}
        assert len(found) == 2, "S3 and its figures"
        for port in found:
            for path in PATHS:
                status, data = answers(port, path)
                assert status in ({403} if port == own else {404}), (port, path)
                assert b"the secret" not in data
            with urllib3.PoolManager(retries=False, timeout=_LONG_S) as pool:
                for method in ("PUT", "POST", "DELETE"):
                    url = f"http://127.0.0.1:{port}/rengo/secret"
                    assert pool.request(method, url).status in {400, 403, 404, 405}
        (figures,) = set(found) - {own}
        status, data = answers(figures, "/metrics")
        assert status == 200
        for secret in (b"secret", store.settings.access_key.encode() + b"/"):
            assert secret not in data
        with store.open("secret") as stream:
            assert stream.read(99) == b"the secret"


def test_nats_takes_nobody_without_a_password(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.start([BrokerUser("someone", "passwordpw", Grants(("a/#",), ("a/#",)))])
    try:
        found = listeners(broker.pid)
        assert set(found.values()) == {"127.0.0.1"}
        assert len(found) == 2, "MQTT and NATS's own protocol"
        (own,) = set(found) - {broker.endpoint[1]}
        for line in ("CONNECT {}", 'CONNECT {"user":"someone","pass":"passwordpw"}'):
            assert "-ERR" in told(own, f"{line}\r\nPUB a.b 1\r\nx\r\nPING\r\n")
        refused = threading.Event()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="anybody")
        client.on_connect = lambda *arguments: arguments[3].is_failure and refused.set()
        client.connect(*broker.endpoint)
        client.loop_start()
        assert refused.wait(_LONG_S)
        client.disconnect()
        client.loop_stop()
    finally:
        broker.stop()


def told(port: int, text: str) -> str:
    """Return all that a server answers before it closes the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), _LONG_S) as connection:
        connection.sendall(text.encode())
        while data := connection.recv(4096):
            found += data
            if b"-ERR" in found:
                break
    return found.decode()


def account(name: str, uid: int, shell: str = "/bin/bash") -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", shell))


def test_a_store_with_open_ports_is_not_started_beside_other_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = [account("root", 0), account("bob", 1001), account("www", 33)]
    accounts += [account("nobody", 65534), account("ftp", 1002, "/usr/sbin/nologin")]
    assert other_people(accounts) == ["bob"]
    monkeypatch.setattr(embedded, "other_people", lambda: ["alice", "bob"])
    monkeypatch.delenv(embedded.SHARED_MACHINE, raising=False)
    store = EmbeddedStore(tmp_path / "data", "seaweedfs")
    with pytest.raises(ConfigError, match="alice, bob may log in too: choose juicefs"):
        store.start()
    assert not (tmp_path / "data").exists()
