"""Supervised children: ready or named, one at a time, gone with their parent."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from runtime.errors import ConfigError, TransportError
from runtime.processes import logs
from runtime.processes.child import Child
from runtime.processes.logs import LogBound

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True)\ntime.sleep(600)"
)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    made: list[Child] = []

    def child_of(code: str) -> Child:
        child = Child("the helper", [sys.executable, "-c", code], tmp_path / "logs" / "child.log")
        made.append(child)
        return child

    yield child_of
    for child in made:
        child.kill()


def up(child: Child) -> Callable[[], bool]:
    return lambda: child.log.exists() and "up" in child.log.read_text()


def test_it_is_ready_when_it_says_so(make: Callable[[str], Child]) -> None:
    child = make(SLEEPER)
    assert not child.running
    assert child.returncode is None
    child.start()
    child.wait_ready(up(child), 30)
    assert child.running
    assert psutil.pid_exists(child.pid)
    child.stop()
    assert not child.running
    assert child.returncode == -signal.SIGTERM


def test_an_end_at_start_is_named_with_its_last_line(make: Callable[[str], Child]) -> None:
    child = make("import sys; print('no such port'); print(); sys.exit(7)")
    child.start()
    with pytest.raises(TransportError, match="the helper ended at start with status 7: no such"):
        child.wait_ready(lambda: False, 30)


def test_one_that_is_never_ready_is_named(make: Callable[[str], Child]) -> None:
    child = make(SLEEPER)
    child.start()
    child.wait_ready(up(child), 30)
    with pytest.raises(TransportError, match="the helper was not ready within 0 s: up"):
        child.wait_ready(lambda: False, 0.1)


def test_a_stubborn_one_is_killed(make: Callable[[str], Child]) -> None:
    child = make(STUBBORN)
    child.start()
    child.wait_ready(up(child), 30)
    child.stop(grace_s=0.2)
    assert child.returncode == -signal.SIGKILL


def test_it_starts_once_and_again_after_its_end(make: Callable[[str], Child]) -> None:
    child = make(SLEEPER)
    child.start()
    first = child.pid
    with pytest.raises(TransportError, match="already running"):
        child.start()
    child.kill()
    child.start()
    assert child.pid != first


def test_before_the_start_there_is_no_pid(make: Callable[[str], Child]) -> None:
    child = make(SLEEPER)
    with pytest.raises(TransportError, match="has not been started"):
        _ = child.pid
    child.stop()
    child.kill()
    child.signal(signal.SIGHUP)
    assert child.last_line() == ""
    assert child.explanation() == f"its log {child.log} is empty"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = Child("the helper", [str(tmp_path / "none")], tmp_path / "log")
    with pytest.raises(ConfigError, match=r"the helper cannot be started: .*/none: No such file"):
        child.start()
    (tmp_path / "file").touch()
    child = Child("the helper", [sys.executable], tmp_path / "file" / "log")
    with pytest.raises(ConfigError, match=r"the helper cannot be started: .*/file: File exists"):
        child.start()


def test_the_log_is_private_and_kept_over_starts(make: Callable[[str], Child]) -> None:
    child = make("print('hello')")
    for count in (1, 2):
        child.start()
        with pytest.raises(TransportError, match="ended at start with status 0: hello"):
            child.wait_ready(lambda: False, 30)
        assert child.log.read_text().count("hello") == count
    assert stat.S_IMODE(child.log.stat().st_mode) == 0o600


def test_a_log_that_is_too_long_is_put_aside_at_the_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Child(
        "the helper", [sys.executable, "-c", "print('x' * 9)"], log, log_bound=LogBound(15)
    )
    sizes = []
    for _ in range(3):
        child.start()
        assert child.wait(30) == 0
        sizes.append(log.stat().st_size)
    assert sizes == [10, 20, 10]
    assert (tmp_path / "log.1").read_text() == "xxxxxxxxx\n" * 2


CHATTY = """
import sys
own = open("own", "w")
for line in sys.stdin:
    for number in range(500):
        print(f"{line.strip()} {number:04}", file=sys.stderr, flush=True)
        print(f"{line.strip()} {number:04}", file=own, flush=True)
    print("said", flush=True)
"""


def test_its_logs_stay_bounded_while_it_runs(tmp_path: Path) -> None:
    """Seen before: a log grew without end until its process was started again."""
    paths = [tmp_path / "log", tmp_path / "own"]
    bound = LogBound(20 << 10, look_s=0.01, others=("own",))
    argv = [sys.executable, "-c", CHATTY]
    child = Child("the helper", argv, paths[0], cwd=tmp_path, log_bound=bound, pipes=True)
    child.start()
    with child.stdin as stdin, child.stdout as stdout:
        for turn in range(30):
            stdin.write(b"turn %04d\n" % turn)
            stdin.flush()
            assert stdout.readline() == b"said\n"
            # as long as ever before the next turn
            assert reached(lambda: all(taken(log) <= bound.most_bytes for log in paths))
        stdin.close()
        assert child.wait(30) == 0
    assert sum(taken(each) for each in tmp_path.iterdir()) <= 5 * bound.most_bytes
    for log in paths:
        older = log.with_name(f"{log.name}.1").read_bytes().splitlines()
        assert older[-1].startswith(b"turn 00")
        assert stat.S_IMODE(log.with_name(f"{log.name}.1").stat().st_mode) == 0o600
    assert child.last_line() in {"", "turn 0029 0499"}


def taken(path: Path) -> int:
    """Return what a file takes on the disk."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def reached(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds()


def test_on_a_full_disk_a_log_is_cut_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = tmp_path / "log"
    log.write_text("x" * 100_000)
    monkeypatch.setattr(logs, "_copy_end", full)
    runs = iter([True, False])
    LogBound(10_000, look_s=0.001).keep(log, lambda: next(runs), threading.Event())
    assert [(each.name, each.stat().st_size) for each in tmp_path.iterdir()] == [("log", 0)]


def test_with_pipes_only_its_errors_go_to_the_log(tmp_path: Path) -> None:
    code = "import sys; print(input()[::-1], flush=True); sys.exit('no more input')"
    child = Child("the helper", [sys.executable, "-c", code], tmp_path / "log", pipes=True)
    child.start()
    with child.stdin as stdin, child.stdout as stdout:
        stdin.write(b"abc\n")
        stdin.flush()
        assert stdout.readline() == b"cba\n"
        assert child.wait(30) == 1
    assert child.log.read_text() == "no more input\n"
    assert child.last_line() == "no more input"


def test_killing_it_kills_what_it_has_started(make: Callable[[str], Child]) -> None:
    code = (
        "import subprocess, sys\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('up', inner.pid, flush=True)\ninner.wait()"
    )
    child = make(code)
    child.start()
    child.wait_ready(up(child), 30)
    inner = psutil.Process(int(child.last_line().split()[1]))
    child.kill()
    inner.wait(10)


def test_a_signal_on_the_terminal_does_not_reach_it(make: Callable[[str], Child]) -> None:
    child = make(SLEEPER)
    child.start()
    assert os.getpgid(child.pid) != os.getpgid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel watches parents on Linux alone")
def test_it_ends_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from runtime.processes.child import Child\n"
        "child = Child('x', [sys.executable, '-c', 'import time; time.sleep(600)'], "
        "Path(sys.argv[1]))\nchild.start(); print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
