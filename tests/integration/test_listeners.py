"""Every port on which a child of a site listens, tried without credentials."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import urllib3

from broker.brokers.managed_users import wait_until
from broker.brokers.mosquitto import MosquittoBroker
from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Grants
from fl_server.persistence.journal import Journal
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.store.servers.own_certificate import make_certificate
from tests.integration.broker_fixtures import connect_packet
from tests.integration.postgres import running_cluster
from tests.integration.store_fixtures import bucket_of, running_store
from tests.support import require

_LONG_S = 20.0

# what a client of gRPC begins with, and the type of the frame that answers it
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
NOBODIES = [
    *(("", None), ("", ""), ("someone", None), ("someone", ""), ("someone", "wrong")),
    *(("admin", "admin"), ("guest", "guest"), ("rengo.sessions", "")),
]
OPEN = stat.S_IRWXG | stat.S_IRWXO
WANTS_TLS = b"Client sent an HTTP request to an HTTPS server."
PATHS = (
    "/",
    "/metrics",
    "/rengo",
    "/rengo/secret",
    "/rengo?list-type=2",
    "/debug/pprof/",
    "/debug/vars",
)


def listeners(pid: int) -> dict[int, str]:
    """Return the ports of a process and its children, each with its address."""
    parent = psutil.Process(pid)
    found = {}
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # a child that has ended meanwhile
            for each in process.net_connections(kind="inet"):
                if each.status in {psutil.CONN_LISTEN, psutil.CONN_NONE} and each.laddr:
                    found[each.laddr.port] = each.laddr.ip
    return found


def answers(port: int, path: str) -> tuple[int, bytes]:
    with urllib3.PoolManager(retries=False, timeout=_LONG_S) as pool:
        found = pool.request("GET", f"http://127.0.0.1:{port}{path}")
        return found.status, found.data


def test_juicefs_takes_nothing_without_keys(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", "juicefs") as server:
        store = bucket_of(server)
        store.put("secret", b"the secret")
        port = int(store.settings.endpoint.rpartition(":")[2])
        assert listeners(server.pid) == {port: "127.0.0.1"}
        for path in PATHS:
            status, data = answers(port, path)
            assert (status, b"the secret" in data) == (403, False), path
        with urllib3.PoolManager(retries=False, timeout=_LONG_S) as pool:
            for method in ("PUT", "POST", "DELETE"):
                url = f"http://127.0.0.1:{port}/rengo/secret"
                assert pool.request(method, url).status in {400, 403}
        with store.open("secret") as stream:
            assert stream.read(99) == b"the secret"


def admits(port: int, level: int, name: str = "", password: str | None = None) -> bool:
    """Whether an MQTT broker accepts who says this; it refuses by a code or by hanging up."""
    with socket.create_connection(("127.0.0.1", port), _LONG_S) as connection:
        connection.sendall(connect_packet(level, name, password))
        try:
            answer = connection.recv(4)
        except ConnectionResetError:
            return False
    return len(answer) == 4 and answer[3] == 0


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_a_broker_takes_nobody_without_a_password(kind: str, tmp_path: Path) -> None:
    if kind == "mosquitto":
        require("mosquitto")
    broker = {"nats": EmbeddedBroker, "mosquitto": MosquittoBroker}[kind](tmp_path / "broker")
    broker.start([BrokerUser("someone", "passwordpw", Grants(("a/#",), ("a/#",)))])
    try:
        found = listeners(broker.pid)
        assert set(found.values()) == {"127.0.0.1"}
        port = broker.endpoint.port
        others = set(found) - {port}
        assert len(others) == (1 if kind == "nats" else 0), "NATS's own protocol"
        assert admits(port, 4, "someone", "passwordpw"), "whom it knows"
        for level in (3, 4, 5):
            for name, password in NOBODIES:
                assert not admits(port, level, name, password), (level, name, password)
        assert b"HTTP" not in said_by(port, b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
        for own in others:
            for line in ("CONNECT {}", 'CONNECT {"user":"someone","pass":"passwordpw"}'):
                said = said_by(own, f"{line}\r\nPUB a.b 1\r\nx\r\nPING\r\n".encode())
                assert b"-ERR" in said
                assert b"PONG" not in said
    finally:
        broker.stop()


def said_by(port: int, data: bytes) -> bytes:
    """Return all that a server answers before it closes the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), _LONG_S) as connection:
        connection.sendall(data)
        try:
            while more := connection.recv(4096):
                found += more
        except ConnectionResetError:
            return found
    return found


def test_postgresql_takes_nobody_without_a_password() -> None:
    with running_cluster() as cluster:
        Journal(cluster.url).close()
        pid = int((cluster.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        assert listeners(pid) == {cluster.port: "127.0.0.1"}
        for place in ("127.0.0.1", str(cluster.folder)):
            for name in ("rengo", "postgres", "nobody", ""):
                with pytest.raises(psycopg.OperationalError):
                    psycopg.connect(host=place, port=cluster.port, user=name, dbname="postgres")


def test_a_site_listens_nowhere_but_in_its_broker_and_its_store(tmp_path: Path) -> None:
    ports: dict[str, set[int]] = {}
    modes: dict[Path, int] = {}

    def seen_training() -> bool:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                name = " ".join(process.cmdline())
                if "tests.prepared" in name:
                    continue  # of another test
                ports.setdefault(name, set()).update(listeners(process.pid))
                modes.update({path: path.stat().st_mode for path in sockets(process.pid)})
        return any("fl_client.training" in name for name in ports)

    with Site(tmp_path / "site") as site:
        site.start_devices([DeviceSpec("a")], "digits")
        with site.connect() as client:
            wait_for_devices(client, ["a"], _LONG_S)
            run_id = submit(client, "digits", {"rounds": 2, "cohort": {"size": 1}})
            assert wait_until(_LONG_S, seen_training)
            assert follow(client, run_id).report.rounds_completed == 2
            seen_training()
        listening = {name.split()[0]: len(found) for name, found in ports.items() if found}
        assert {Path(name).name: count for name, count in listening.items()} == {
            "nats-server": 2,
            "juicefs": 1,
        }
    assert modes, "an agent answers its owner"
    assert {path: oct(mode) for path, mode in modes.items() if mode & OPEN} == {}


def takes_commands(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether a port speaks HTTP/2, as those of gRPC do and Go's with TLS, with who comes so."""
    answer = b""
    try:
        raw = socket.create_connection(("127.0.0.1", port), _LONG_S)
        with raw if context is None else context.wrap_socket(raw) as connection:
            connection.sendall(PREFACE)
            while len(answer) < 9 and (data := connection.recv(4096)):
                answer += data
    except (ssl.SSLError, ConnectionError):
        return False
    return len(answer) >= 9 and answer[3] == SETTINGS


def showing(certificate: Path | None) -> ssl.SSLContext:
    """Return who trusts any server and shows this certificate, with its key beside it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def answers_without_tls(port: int) -> bool:
    """Whether a port gives a client of plain HTTP more than that it wants TLS."""
    with urllib3.PoolManager(retries=False, timeout=_LONG_S) as pool:
        for path in (*PATHS, "/dir/assign", "/buckets/rengo/secret"):
            for method in ("GET", "PUT", "DELETE"):
                try:
                    told = pool.request(method, f"http://127.0.0.1:{port}{path}")
                except urllib3.exceptions.ProtocolError:
                    continue
                if (told.status, told.data.strip()) != (400, WANTS_TLS):
                    return True
    return False


def shell(pid: int, elsewhere: Path, command: str) -> str:
    """Return what SeaweedFS's own shell says to a command of somebody without the store's files."""
    server = psutil.Process(pid)
    lines = (Path(server.cwd()) / "weed.options").read_text().splitlines()
    options = dict(line.split("=", 1) for line in lines)
    elsewhere.mkdir()
    places = (
        f"-{role}=127.0.0.1:{options[f'{role}.port']}.{options[f'{role}.port.grpc']}"
        for role in ("master", "filer")
    )
    done = subprocess.run(
        # it would ask for ever
        ["timeout", "5", server.exe(), "shell", *places],
        input=f"{command}\nexit\n".encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=elsewhere,
        env={"HOME": str(elsewhere), "PATH": os.environ["PATH"]},
        check=False,
    )
    return done.stdout.decode("utf-8", "replace")


def sockets(pid: int) -> Iterator[Path]:
    """Yield the sockets in the file system at which a process listens."""
    process = psutil.Process(pid)
    for each in process.net_connections(kind="unix"):
        # juicefs sends to the system's log from a socket of datagrams, and reads none from it
        if each.laddr and each.type == socket.SOCK_STREAM:
            yield Path(process.cwd()) / str(each.laddr)


def test_seaweedfs_takes_nothing_without_its_certificate_or_its_keys(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", "seaweedfs") as server:
        store = bucket_of(server)
        store.put("secret", b"the secret")
        own = int(store.settings.endpoint.rpartition(":")[2])
        # S3, master, volume, filer, admin, and gRPC of each; the last begin after S3 answers
        assert wait_until(_LONG_S, lambda: len(listeners(server.pid)) == 10)
        found = listeners(server.pid)
        assert set(found.values()) == {"127.0.0.1"}
        for path in PATHS:
            status, data = answers(own, path)
            assert (status, b"the secret" in data) == (403, False), path
        stranger = tmp_path / "stranger.crt"
        make_certificate(stranger, stranger.with_suffix(".key"), "127.0.0.1")
        for port in set(found) - {own}:
            assert takes_commands(port, showing(tmp_path / "data" / "inner.crt")), "its own part"
            for context in (None, showing(None), showing(stranger)):
                assert not takes_commands(port, context), port
            assert not answers_without_tls(port), port
        assert "secret" not in shell(server.pid, tmp_path / "a", "fs.ls /buckets/rengo")
        shell(server.pid, tmp_path / "b", "fs.rm -rf /buckets/rengo")
        with store.open("secret") as stream:
            assert stream.read(99) == b"the secret"
        own_sockets = set(sockets(server.pid))
        assert len(own_sockets) == 7, "gRPC of each part, S3 and the filer"
        assert [path for path in own_sockets if path.stat().st_mode & OPEN] == []
