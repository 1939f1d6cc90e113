"""What is wrong with an agent's file is told by line and remedy; its service keeps promises."""

from __future__ import annotations

import doctest
import errno
import json
import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from iot.settings import DeviceSettings
from rengo.cli.main import main
from rengo.device import config_file as agent_file
from rengo.device.config_file import check
from rengo.device.install import USER, Installation, InstallRequest, plan
from rengo.device.systemd import UNIT, WATCHDOG_S, ServiceUnit, device_groups
from runtime.errors import ConfigError
from runtime.security.identity import new_identity, write_identity
from runtime.security.signing import SecretKey

PROGRAM = Path(shutil.which("true") or "/bin/true").resolve()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RENGO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


GOOD = 'identity = "/i.json"\ndata_dir = "/d"\n'


@pytest.mark.parametrize(
    ("text", "place", "key", "what", "mend"),
    [
        (GOOD + 'engin = "numpy"\n', "line 3", "engin", "unknown key", "did you mean engine?"),
        (GOOD + 'engine = "jax"\n', "line 3", "engine", "input should be", "the default is 'auto'"),
        ('data_dir = "/d"\n', "", "identity", "is missing", "RENGO_AGENT_IDENTITY"),
        (
            GOOD + "[health]\nlook_s = -1\n",
            "line 4",
            "health.look_s",
            "greater than 0",
            "change it",
        ),
        (GOOD + "[health]\nlooks = 1\n", "line 4", "health.looks", "unknown key", "look_s"),
        (
            GOOD + 'accelerators = "cuda:0,mps"\n',
            "line 3",
            "accelerators",
            "accelerators of one kind",
            "the default is ['auto']",
        ),
        (GOOD + "engine = \n", "line 3", "", "not TOML", "double quotes"),
    ],
)
def test_a_mistake_is_told_by_its_line(
    tmp_path: Path, text: str, place: str, key: str, what: str, mend: str
) -> None:
    (problem,) = check(written(tmp_path, text), DeviceSettings).problems
    assert (problem.place, problem.key) == (place, key)
    assert what in problem.what
    assert mend in problem.mend


def test_a_variable_goes_over_the_file_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RENGO_AGENT_HEALTH__LOOK_S", "never")
    monkeypatch.setenv("RENGO_AGENT_ENGIN", "numpy")
    checked = check(written(tmp_path, GOOD), DeviceSettings)
    strange, wrong = checked.problems
    assert strange.place == "RENGO_AGENT_ENGIN"
    assert "RENGO_AGENT_ENGINE" in strange.mend
    assert (wrong.place, wrong.key) == ("RENGO_AGENT_HEALTH__LOOK_S", "health.look_s")


def test_the_command_ends_with_two_and_a_right_file_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written(tmp_path, GOOD + "engin = 1\n"))
    assert main(["agent", "check-config", "--config", path]) == 2
    assert "line 3, engin: unknown key" in capsys.readouterr().out
    assert main(["agent", "check-config", "--config", path, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"][0]["place"] == "line 3"
    server = SecretKey.generate().public
    identity = tmp_path / "pi-0.json"
    write_identity(
        identity, new_identity("device", "d", "pi-0", "127.0.0.1", 1883, server_key=server)
    )
    right = GOOD.replace("/i.json", str(identity))
    assert main(["agent", "check-config", "--config", str(written(tmp_path, right))]) == 0


def test_lines_are_found() -> None:
    assert doctest.testmod(agent_file).failed == 0


# --- the service --------------------------------------------------------------------------------


def unit(command: str, user: str = "root", systemd: int = 0) -> ServiceUnit:
    groups = device_groups(command)
    config, data = Path("/etc/rengo/agent.toml"), Path("/var/lib/rengo/agent")
    return ServiceUnit(command, PROGRAM, config, data, user, systemd=systemd, groups=groups)


@pytest.mark.parametrize("command", ["client", "iot"])
@pytest.mark.parametrize("user", ["root", ""])
def test_systemd_takes_the_unit(tmp_path: Path, command: str, user: str) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / UNIT
    path.write_text(unit(command, user).text())
    scope = "--system" if user else "--user"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [program, scope, "verify", path],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert UNIT not in done.stderr, done.stderr


def test_the_unit_keeps_its_promises() -> None:
    lines = unit("iot").text().splitlines()
    for promise in (
        *("Type=notify", "Restart=always", "StartLimitIntervalSec=0", f"WatchdogSec={WATCHDOG_S}"),
        *("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="),
        *("OOMPolicy=continue", "MemoryMax=75%", "CPUQuota=100%", "ProtectHome=yes"),
    ):
        assert promise in lines
    assert not any(line.startswith("RestartSteps") for line in lines), "older ones warn of it"
    assert "RestartSteps=8" in unit("iot", systemd=254).text().splitlines()


def test_a_path_with_a_space_or_a_percent_is_one_word() -> None:
    text = ServiceUnit("iot", Path("/a b/x"), Path("/c%d"), Path("/e"), "").text()
    assert 'ExecStart="/a b/x" iot --config /c%%d' in text


def test_an_image_gets_the_files_and_nothing_is_started(tmp_path: Path, home: Path) -> None:
    identity = home / "identities" / "pi-0.json"
    server = SecretKey.generate().public
    write_identity(identity, new_identity("device", "d", "pi-0", "h", 1, server_key=server))
    wanted = InstallRequest(
        "iot", None, {"tasks": ["digits"]}, per_user=True, root=tmp_path / "image"
    )
    told: list[str] = []
    installation = plan(wanted, identity)
    installation.carry_out(told.append)
    config = wanted.root / (home / "agent.toml").relative_to("/")
    assert check(config, DeviceSettings).problems == []
    launcher = wanted.root / installation.service.program.relative_to("/")
    assert launcher.stat().st_mode & 0o777 == 0o755
    assert subprocess.run(["sh", "-n", launcher], check=False).returncode == 0
    assert any(line.endswith(UNIT) for line in told)


def test_an_identity_goes_when_the_agent_s_file_names_its_new_place(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is spent: a machine that loses its identity in between is no device any more."""
    identity = home / "identities" / "pi-0.json"
    server = SecretKey.generate().public
    write_identity(identity, new_identity("device", "d", "pi-0", "h", 1, server_key=server))
    wanted = InstallRequest("iot", None, {}, root=tmp_path / "image")
    monkeypatch.setattr("rengo.device.install._HOMES", ())
    installation = plan(wanted, identity)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as disk:
        disk.setattr(Installation, "_write", Mock(side_effect=full))
        with pytest.raises(OSError, match="No space"):
            installation.carry_out([].append)
    assert identity.exists()
    plan(wanted, identity).carry_out([].append)
    assert not identity.exists()
    moved = wanted.root / "var/lib/rengo/identities/pi-0.json"
    assert moved.stat().st_mode & 0o777 == 0o600


def test_a_service_s_own_user_cannot_look_into_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rengo.device.install.this_environment", lambda: Path("/home/pi/venv"))
    with pytest.raises(ConfigError, match="/opt/rengo"):
        plan(InstallRequest("iot", None, {}), None)
    assert USER == "rengo"


def test_a_number_of_thousands_of_digits_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f"index = 1\ncount = {'9' * 5000}\n")
    (problem,) = check(path, DeviceSettings).problems
    assert problem.place == "line 2"
    assert "more digits than any setting takes" in problem.what
