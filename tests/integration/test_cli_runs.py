"""``rengo run``, ``runs`` and ``devices`` against a real site with two devices."""

from __future__ import annotations

import json
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from tests.integration.commands import Told, rengo, surroundings

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"
DONE, USAGE, FAILED, INTERRUPTED = 0, 2, 3, 130
DEVICES = ("device-1", "device-2")
MANY = "100000"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site whose two devices have the digits, and nothing else."""
    folder = tmp_path_factory.mktemp("home")
    with Site(folder) as site:
        specs = [
            DeviceSpec(name, engine="numpy", index=index, count=2)
            for index, name in enumerate(DEVICES)
        ]
        site.start_devices(specs, "digits")
        with site.connect() as client:
            wait_for_devices(client, DEVICES, 60.0)
        yield folder


def document(home: Path, *arguments: str) -> dict[str, Any]:
    """Return what a command writes by ``--json -``."""
    told = rengo(*arguments, "--json", "-", home=home)
    assert told.code == DONE, told
    read: dict[str, Any] = json.loads(told.out)
    return read


def submitted(told: Told) -> str:
    found = re.match(r"Run (\S+) is submitted\.", told.out)
    assert found, told
    return found.group(1)


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was followed to its end, as its document tells."""
    output = tmp_path_factory.mktemp("output")
    return document(home, "run", "digits", "--rounds", "2", "--output", str(output))


@pytest.fixture
def long_run(home: Path) -> Iterator[str]:
    """A run that lasts until it is stopped."""
    run_id = submitted(rengo("run", "digits", "--rounds", MANY, home=home))
    yield run_id
    if document(home, "runs", "show", run_id)["status"] in {"running", "paused"}:
        rengo("runs", "stop", run_id, home=home)


def wait_for_round(home: Path, run_id: str, number: int) -> None:
    deadline = time.monotonic() + 60.0
    while document(home, "runs", "show", run_id)["rounds_completed"] < number:
        assert time.monotonic() < deadline


# --- rengo run --------------------------------------------------------------------------------


def test_the_cohort_is_the_devices_that_are_there(finished: dict[str, Any], home: Path) -> None:
    shown = document(home, "runs", "show", finished["run_id"])
    assert shown["cohort_size"] == 2
    assert [row["included"] for row in shown["history"]] == [list(DEVICES)] * 2


def test_a_size_that_the_definition_gives_stays(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("rounds = 1\n[cohort]\nsize = 1\n")
    run_id = submitted(rengo("run", "digits", "--config", file, home=home))
    assert document(home, "runs", "show", run_id)["cohort_size"] == 1


def test_a_followed_run_tells_its_rounds_and_where_the_model_lies(
    home: Path, tmp_path: Path
) -> None:
    told = rengo(
        *("run", "digits", "--rounds", "2", "--set", "seed=5", "--follow"),
        *("--output", tmp_path),
        home=home,
    )
    assert told.code == DONE, told
    lines = told.out.splitlines()
    assert "device-1 joined: cpu, numpy" in lines
    assert [line[:9] for line in lines if line.startswith("round ")] == ["round 1/2", "round 2/2"]
    assert not any(line.startswith("waiting") for line in lines), lines
    (model,) = re.findall(r"^  model  (.*)$", told.out, re.MULTILINE)
    assert Path(model).is_file()
    assert " runs show digits-" in lines[-1]


def test_a_run_whose_devices_are_missing_says_so_and_goes_on_when_interrupted(
    home: Path, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "rengo", "run", f"{EXAMPLE}:MyTask", "--follow"]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=surroundings(home), cwd=tmp_path
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("waiting"):
                break
        assert lines[-1] == "waiting for devices that have task 'my_task': 0 of 1"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30.0)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == INTERRUPTED
    (line,) = rest.splitlines()
    found = re.match(r"Interrupted\. The run goes on: \S+.* runs show (\S+),", line)
    assert found, line
    told = rengo("runs", "show", found.group(1), home=home)
    assert "waiting for 1 device that has task 'my_task'" in told.out
    assert rengo("runs", "stop", found.group(1), home=home).code == DONE


def test_a_submitted_run_without_devices_says_how_to_add_one(home: Path) -> None:
    told = rengo("run", f"{EXAMPLE}:MyTask", home=home)
    run_id = submitted(told)
    assert f"client --task {EXAMPLE}:MyTask" in told.out
    assert f"runs show {run_id}" in told.out
    rengo("runs", "stop", run_id, home=home)


# --- rengo runs -------------------------------------------------------------------------------


def test_runs_are_listed_the_latest_first(finished: dict[str, Any], home: Path) -> None:
    runs = document(home, "runs", "ls")["runs"]
    assert finished["run_id"] in {run["run_id"] for run in runs}
    told = rengo("runs", "ls", home=home)
    lines = told.out.splitlines()
    assert lines[0].split() == ["run", "status", "rounds", "measured", "task", "algorithm"]
    assert [line.split()[0] for line in lines[1:]] == [run["run_id"] for run in runs]
    (row,) = [line.split() for line in lines if line.startswith(finished["run_id"])]
    accuracy = f"{finished['accuracy']:.4f}"
    assert row[1:] == ["completed", "2/2", "accuracy", accuracy, "digits", "fedavg"]


def test_a_run_that_has_ended_is_followed_to_its_end(finished: dict[str, Any], home: Path) -> None:
    run_id = finished["run_id"]
    told = rengo("runs", "follow", run_id, home=home)
    assert told.code == DONE, told
    last = told.out.splitlines()[-1]
    assert last.startswith(f"{run_id}: completed, accuracy {finished['accuracy']:.4f}")
    assert document(home, "runs", "follow", run_id)["run_id"] == run_id


def test_a_run_that_goes_on_is_followed_until_it_is_stopped(home: Path, long_run: str) -> None:
    argv = [sys.executable, "-m", "rengo", "runs", "follow", long_run]
    with subprocess.Popen(
        argv, env=surroundings(home), stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        seen = iter(following.stdout.readline, "")
        assert any(line.startswith("round ") for line in seen)
        rengo("runs", "stop", long_run, home=home)
        rest = following.stdout.read().splitlines()
    assert following.returncode == DONE
    assert rest[-1].startswith(f"{long_run}: stopped, accuracy ")


def test_the_site_is_told_in_a_few_lines(finished: dict[str, Any], home: Path) -> None:
    deadline = time.monotonic() + 30.0
    while document(home, "status")["devices"] != {"ready": 2}:
        assert time.monotonic() < deadline, "devices end the work of a run that was stopped"
    told = rengo("status", home=home)
    assert told.code == DONE, told
    first, devices, *rest = told.out.splitlines()
    assert first.startswith("site main: its server is up")
    assert devices == "  devices  2 ready"
    runs = document(home, "runs", "ls")["runs"]
    last = next(run for run in runs if run["phase"] == "ended")  # an older one is left out
    assert finished["run_id"] in {run["run_id"] for run in runs}
    shown = f"{last['run_id']}  {last['status']}, round {last['rounds_completed']} of "
    assert any(shown in line for line in rest), rest


def test_a_run_is_shown_with_rounds_and_devices(finished: dict[str, Any], home: Path) -> None:
    run_id = finished["run_id"]
    told = rengo("runs", "show", run_id, home=home)
    assert told.code == DONE
    for text in (
        f"run       {run_id}",
        "task      digits, fedavg, seed 0",
        "status    completed",
        "rounds    2 of 2, cohort 2, quorum 2",
        f"sha256    {finished['model_sha256']}",
    ):
        assert text in told.out
    assert re.search(r"^1 +1 +committed +2 of 2 +\d", told.out, re.MULTILINE)
    assert re.search(r"^device-1 +cpu +numpy +2 ", told.out, re.MULTILINE)
    shown = document(home, "runs", "show", run_id)
    assert shown["model_sha256"] == finished["model_sha256"]
    assert [row["outcome"] for row in shown["history"]] == ["committed", "committed"]


def test_a_run_is_paused_resumed_and_stopped(home: Path, long_run: str) -> None:
    wait_for_round(home, long_run, 1)
    told = rengo("runs", "pause", long_run, home=home)
    assert re.match(rf"{long_run}: paused, \d+ rounds committed", told.out), told
    deadline = time.monotonic() + 30.0
    while document(home, "runs", "show", long_run)["phase"] != "gathering":
        assert time.monotonic() < deadline, "the open round ends"
    before = document(home, "runs", "show", long_run)["rounds_completed"]
    assert document(home, "runs", "show", long_run)["rounds_completed"] == before
    assert document(home, "runs", "resume", long_run)["status"] == "running"
    wait_for_round(home, long_run, before + 1)
    assert document(home, "runs", "stop", long_run)["status"] == "stopped"
    assert "status    stopped: stopped by the operator" in (
        rengo("runs", "show", long_run, home=home).out
    )
    told = rengo("runs", "resume", long_run, home=home)
    assert told.code == USAGE
    assert told.line == f"run {long_run} has ended: stopped"


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "stop"])
def test_a_run_that_is_not_there(verb: str, home: Path) -> None:
    told = rengo("runs", verb, "nosuch", home=home)
    assert told.code == USAGE
    assert told.line == "no run 'nosuch'; `rengo runs ls` lists them"


# --- rengo devices ----------------------------------------------------------------------------


def test_devices_are_listed(home: Path) -> None:
    lines = rengo("devices", "ls", home=home).out.splitlines()
    assert lines[0].split() == [
        *("device", "status", "role", "profile", "engine", "group", "tasks")
    ]
    rows = [line.split() for line in lines[1:]]
    assert [row[0] for row in rows] == list(DEVICES)
    assert all(row[2:] == ["trainer", "cpu", "numpy", "-", "digits"] for row in rows)
    devices = document(home, "devices", "ls")["devices"]
    assert [device["id"] for device in devices] == list(DEVICES)


def test_a_device_is_shown(home: Path) -> None:
    shown = document(home, "devices", "show", "device-2")
    assert shown["id"] == "device-2"
    assert shown["info"]["engine"] == "numpy"
    lines = rengo("devices", "show", "device-2", home=home).out.splitlines()
    assert lines[0].split() == ["id", "device-2"]
    assert any(line.split()[:2] == ["engine", "numpy"] for line in lines)


def test_a_device_that_is_not_there(home: Path) -> None:
    told = rengo("devices", "show", "nosuch", home=home)
    assert told.code == USAGE
    assert "no device 'nosuch'" in told.line


# --- a device that refuses an order ---------------------------------------------------------

TELLS = """\
from rengo import Linear, Task

class Tells(Task):
    def model(self):
        return [Linear(2, 2)]

    def data(self, device):
        return rows_of("sensor")

def rows_of(sensor):
    raise RuntimeError(f"the {sensor} is unplugged")
"""


@pytest.fixture
def broken(home: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A further device whose task raises an error, with its agent."""
    name = f"broken-{secrets.token_hex(4)}"
    task = tmp_path / "tells.py"
    task.write_text(TELLS)
    made = document(home, "devices", "invite")
    token = ("--token", made["token"], "--name", name, "--only")
    assert rengo("enroll", made["url"], *token, home=home).code == DONE
    argv = [sys.executable, "-m", "rengo", "client", "--id", name, "--task", f"{task}:Tells"]
    with subprocess.Popen(argv, env=surroundings(home), stderr=subprocess.DEVNULL) as agent:
        yield name, task
        agent.terminate()


def test_a_device_tells_why_it_refused_its_last_order_and_where_the_task_failed(
    home: Path, broken: tuple[str, Path]
) -> None:
    name, task = broken
    assert "declined" not in rengo("devices", "show", "device-1", home=home).out
    run = ("run", f"{task}:Tells", "--set", "cohort.size=1", "--set", "cohort.max_attempts=1")
    assert rengo(*run, "--follow", home=home).code == FAILED
    run_id = document(home, "runs", "ls")["runs"][0]["run_id"]
    told = document(home, "devices", "show", name)["last_decline"]
    reason = f"task tells: data() raised RuntimeError: the sensor is unplugged ({task}:11)"
    assert (told["run_id"], told["round"], told["reason"]) == (run_id, 1, reason)
    assert told["traceback"][0] == "Traceback (most recent call last):"
    assert told["traceback"][-1] == "RuntimeError: the sensor is unplugged"
    assert f'  File "{task}", line 11, in rows_of' in told["traceback"]
    shown = rengo("devices", "show", name, home=home).out
    assert re.search(rf"^  order +round 1 of {run_id}, 20\d\d-", shown, re.MULTILINE)
    assert f"  reason         {reason}\n" in shown
    assert shown.endswith("  | RuntimeError: the sensor is unplugged\n")


# --- a device that is too small ---------------------------------------------------------------


@pytest.fixture
def small(home: Path) -> Iterator[str]:
    """A third device, whose budget no training fits, with its agent."""
    made = document(home, "devices", "invite")
    token = ("--token", made["token"], "--name", "small", "--only")
    assert rengo("enroll", made["url"], *token, home=home).code == DONE
    argv = [sys.executable, "-m", "rengo", "iot", "--id", "small"]
    budget = {"RENGO_AGENT_BUDGET__MEMORY": "8MiB"}
    with subprocess.Popen(argv, env=surroundings(home, budget), stderr=subprocess.DEVNULL) as agent:
        yield "small"
        agent.terminate()


def test_an_order_that_does_not_fit_is_declined_and_the_operator_reads_why(
    home: Path, small: str
) -> None:
    deadline = time.monotonic() + 60.0
    while not document(home, "devices", "show", small).get("health"):
        assert time.monotonic() < deadline
    run = ("run", "digits", "--rounds", "1", "--set", "cohort.size=3", "--set", "cohort.quorum=2")
    assert rengo(*run, "--follow", home=home).code == DONE
    run_id = document(home, "runs", "ls")["runs"][0]["run_id"]
    (row,) = document(home, "runs", "show", run_id)["history"]
    assert set(row["included"]) == set(DEVICES)
    told = rengo("runs", "show", run_id, home=home).out
    assert "small" in told
    assert "of memory at least, the budget is 8.0 MiB" in told
    shown = rengo("devices", "show", small, home=home).out
    assert re.search(r"^  training +allowed$", shown, re.MULTILINE)
