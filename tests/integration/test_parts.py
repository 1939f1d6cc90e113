"""A site as separate processes: prepared once, then each part is kept by itself."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from rengo.site.folder import SiteFolder
from runtime.processes.child import Child
from storage.store.servers.base import Keys
from tests.integration.broker_fixtures import eventually
from tests.integration.commands import rengo, surroundings
from tests.integration.test_enrolment import devices, enroll, invite, terminal
from tests.support import require

# the name of both is one that this machine knows
APART = (
    *("--broker", "mosquitto", "--host", "0.0.0.0", "--advertise", "127.0.0.1"),
    *("--broker-at", "localhost", "--store-at", "localhost"),
)


def prepare(home: Path, *arguments: object) -> dict[str, list[str]]:
    """Return the command line of each part, by its name."""
    told = rengo("up", "--prepare", *arguments, home=home)
    assert told.code == 0, told.err
    lines = [line.split()[-3:] for line in told.out.splitlines() if line.startswith("  ")]
    return {words[0]: [sys.executable, "-m", "rengo", *words] for words in lines}


def content(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


@contextmanager
def running(home: Path, commands: Mapping[str, list[str]]) -> Iterator[dict[str, Child]]:
    parts = {
        name: Child(name, argv, home.parent / f"{name}.log", environment=surroundings(home))
        for name, argv in commands.items()
    }
    with ExitStack() as stack:
        for part in parts.values():
            stack.callback(part.stop)
            part.start()
        yield parts


def serves(home: Path) -> None:
    eventually(lambda: rengo("devices", "ls", home=home).code == 0, 60.0)


def family(part: Child) -> list[psutil.Process]:
    return psutil.Process(part.pid).children(recursive=True)


def kill_as_a_container_dies(part: Child) -> None:
    """End the process and what it started; whatever watches it starts it again."""
    others = family(part)
    part.kill()
    for each in others:
        each.kill()
    psutil.wait_procs(others, timeout=10)
    part.start()


def trains(home: Path, output: Path) -> None:
    told = rengo(
        *("run", "digits", "--rounds", 1, "--set", "cohort.size=1", "--follow"),
        *("--output", output),
        home=home,
    )
    assert told.code == 0, told.err


def test_a_site_of_separate_processes_outlives_the_end_of_each(tmp_path: Path) -> None:
    require("mosquitto")
    home, attic = tmp_path / "site", tmp_path / "attic"
    commands = prepare(home, *APART)
    assert list(commands) == ["broker", "store", "server"]
    with running(home, commands) as parts:
        serves(home)
        words = invite(home)["command"].split()[1:]
        with terminal(attic, *words, "--name", "attic", "--engine", "numpy") as agent:
            agent.until("Enrolled as attic")
            # the broker last: a server that ran before it changes its users; and once, since
            # whoever loses a connection often takes long to connect again
            for name in ("store", "server", "broker"):
                kill_as_a_container_dies(parts[name])
                serves(home)
            told = enroll(tmp_path / "cellar", invite(home), "--only", "--name", "cellar")
            assert told.code == 0, told.err
            (process,) = family(parts["broker"])
            process.kill()
            eventually(lambda: [each.pid for each in family(parts["broker"])] != [process.pid])
            serves(home)
            trains(home, tmp_path / "out")
            assert rengo("devices", "revoke", "attic", home=home).code == 0
            agent.until("refused user 'attic'")
        assert {name: each["status"] for name, each in devices(home).items()} == {
            "attic": "revoked",
            "cellar": "enrolled",
        }
        before = content(home / "identities") | content(home / "authority")
        assert prepare(home, *APART) == commands
        assert content(home / "identities") | content(home / "authority") == before
        serves(home)
    assert all(part.returncode == 0 for part in parts.values()), [
        part.last_line() for part in parts.values()
    ]


def test_no_secret_is_on_a_command_line_or_open_to_others(tmp_path: Path) -> None:
    home = tmp_path / "site"
    with running(home, prepare(home)) as parts:
        serves(home)
        processes = [each for part in parts.values() for each in family(part)]
        processes += [psutil.Process(part.pid) for part in parts.values()]
        said = " ".join(word for each in processes for word in each.cmdline())
    keys = Keys.model_validate_json((home / "store" / "keys.json").read_bytes())
    secrets = [each.password.get_secret_value() for each in SiteFolder(home).all_identities()]
    secrets.append(keys.secret.get_secret_value())
    assert len(secrets) == 3
    for secret in secrets:
        assert secret not in said
        holding = [path for path, held in content(home).items() if secret.encode() in held]
        assert holding
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holding), holding


def test_a_broker_that_is_kept_already_is_not_started_twice(tmp_path: Path) -> None:
    home = tmp_path / "site"
    commands = prepare(home)
    with running(home, {"broker": commands["broker"]}) as parts:
        eventually(lambda: bool(family(parts["broker"])))
        second = rengo(*commands["broker"][-3:], home=home)
        assert second.code == 2
        assert second.line.startswith("another MQTT broker uses ")
        assert parts["broker"].running
