"""An agent's settings without a word on the command line, and a check that loads what it loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fl_client.settings import AgentSettings
from rengo.cli.main import main
from rengo.cli.site import roles
from rengo.device.config_file import SYSTEM_FILE
from runtime.security.identity import new_identity, write_identity
from runtime.security.signing import SecretKey

_TASK = """\
from rengo import Linear, Task

class Mine(Task):
    def model(self):
        return [Linear(2, 2)]
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user whose machine is device pi-0 of a site."""
    assert not SYSTEM_FILE.exists(), "this machine is a device itself"
    folder = tmp_path / "home"
    monkeypatch.setenv("RENGO_HOME", str(folder))
    server = SecretKey.generate().public
    made = new_identity("device", "d", "pi-0", "127.0.0.1", 1883, server_key=server)
    write_identity(folder / "identities" / "pi-0.json", made)
    return folder


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[AgentSettings]:
    """What the agents are told that would have been started."""
    told: list[AgentSettings] = []

    class Agent:
        def run_forever(self) -> None: ...
        def stop(self) -> None: ...

    def build(given: AgentSettings, *_: Any) -> Agent:
        told.append(given)
        return Agent()

    monkeypatch.setattr("fl_client.agent.build.build_agent", build)
    monkeypatch.setattr("iot.runner.make_agent", build)
    monkeypatch.setattr("iot.policy.machine_policy", lambda *_: None)
    monkeypatch.setattr(roles, "status_server", lambda: None)
    monkeypatch.setattr(roles, "serve", lambda *_: None)
    return told


@pytest.mark.parametrize("command", ["client", "iot"])
def test_the_users_own_file_is_read_and_needs_neither_identity_nor_folder(
    home: Path, settings: list[AgentSettings], command: str
) -> None:
    (home / "agent.toml").write_text("keep_warm_s = 7.0\n")
    assert main([command]) == 0
    (told,) = settings
    assert told.keep_warm_s == 7.0
    assert told.identity == home / "identities" / "pi-0.json"
    assert told.data_dir == home / "devices" / "pi-0"


def test_what_the_file_says_holds(home: Path, settings: list[AgentSettings]) -> None:
    (home / "agent.toml").write_text('data_dir = "/elsewhere"\nindex = 2\ncount = 5\n')
    assert main(["client"]) == 0
    (told,) = settings
    assert (told.data_dir, told.index, told.count) == (Path("/elsewhere"), 2, 5)


def test_an_agent_that_is_told_its_identity_reads_no_file_of_the_users(
    home: Path, settings: list[AgentSettings]
) -> None:
    (home / "agent.toml").write_text("keep_warm_s = 7.0\n")
    assert main(["client", "--identity", str(home / "identities" / "pi-0.json")]) == 0
    (told,) = settings
    assert told.keep_warm_s != 7.0
    assert told.data_dir == home / "devices" / "pi-0"


def test_paths_are_absolute_from_the_start(
    home: Path, settings: list[AgentSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert main(["client", "--data-dir", "d", "--identity", "identities/pi-0.json"]) == 0
    (told,) = settings
    assert (told.data_dir, told.identity) == (home / "d", home / "identities" / "pi-0.json")


def _checked(text: str, home: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    (home / "agent.toml").write_text(text)
    code = main(["agent", "check-config", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is (code == 0)
    problems: list[dict[str, str]] = found["problems"]
    return problems


def test_a_file_with_which_the_agent_starts_is_well(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(_TASK)
    assert _checked(f'tasks = ["digits", "{tmp_path}/mine.py:Mine"]\n', home, capsys) == []


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('tasks = ["nothing"]', "tasks", "no task 'nothing'"),
        ('tasks = ["mine.py:Mine"]', "tasks", "there is no file"),
        ('tasks = ["{tmp}/wrong.py:Mine"]', "tasks", "No module named 'nowhere'"),
        ('identity = "/nowhere.json"', "identity", "/nowhere.json"),
        ('identity = "{home}/identities/operator.json"', "identity", "not of a device"),
        ('accelerators = ["cuda:77"]', "engine", "cuda:77"),
        ('[data.pump.source]\nkind = "csv"\npath = "x"\nfeatures = ["a"]', "data", "[data.pump]"),
        (
            '[data.digits.source]\nkind = "mqtt"\nhost = "h"\nusername = "u"\nclient_id = "c"\n'
            'password_file = "/nowhere"\ntopics = ["t"]\nfeatures = ["a"]',
            "data",
            "/nowhere cannot be read",
        ),
    ],
)
def test_what_the_agent_would_refuse_is_told(
    *,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    key: str,
    said: str,
) -> None:
    (tmp_path / "wrong.py").write_text(f"import nowhere\n{_TASK}")
    server = SecretKey.generate().public
    made = new_identity("operator", "d", "operator", "127.0.0.1", 1883, server_key=server)
    write_identity(home / "identities" / "operator.json", made)
    text = text.replace("{tmp}", str(tmp_path)).replace("{home}", str(home))
    (problem,) = _checked(text, home, capsys)
    assert problem["key"] == key
    assert said in problem["what"]
    assert problem["mend"]
