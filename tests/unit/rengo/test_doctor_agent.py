"""The doctor of an agent says what keeps it from its work, without an agent to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rengo.cli.main import main
from rengo.device.config_file import Checked, Problem
from rengo.doctor.agent import AgentTarget, _store_clock, diagnose_agent
from rengo.doctor.checks import Check
from runtime.processes.ports import free_port
from runtime.security.identity import new_identity, write_identity
from runtime.security.signing import SecretKey
from tests.unit.rengo.test_doctor import FakeMachine


def found(tmp_path: Path, values: dict[str, Any], *problems: Problem) -> dict[str, Check]:
    target = AgentTarget(Checked("agent.toml", dict(values), {}, list(problems)), tmp_path / "data")
    return {check.name: check for check in diagnose_agent(target, FakeMachine())}


def identity(tmp_path: Path, role: str = "device") -> Path:
    path = tmp_path / "identities" / "pi-0.json"
    server = SecretKey.generate().public
    port = free_port("127.0.0.1")
    made = new_identity(role, "d", "pi-0", "127.0.0.1", port, server_key=server)  # type: ignore[arg-type]
    write_identity(path, made)
    return path


def test_an_identity_that_others_may_read_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = identity(tmp_path)
    path.chmod(0o644)
    check = found(tmp_path, {"identity": str(path)})["identity"]
    assert not check.ok
    assert check.mend == f"chmod 600 {path}"


def test_what_is_missing_is_told_and_what_cannot_be_known_is_not_guessed(tmp_path: Path) -> None:
    checks = found(tmp_path, {})
    assert not checks["identity"].ok
    assert "rengo enroll" in checks["identity"].mend
    assert not checks["agent"].ok
    assert not checks["agent"].required
    assert checks["store"].detail == "not known before the agent's first order"
    assert "broker" not in checks


def test_a_broker_that_is_away_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rengo.doctor.agent._REACH_S", 0.5)
    path = identity(tmp_path)
    check = found(tmp_path, {"identity": str(path)})["broker"]
    assert not check.ok
    assert "127.0.0.1:" in check.detail
    assert "refused" in check.detail.lower()


def test_another_role_s_identity_is_no_device_s(tmp_path: Path) -> None:
    path = identity(tmp_path, "operator")
    assert "is a operator's" in found(tmp_path, {"identity": str(path)})["identity"].detail


def test_a_mistake_in_the_file_and_an_engine_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rengo.doctor.agent.available_engines", lambda: ["numpy"])
    problem = Problem("engin", "line 3", "unknown key", "did you mean engine?")
    checks = found(tmp_path, {"engine": "torch"}, problem)
    assert checks["settings"].detail == "agent.toml: line 3, engin: unknown key"
    assert checks["engine"].mend == "pip install 'rengo[torch]'"


SENSOR = {"kind": "sensor", "features": ["celsius"]}
TOPICS = {
    **{"kind": "mqtt", "features": ["celsius"], "host": "h", "username": "u", "client_id": "c"},
    **{"password_file": "/p", "topics": ["t"]},
}


def with_data(source: dict[str, Any], **bundles: Any) -> dict[str, Any]:
    return {"identity": "/i", "bundles": bundles, "data": {"pump": {"source": source}}}


def test_a_sensor_that_nobody_reads_is_told_with_a_way_out(tmp_path: Path) -> None:
    trusting = {"trust": ["a" * 64], "allow": ["pump"]}
    checks = found(tmp_path, with_data(SENSOR, **trusting))
    assert not checks["data of pump"].ok
    assert not checks["data of pump"].required
    assert "is not read: the task is not installed" in checks["data of pump"].detail
    assert 'kind = "mqtt"' in checks["data of pump"].mend
    checks = found(tmp_path, with_data(TOPICS, **trusting))
    assert checks["data"].ok
    assert checks["data"].detail == "pump (mqtt)"


def test_a_broker_of_sensors_that_cannot_be_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rengo.doctor.agent._REACH_S", 0.5)
    trusting = {"trust": ["a" * 64], "allow": ["pump"]}
    password = tmp_path / "password"
    source = {**TOPICS, "host": "127.0.0.1", "port": free_port(), "password_file": str(password)}
    check = found(tmp_path, with_data(source, **trusting))["data of pump"]
    assert not check.ok
    assert f"{password} cannot be read" in check.detail
    password.write_text("secret")
    password.chmod(0o600)
    check = found(tmp_path, with_data(source, **trusting))["data of pump"]
    assert not check.ok
    assert f"127.0.0.1:{source['port']}: " in check.detail
    assert "refused" in check.detail.lower()


@pytest.mark.parametrize("named", [{}, {"identity": "/nowhere/pi-0.json"}])
def test_a_device_that_runs_is_not_told_to_enrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any]
) -> None:
    running = {"pid": 1, "up_s": 1.0, "device": "pi-0", "domain": "main", "store": ""}
    monkeypatch.setattr("rengo.doctor.agent.ask_status", lambda _: running)
    checks = found(tmp_path, named)
    assert checks["identity"].ok
    assert checks["identity"].detail.startswith("pi-0 of main")
    assert not [each for each in checks.values() if "enroll" in each.mend]


@pytest.mark.parametrize("bundles", [{}, {"trust": ["a" * 64], "allow": ["faces"]}])
def test_data_of_a_task_that_cannot_come_are_told(tmp_path: Path, bundles: dict[str, Any]) -> None:
    check = found(tmp_path, with_data(TOPICS, **bundles))["data"]
    assert not check.ok
    assert check.required
    assert "[data.pump] is of no task of this device (tasks: digits" in check.detail


@pytest.mark.parametrize(("off_s", "ok"), [(0.4, True), (-299.0, True), (301.0, False)])
def test_a_clock_is_held_against_the_store_s(off_s: float, ok: bool) -> None:
    assert _store_clock(off_s).ok is ok


def test_a_device_that_is_none_yet_is_told_how_to_become_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RENGO_HOME", str(tmp_path / "home"))
    url = "mqtts://site.example:8883"
    assert main(["iot", "--server", url, "--id", "pi-0"]) == 2
    assert f"rengo enroll {url} --name pi-0 --token TOKEN" in capsys.readouterr().err
