"""Bad arguments of commands: one clear line that says what and how to mend, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.bad_input import FAILED, USAGE, home, identity_file
from tests.integration.commands import rengo, without

__all__ = ["home"]


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
        (["--set", "algorithm.name=fedavgg"], "no algorithm 'fedavgg'; did you mean 'fedavg'"),
        (["--set", "algorithm.nu=1"], "algorithm fedavg has no setting 'nu' (it has: "),
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
    assert told.line == (
        "no algorithm 'fedavgg'; did you mean 'fedavg'? (`rengo algorithms` lists them)"
    )
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
