"""The demo as a real command: what it shows, what it leaves, and how it ends in every way."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rengo import load_state_dict
from rengo.cli.site.demo import _tries
from storage.weights import read_safetensors
from tests.integration.commands import Told, rengo, surroundings, without
from tests.support import SESSION_MARK, describe, wait_for_none_left

KEYS = {
    *("run_id", "task", "rounds_completed", "accuracy", "loss", "model_path", "model_sha256"),
    *("wall_s", "round_s", "bytes_up", "bytes_down", "devices", "headline", "measured"),
    *("spread", "best_version", "best_value", "best_model_path"),
}
DEVICE_KEYS = {
    "id",
    "profile",
    "engine",
    "rounds",
    "peak_rss_bytes",
    "width",
    "bytes_up",
    "bytes_down",
}
SMALL = ("--clients", "2", "--rounds", "2")
LONG = ("--clients", "2", "--rounds", "100000")
PATIENCE_S = 90.0
USAGE, FAILED, INTERRUPTED = 2, 3, 130
CALM = "Interrupted. Everything is stopped, and nothing is left behind."
BROKEN_TASK = """\
from rengo import Linear, Task

class Broken(Task):
    def model(self):
        return [Linear(2, 2)]

    def data(self, device):
        raise RuntimeError("the sensor is unplugged")
"""


@dataclass
class Demo:
    """A demo that runs, with a temporary folder and a mark of its own."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str
    lines: list[str] = field(default_factory=list)

    def until(self, pattern: str) -> None:
        """Return when a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return
        pytest.fail(f"no line matches {pattern!r}: {self.lines}")

    def end(self) -> int:
        """Return the exit code of a process that is about to end, with all its output read."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        self.lines += out.splitlines()
        return self.process.returncode

    def left(self) -> list[str]:
        """Return what outlived it: processes, with the ports they hold, and temporary files."""
        processes = list(describe(wait_for_none_left(self.mark, 1.0)))
        return processes + [str(path) for path in self.folder.iterdir()]


@contextmanager
def demo(tmp_path: Path, *arguments: str) -> Iterator[Demo]:
    """Start the demo; at the end it has to be over."""
    folder, mark = tmp_path / "tmp", uuid.uuid4().hex
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "rengo", "demo", *arguments, "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=surroundings(None, {"TMPDIR": str(folder), SESSION_MARK: mark}),
        cwd=tmp_path,
        process_group=0,
    )
    try:
        yield Demo(process, folder, mark)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def shown(folder: Path) -> Told:
    """One whole demo, small, with everything that it can write."""
    temporary = folder / "tmp"
    temporary.mkdir()
    output = ("--json", folder / "demo.json", "--output", folder / "out")
    environment = {"TMPDIR": str(temporary)}
    return rengo("demo", *SMALL, *output, patience_s=PATIENCE_S, environment=environment)


# --- what it shows and writes -----------------------------------------------------------------


def test_it_succeeds_and_leaves_nothing_in_the_temporary_folder(shown: Told, folder: Path) -> None:
    assert shown.code == 0, shown
    assert shown.err == ""
    assert list((folder / "tmp").iterdir()) == []


def test_it_tells_in_steady_lines_what_happens(shown: Told) -> None:
    lines = shown.out.splitlines()
    assert lines[:2] == [
        "Starting the broker, the store and the server",
        "Starting 3 devices",
    ]
    for line in (
        "gpu-1 joined: gpu, torch",
        "pi-1 joined: pi, numpy",
        "evaluator-1 joined: evaluator, numpy",
        "Stopping every process",
    ):
        assert line in lines
    rounds = [line for line in lines if re.match(r"round \d/2  2/2 updates ", line)]
    assert len(rounds) == 2
    assert all(
        re.search(r"kB up .* kB down  accuracy 0\.\d{4}  loss \d+\.\d+$", line) for line in rounds
    )
    assert "\x1b" not in shown.out


def test_the_json_document_has_exactly_the_keys_of_the_contract(shown: Told, folder: Path) -> None:
    assert shown.code == 0
    document = json.loads((folder / "demo.json").read_text())
    assert set(document) == KEYS
    assert all(set(device) == DEVICE_KEYS for device in document["devices"])
    assert {device["id"] for device in document["devices"]} == {"gpu-1", "pi-1", "evaluator-1"}
    assert document["task"] == "digits"
    assert document["rounds_completed"] == 2
    assert len(document["round_s"]) == 2
    assert 0 < document["accuracy"] <= 1
    assert document["loss"] > 0
    assert document["bytes_up"] > 0
    assert document["bytes_down"] > 0
    assert all(device["peak_rss_bytes"] > 10_000_000 for device in document["devices"])
    assert f"accuracy {document['accuracy']:.4f} after 2 rounds" in shown.out


def test_the_model_is_the_one_that_the_document_names(shown: Told, folder: Path) -> None:
    import hashlib  # noqa: PLC0415

    assert shown.code == 0
    document = json.loads((folder / "demo.json").read_text())
    model = Path(document["model_path"])
    assert hashlib.sha256(model.read_bytes()).hexdigest() == document["model_sha256"]
    assert list(read_safetensors(model).arrays()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_the_plot_is_a_png_beside_the_model(shown: Told, folder: Path) -> None:
    (named,) = re.findall(r"^  plot   (.*)$", shown.out, re.MULTILINE)
    assert Path(named).is_relative_to(folder / "out")
    assert Path(named).read_bytes().startswith(b"\x89PNG")


def test_the_lines_that_load_the_model_work_as_printed(shown: Told, tmp_path: Path) -> None:
    _, _, rest = shown.out.partition("Load the model in Python:\n\n")
    printed = [line.removeprefix("  ") for line in rest.split("\n\n")[0].splitlines()]
    code = [line for line in printed if not line.startswith("#")]
    assert len(code) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*printed, "print(weights['0.weight'].shape)"])],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout == "(32, 64)\n", done.stderr


def test_the_weights_fit_a_torch_sequential(shown: Told, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    document = json.loads((folder / "demo.json").read_text())
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    model.load_state_dict(load_state_dict(document["model_path"]))
    assert shown.code == 0


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A demo of one device without matplotlib, whose document goes to standard output."""
    folder = tmp_path_factory.mktemp("bare")
    small = ("--clients", "1", "--rounds", "1", "--set", "cohort.quorum=1")
    # it begins with the learning rate of the task
    small += ("--set", "schedule.name=cosine")
    return rengo(
        *("demo", *small, "--json", "-", "--output", folder / "out"),
        patience_s=PATIENCE_S,
        environment=without(folder / "block", ["matplotlib"]),
    )


def test_json_on_standard_output_has_it_for_itself(bare: Told) -> None:
    assert set(json.loads(bare.out)) == KEYS
    assert "round 1/1" in bare.err
    assert "Done: accuracy" in bare.err


def test_without_matplotlib_there_is_a_note_instead_of_a_plot(bare: Told) -> None:
    assert bare.code == 0, bare
    assert "  plot   none: matplotlib is not installed; install it with: pip install" in bare.err
    assert "rengo[plot]" in bare.err


# --- how it is interrupted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("^Starting the broker", signal.SIGINT),
        ("^Starting 3 devices", signal.SIGTERM),
        pytest.param(" joined: ", signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("^run digits-", signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param("^round +3/", signal.SIGINT, marks=pytest.mark.soak),
        ("^round +2/", signal.SIGHUP),
    ],
)
def test_an_interrupt_at_any_moment_is_one_calm_line_and_leaves_nothing(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    with demo(tmp_path, *LONG) as running:
        running.until(moment)
        running.process.send_signal(number)
        assert running.end() == INTERRUPTED
        assert running.lines[-1] == CALM
        assert "Traceback" not in "\n".join(running.lines)
        assert running.left() == []


def test_impatience_does_not_leave_anything_either(tmp_path: Path) -> None:
    with demo(tmp_path, *LONG) as running:
        running.until("^round +1/")
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            # as a terminal does: to the whole foreground group
            os.killpg(running.process.pid, number)
            time.sleep(0.05)
        assert running.end() == INTERRUPTED
        assert running.lines[-1] == CALM
        assert running.left() == []


@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.3, 0.6])
def test_an_interrupt_while_it_loads_shows_no_traceback_of_ours(
    after_s: float, tmp_path: Path
) -> None:
    with demo(tmp_path, *SMALL) as running:
        time.sleep(after_s)
        running.process.send_signal(signal.SIGTERM)
        code = running.end()
        # before the first line of ours ran, the signal ends the process as it ends any
        assert code in {INTERRUPTED, -signal.SIGTERM}
        assert "Traceback" not in "\n".join(running.lines)
        assert running.left() == []


def test_a_reader_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path, *LONG) as running:
        running.until(" joined: ")
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.wait(PATIENCE_S) == FAILED
        assert running.left() == []
        running.process.stdout = None


# --- a task that only torch can run -----------------------------------------------------------

TORCH_TASK = """\
import torch
from fl_client.tasks.digits import Digits

class Perceptron(Digits):
    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(64, 10))
"""


def test_every_device_of_the_demo_can_train_a_task_that_needs_torch(tmp_path: Path) -> None:
    task = tmp_path / "perceptron.py"
    task.write_text(TORCH_TASK)
    with demo(tmp_path, "--clients", "2", "--rounds", "1", "--task", f"{task}:Perceptron") as shown:
        assert shown.end() == 0, shown.lines
    assert [line for line in shown.lines if "declined" in line or "refused" in line] == []
    (note,) = [line for line in shown.lines if "Raspberry Pi" in line]
    assert note == (
        "No Raspberry Pi device takes part, since those train without torch: task perceptron has a "
        "model of type Sequential, which only the torch engine can run; the numpy engine needs a "
        "list of layers"
    )
    for line in (
        "edge-1 joined: cpu, torch",
        "gpu-1 joined: gpu, torch",
        "evaluator-1 joined: evaluator, torch",
    ):
        assert line in shown.lines
    assert any(
        re.match(r"round 1/1  2/2 updates .*accuracy 0\.\d{4}", each) for each in shown.lines
    )


# --- how it fails -----------------------------------------------------------------------------


def test_a_run_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    task = tmp_path / "broken.py"
    task.write_text(BROKEN_TASK)
    attempts = ("--set", "cohort.max_attempts=2", "--set", "cohort.deadline_s=4")
    with demo(tmp_path, *SMALL, "--task", f"{task}:Broken", *attempts) as running:
        assert running.end() == FAILED
        assert running.lines[-1].startswith("rengo: run broken-")
        declined = [line for line in running.lines if "declined: " in line]
        assert declined
        assert all("the sensor is unplugged" in line for line in declined)
        assert any("was abandoned and is tried again" in line for line in running.lines)
        assert running.left() == []


def test_data_that_are_not_here_are_told_before_anything_is_started(tmp_path: Path) -> None:
    lacking = {"RENGO_WATCH_DATA": str(tmp_path / "none"), "XDG_CACHE_HOME": str(tmp_path)}
    told = rengo("demo", "--task", "watch", environment=lacking, home=tmp_path / "home")
    assert told.code == USAGE
    assert told.line.startswith("task watch: RENGO_WATCH_DATA=")
    assert told.out == ""


def test_what_is_to_be_tried_next_is_of_the_same_task() -> None:
    assert not any("--task digits" in command for command, _ in _tries("digits"))
    assert any("demo --task watch --set " in command for command, _ in _tries("watch"))


# --- on a terminal ----------------------------------------------------------------------------


def on_terminal(
    tmp_path: Path, *arguments: str, interrupt_at: str | None = None
) -> tuple[int, str]:
    """Run the demo on a pseudo-terminal; return its exit code and everything it drew."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rengo", "demo", *arguments, "--output", str(tmp_path / "out")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=surroundings(None, {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}),
        process_group=0,
    )
    os.close(slave)
    drawn = ""
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 1.0)[0]:
                continue
            try:
                drawn += os.read(master, 65536).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                break
            if interrupt_at is not None and re.search(interrupt_at, drawn):
                process.send_signal(signal.SIGINT)
                interrupt_at = None
        return process.wait(PATIENCE_S), drawn
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_on_a_terminal_there_is_a_picture_and_at_the_end_the_cursor(tmp_path: Path) -> None:
    code, drawn = on_terminal(tmp_path, *SMALL)
    assert code == 0, drawn
    for text in ("Waiting for devices: ", "Round 2 of 2", "training", "answered", "Done: accuracy"):
        assert text in drawn
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l")


def test_an_interrupt_gives_the_terminal_back(tmp_path: Path) -> None:
    code, drawn = on_terminal(tmp_path, *LONG, interrupt_at=r"Round ([2-9]|\d\d+) of")
    assert code == INTERRUPTED
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l")
    assert drawn.rstrip().endswith(CALM)
