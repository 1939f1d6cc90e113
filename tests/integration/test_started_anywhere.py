"""A command is the same wherever it is started: beside any files, with any terminal or none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fl_client.own_packages import OWN_PACKAGES
from tests.integration.commands import surroundings

_RENGO = Path(sys.executable).with_name("rengo")
_PYTHON = [sys.executable, "-m", "rengo"]
_FOREIGN = "raise SystemExit('not of Rengo')\n"
_TASK = """\
import os
import numpy as np
from beside import COUNT
from rengo import Linear, Task

class Mine(Task):
    def model(self):
        return [Linear(2, 2)]
    def data(self, device):
        os.chdir("/")
        part = np.zeros((COUNT, 2), np.float32), np.zeros(COUNT, np.int64)
        return part, part
"""


def _run(
    argv: list[object], folder: Path, home: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(each) for each in argv],
        cwd=folder,
        env=surroundings(home, variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project whose modules have the names of Rengo's packages."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in OWN_PACKAGES - {"rengo"}:
        (folder / f"{name}.py").write_text(_FOREIGN)
    (folder / "beside.py").write_text("COUNT = 8\n")
    (folder / "task.py").write_text(_TASK)
    return folder


@pytest.mark.parametrize("argv", [[_RENGO], _PYTHON], ids=["rengo", "python -m rengo"])
@pytest.mark.parametrize("where", ["working folder", "PYTHONPATH"])
def test_the_command_wins_over_modules_of_the_same_names(
    project: Path, tmp_path: Path, argv: list[object], where: str
) -> None:
    variables = {"PYTHONPATH": str(project)} if where == "PYTHONPATH" else {}
    folder = tmp_path if variables else project
    done = _run([*argv, "algorithms"], folder, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fedavg" in done.stdout


def test_the_command_wins_over_a_rengo_on_pythonpath(project: Path, tmp_path: Path) -> None:
    """So do the processes that it starts: a server, devices, and their training processes."""
    (project / "rengo.py").write_text(_FOREIGN)
    around = {"PYTHONPATH": str(project)}
    done = _run([_RENGO, "algorithms"], tmp_path, **around)
    assert (done.returncode, done.stderr) == (0, "")
    options = [
        "--task",
        f"{project / 'task.py'}:Mine",
        "--rounds",
        "1",
        "--clients",
        "1",
        "--output",
        tmp_path / "out",
    ]
    done = _run([_RENGO, "demo", *options], tmp_path, tmp_path / "home", **around)
    assert (done.returncode, done.stderr) == (0, "")
    noted = [
        line
        for line in _run([_RENGO, "doctor"], tmp_path, **around).stdout.splitlines()
        if line.startswith("note  ") and str(project) in line
    ]
    assert len(noted) == len(OWN_PACKAGES)


def test_a_script_beside_them_imports_rengo(project: Path) -> None:
    script = project / "script.py"
    script.write_text("import rengo\nprint(rengo.Site, rengo.Task)\n")
    done = _run([sys.executable, script], project)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_that_imports_its_own_first_is_told(project: Path) -> None:
    (project / "storage.py").write_text("")
    script = project / "script.py"
    script.write_text("import storage\nimport rengo\n")
    done = _run([sys.executable, script], project)
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {project / 'storage.py'} has the")


def test_a_task_that_imports_one_of_them_is_told_which(project: Path) -> None:
    (project / "task.py").write_text(f"import storage\n{_TASK}")
    done = _run([_RENGO, "demo", "--task", "task.py:Mine"], project)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"not {project / 'storage.py'}: give that another name" in line


def test_doctor_says_what_lies_there(project: Path) -> None:
    done = _run([_RENGO, "doctor"], project)
    noted = [line for line in done.stdout.splitlines() if line.startswith("note  storage.py: ")]
    assert len(noted) == 1, done.stdout


def test_a_site_trains_beside_them_from_a_relative_folder(project: Path, tmp_path: Path) -> None:
    """Server, devices, and their training processes; the task changes the working folder."""
    script = project / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "import rengo\n"
        "if __name__ == '__main__':\n"
        "    with rengo.Site(Path('site')) as site:\n"
        "        done = site.run('task.py:Mine', rounds=1, devices=1, output=Path('out'))\n"
        "    print(done.model_path)\n"
    )
    done = _run([sys.executable, script], project, PYTHONPATH=str(project))
    assert done.returncode == 0, done.stderr
    model = Path(done.stdout.splitlines()[-1])
    assert model.is_relative_to(project / "out")
    assert (project / "site" / "site.json").is_file()


@pytest.mark.parametrize("words", [["--help"], ["up", "--help"], ["algorithms"], ["doctor"]])
@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "latin-1"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["latin-1", "C"],
)
def test_every_terminal_can_show_it(
    tmp_path: Path, words: list[str], variables: dict[str, str]
) -> None:
    done = _run([_RENGO, *words], tmp_path, tmp_path / "home", **variables)
    assert "internal error" not in done.stderr, done.stderr
    assert done.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["--help", "algorithms", "runs ls --json -"])
def test_a_stream_may_be_closed(tmp_path: Path, closed: str, words: str) -> None:
    done = _run(
        ["sh", "-c", f"{_RENGO} {words} {closed}; echo $? > code"], tmp_path, tmp_path / "home"
    )
    wanted = "2" if words.startswith("runs") else "0"
    assert (tmp_path / "code").read_text().strip() == wanted, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_may_leave_after_the_first_line(tmp_path: Path) -> None:
    done = _run(["sh", "-c", f"{_RENGO} --help | head -1"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = _run(["sh", "-c", f"{_RENGO} algorithms > /dev/full"], tmp_path)
    assert (done.returncode, done.stderr) == (3, "rengo: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_the_code_tells_why_where_nothing_can_be_said(tmp_path: Path) -> None:
    for words, code in (("server --config none.toml", 2), ("algorithms > /dev/full", 3)):
        assert _run(["sh", "-c", f"{_RENGO} {words} 2> /dev/full"], tmp_path).returncode == code


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """As in a container that runs as a user of no name."""
    lines = "import os, pwd, sys\ndef nobody(*_): raise KeyError\npwd.getpwuid = nobody\n"
    (tmp_path / "sitecustomize.py").write_text(lines + "os.environ.pop('HOME', None)\n")
    variables = {"PYTHONPATH": str(tmp_path)}
    assert _run([_RENGO, "--help"], tmp_path, **variables).returncode == 0
    done = _run([_RENGO, "runs", "ls"], tmp_path, **variables)
    assert (done.returncode, done.stderr) == (
        2,
        "rengo: this user has no home folder (HOME is not set); set RENGO_HOME to a folder\n",
    )
    assert _run([_RENGO, "runs", "ls"], tmp_path, tmp_path, **variables).returncode == 2


_PROGRAM = """\
import numpy as np
from rengo import Linear, Site, Task
{extra}
class Mine(Task):
    def model(self):
        return [Linear(2, 2)]
    def data(self, device):
        part = np.zeros((8, 2), np.float32), np.zeros(8, np.int64)
        return part, part

with Site() as site:
    open("started", "a").write("x")
    site.run(Mine, rounds=1, devices=1)
"""


def test_a_task_beside_a_program_starts_one_site(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_PROGRAM.format(extra=""))
    done = _run([sys.executable, "mine.py"], tmp_path)
    assert (tmp_path / "started").read_text() == "x"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"runtime.errors.ConfigError: {tmp_path / 'mine.py'} starts a site")
    assert last.endswith("below `if __name__ == '__main__':`")
    assert done.returncode == 1


def test_a_command_that_a_tasks_file_runs_does_not_start(tmp_path: Path) -> None:
    extra = f"import subprocess\nsubprocess.run([{str(_RENGO)!r}, 'demo', '--task', __file__])"
    (tmp_path / "mine.py").write_text(_PROGRAM.format(extra=extra))
    done = _run([_RENGO, "demo", "--task", "mine.py:Mine"], tmp_path)
    assert done.returncode == 2
    assert [
        line.partition(" starts ")[2].partition(" when")[0] for line in done.stderr.splitlines()
    ] == ["`rengo`", "a site"]
    assert not os.path.exists(tmp_path / "started")  # noqa: PTH110


def test_options_of_a_start_that_failed_are_forgotten(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for wrong in (["--host", "::"], ["--host", "nowhere"], ["--broker-port", port]):
            done = _run([_RENGO, "up", *wrong], tmp_path, home)
            assert done.returncode == 2, (wrong, done.stderr)
            assert '"host": "127.0.0.1"' in (home / "site.json").read_text()
            assert f'"broker_port": {port}' not in (home / "site.json").read_text()
