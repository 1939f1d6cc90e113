"""Enrolment as a new user does it: real commands, one home for the site and one for each device."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rengo.cli.main import main
from runtime.security.identity import read_identity
from runtime.security.join_token import JoinToken
from runtime.security.signing import SecretKey
from tests.integration.broker_fixtures import eventually
from tests.integration.commands import Told, rengo, surroundings

PATIENCE_S = 60.0


@dataclass
class Terminal:
    """A command that runs in a terminal of its own."""

    process: subprocess.Popen[str]

    def until(self, pattern: str) -> re.Match[str]:
        """Return the match of the first line that matches."""
        said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said.append(line)
            found = re.search(pattern, line)
            if found is not None:
                return found
        pytest.fail(f"no line matches {pattern!r}: {''.join(said)}")

    def stop(self) -> str:
        """End it as a user does and return the rest of what it said."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=PATIENCE_S)
        return rest


@contextmanager
def terminal(home: Path, *arguments: object, stdin: str | None = None) -> Iterator[Terminal]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rengo", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=surroundings(home),
    )
    assert process.stdin is not None
    process.stdin.write(stdin or "")
    process.stdin.close()
    process.stdin = None
    try:
        yield Terminal(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def site(home: Path, *arguments: object) -> Iterator[Terminal]:
    with terminal(home, "up", "--devices", 0, *arguments) as up:
        up.until("Ctrl-C stops the site")
        yield up


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a site that several tests enrol devices of their own at."""
    folder = tmp_path_factory.mktemp("site")
    with site(folder):
        yield folder


def invite(home: Path, *arguments: object) -> dict[str, Any]:
    told = rengo("devices", "invite", *arguments, "--json", "-", home=home)
    assert told.code == 0, told.err
    made: dict[str, Any] = json.loads(told.out)
    return made


def devices(home: Path) -> dict[str, dict[str, Any]]:
    told = rengo("devices", "ls", "--json", "-", home=home)
    return {each["id"]: each for each in json.loads(told.out)["devices"]}


def audit(home: Path) -> list[tuple[str, str]]:
    told = rengo("audit", "--verify", "--json", "-", home=home)
    assert told.code == 0, told.err
    return [(each["act"], each["subject"]) for each in json.loads(told.out)["entries"]]


def enroll(home: Path, made: dict[str, Any], *arguments: object) -> Told:
    token = () if {"--token-file"} & set(map(str, arguments)) else ("--token", made["token"])
    return rengo("enroll", made["url"], *token, *arguments, home=home)


@pytest.mark.parametrize(
    ("broker", "host", "scheme"),
    [
        pytest.param("nats", "127.0.0.1", "mqtt", marks=pytest.mark.soak),
        ("nats", "0.0.0.0", "mqtts"),
        ("mosquitto", "127.0.0.1", "mqtt"),
        pytest.param("mosquitto", "0.0.0.0", "mqtts", marks=pytest.mark.soak),
    ],
)
def test_from_an_invitation_to_a_trained_model_and_out_again(
    broker: str, host: str, scheme: str, tmp_path: Path
) -> None:
    home, attic, output = tmp_path / "site", tmp_path / "attic", tmp_path / "out"
    with site(home, "--broker", broker, "--host", host):
        made = invite(home, "--group", "lab")
        assert made["url"].startswith(f"{scheme}://")
        assert made["command"] == f"rengo enroll {made['url']} --token {made['token']}"
        words = made["command"].split()[1:]
        with terminal(attic, *words, "--name", "attic", "--engine", "numpy") as agent:
            assert agent.until(r"Enrolled as (\S+)\.")[1] == "attic"
            path = attic / "identities" / "attic.json"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert sorted(each.suffix for each in path.parent.iterdir()) == [".json"]
            told = rengo(
                *("run", "digits", "--rounds", 2, "--set", "cohort.size=1", "--follow"),
                *("--json", "-", "--output", output),
                home=home,
            )
            assert told.code == 0, told.err
            result = json.loads(told.out)
            assert [each["id"] for each in result["devices"]] == ["attic"]
            assert Path(result["model_path"]).is_file()
            # it says so a breath after its last round
            eventually(lambda: devices(home)["attic"]["status"] == "ready", 30)
            shown = devices(home)["attic"]
            assert (shown["group"], shown["token"]) == ("lab", made["token_id"])

            before = read_identity(path).password
            assert rengo("devices", "rotate", "attic", home=home).code == 0
            agent.until("the password was rotated")
            after = read_identity(path)
            assert (after.password != before, after.next_password) == (True, None)
            told = rengo("run", "digits", "--rounds", 1, "--set", "cohort.size=1", home=home)
            assert told.code == 0, told.err

            assert rengo("devices", "revoke", "attic", home=home).code == 0
            agent.until("refused user 'attic'")
            assert devices(home)["attic"]["status"] == "revoked"
        acts = [act for act, _ in audit(home)]
        wanted = ["token made", "device enrolled", "run submitted", "rotation begun"]
        wanted += ["password rotated", "run submitted", "device revoked"]
        left = iter(acts)
        assert all(act in left for act in wanted), acts


def test_an_enrolled_device_is_known_after_the_site_and_it_were_stopped(tmp_path: Path) -> None:
    home, attic = tmp_path / "site", tmp_path / "attic"
    with site(home):
        made = invite(home)
        assert enroll(attic, made, "--only", "--name", "attic").code == 0
    with site(home), terminal(attic, "client", "--engine", "numpy"):
        told = rengo("run", "digits", "--rounds", 1, "--set", "cohort.size=1", home=home)
        assert told.code == 0, told.err


def test_the_token_comes_by_flag_file_or_standard_input(home: Path, tmp_path: Path) -> None:
    before = set(devices(home))
    made = invite(home, "--uses", 3)
    assert enroll(tmp_path / "a", made, "--only", "--name", "a").code == 0
    file = tmp_path / "token"
    file.write_text(f"{made['token']}\n")
    assert enroll(tmp_path / "b", made, "--token-file", file, "--only", "--name", "b").code == 0
    arguments = ("enroll", made["url"], "--only", "--name", "c")
    with terminal(tmp_path / "c", *arguments, stdin=f"{made['token']}\n") as typed:
        typed.until("Enrolled as c")
    assert set(devices(home)) - before == {"a", "b", "c"}
    told = enroll(tmp_path / "d", made, "--only")
    assert (told.code, "the token is used up" in told.line) == (2, True)
    assert not list((tmp_path / "d").rglob("*.*")), "a key that nobody took in"
    # the same words again, as a container has them, are no second enrolment
    again = enroll(tmp_path / "a", made, "--only", "--once")
    assert (again.code, again.out) == (0, "")


def test_on_the_site_s_own_machine_a_device_joins_by_its_name(home: Path, tmp_path: Path) -> None:
    before = set(devices(home))
    url = invite(home)["url"]
    with terminal(home, "iot", "--server", url, "--id", "pi-0") as joined:
        joined.until("this machine is now device pi-0")
    assert set(devices(home)) - before == {"pi-0"}
    with terminal(home, "iot", "--server", url, "--id", "pi-0"):
        one = ("--rounds", 1, "--set", "cohort.size=1", "--follow")
        told = rengo("run", "digits", *one, "--output", tmp_path / "out", home=home)
        assert told.code == 0, told.err


@pytest.mark.parametrize("name", ["Attic", "../attic", "a b", "x" * 65])
def test_a_name_that_no_device_can_have_is_told_before_anything_is_made(
    name: str, tmp_path: Path
) -> None:
    token = JoinToken.generate("home", SecretKey.generate().public).text
    told = rengo(
        *("enroll", "mqtt://127.0.0.1:1", "--token", token, "--name", name, "--only"),
        home=tmp_path / "d",
    )
    assert (told.code, told.line.startswith(f"--name {name!r} is not usable")) == (2, True)
    assert not list((tmp_path / "d").rglob("*.*"))


def test_a_device_that_lost_power_while_it_enrolled_asks_again_as_the_same(
    home: Path, tmp_path: Path
) -> None:
    attic = tmp_path / "attic"
    made = invite(home)
    assert enroll(attic, made, "--only").code == 0
    (path,) = (attic / "identities").glob("device-*.json")
    first = read_identity(path)
    # as if the answer had come and the power had gone before the identity was on disk
    claim = attic / "identities" / f"{made['token_id']}.claim"
    claim.write_text(json.dumps({"key": first.secret_key.text}))
    path.unlink()
    assert enroll(attic, made, "--only").code == 0
    assert read_identity(path) == first
    assert not claim.exists()


def test_a_qr_code_and_a_line_to_type(home: Path) -> None:
    told = rengo("devices", "invite", "--qr", "--expires", "30m", home=home)
    assert told.code == 0, told.err
    assert re.search(r"^  rengo enroll mqtt://127\.0\.0\.1:\d+ --token rengo_\S+$", told.out, re.M)
    assert "good for 30m" in told.out
    assert "█" in told.out


def test_a_name_that_is_another_identity_s_on_this_machine_is_not_overwritten(
    home: Path, tmp_path: Path
) -> None:
    attic = tmp_path / "attic"
    assert enroll(attic, invite(home), "--only", "--name", "attic").code == 0
    path = attic / "identities" / "attic.json"
    before = path.read_bytes()
    told = enroll(attic, invite(home), "--only", "--name", "attic")
    assert (told.code, "is another identity of this machine" in told.line) == (2, True)
    assert path.read_bytes() == before


def test_a_clock_that_is_off_by_years_is_told_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, attic = tmp_path / "site", tmp_path / "attic"
    with site(home, "--host", "0.0.0.0"):
        made = invite(home)
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() - 20 * 365.25 * 86400)
        monkeypatch.setenv("RENGO_HOME", str(attic))
        assert main(["enroll", made["url"], "--token", made["token"], "--only"]) == 0
        monkeypatch.undo()
        said = capsys.readouterr().out
        assert "This machine's clock is 7305.0 days behind the server's." in said
        assert ("clock of a device is off", "") in audit(home)
