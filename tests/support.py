"""What several tests need: real programs, and a look at what a test session left behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil
import pytest
from _pytest.mark import ParameterSet

from fl_client.datasets.public import listing

CI_FLAG = "RENGO_CI"
# programs that are not ours get few variables; those of the language are among them
SESSION_MARK = "LC_RENGO_TEST_SESSION"
_SERVER_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/opt/homebrew/sbin",
)
_POLL_S = 0.05
_STILL_S = 30.0
# processes that serve a whole session and are ended with it
standing: set[int] = set()


@contextmanager
def scratch(root: Path, gates: str) -> Iterator[Path]:
    """Give a whole site's processes one place for all that they write; it has to be empty after.

    Args:
        root: where ``home`` (no site may be looked for there), ``tmp`` and ``gates`` go.
        gates: the variable that names the folder of gates, which is returned.
    """
    temporary, folder = root / "tmp", root / "gates"
    for path in (temporary, folder):
        path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RENGO_HOME", str(root / "home"))
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv(gates, str(folder))
        yield folder
    left = sorted(temporary.iterdir())
    assert not left, f"temporary files left: {left}"
    assert not (root / "home").exists(), "a site was looked for outside its folder"


def use_fetched_data(patch: pytest.MonkeyPatch) -> None:
    """Let tasks find the data sets that `make setup` fetched, unless the environment names some."""
    for name in listing.names():
        folder = Path(__file__).parents[1] / ".cache" / "rengo" / name
        variable = f"RENGO_{name.upper()}_DATA"
        if folder.is_dir() and variable not in os.environ:
            patch.setenv(variable, str(folder))


T = TypeVar("T")


def soaking(cases: Iterable[T], long: Callable[[T], bool]) -> list[T | ParameterSet]:
    """Return a test's parameters, of which those that are long are left to `make soak`."""
    return [pytest.param(each, marks=pytest.mark.soak) if long(each) else each for each in cases]


def find_binary(name: str) -> Path | None:
    """Return a program from PATH or from where servers are installed; the newest of several."""
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    found = [hit for folder in _SERVER_FOLDERS for hit in Path("/").glob(f"{folder[1:]}/{name}")]
    return max(found, default=None)


def require(name: str, package: str | None = None) -> Path:
    """Return the path of a real program that a test runs.

    Without it the test is skipped, with the package to install; under RENGO_CI=1 it fails, so
    that a green run there means that every real server was used.
    """
    path = find_binary(name)
    if path is None:
        _skip(f"{name} is not installed; it comes with the package {package or name}")
    return path


def require_package(name: str) -> None:
    """Return where a Python package that a test imports is installed; else as ``require``."""
    if importlib.util.find_spec(name) is None:
        _skip(f"{name} is not installed; it comes with the extra [dev]")


def _skip(reason: str) -> NoReturn:
    if os.environ.get(CI_FLAG) == "1":
        pytest.fail(f"{reason}, and {CI_FLAG}=1 allows no skip", pytrace=False)
    pytest.skip(reason)


def hold_still(pid: int) -> None:
    """Stop a process, and return when none of its threads runs any more.

    A signal stops a process when one of its threads takes it, until which the others go on.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _STILL_S
    while running := [each for each in _states(pid) if each not in "Tt"]:
        assert time.monotonic() < deadline, f"process {pid} goes on: {running}"
        time.sleep(_POLL_S / 10)


def _states(pid: int) -> list[str]:
    """Return the state of each thread, or of the whole process where the system tells no more."""
    threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    if not threads:
        return ["T" if psutil.Process(pid).status() == psutil.STATUS_STOPPED else "R"]
    found = []
    for each in threads:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.append(each.read_text().rpartition(") ")[2][0])
    return found


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(SESSION_MARK) == mark
    except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
        return False


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family() -> list[psutil.Process]:
    """Return this process's children and theirs, but those that serve the whole session."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if each.pid not in standing]


def processes_left(mark: str) -> list[psutil.Process]:
    """Return living processes that this one started, also those that have lost their parent."""
    known = standing | {os.getpid()}
    orphans = {p for p in psutil.process_iter() if p.pid not in known and _carries(p, mark)}
    return [process for process in {*family(), *orphans} if _alive(process)]


def wait_for_none_left(mark: str, grace_s: float) -> list[psutil.Process]:
    """Return what is still alive after ``grace_s``; returns at once when nothing is."""
    deadline = time.monotonic() + grace_s
    while (left := processes_left(mark)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left


def own_listening_ports() -> set[int]:
    """Return the ports on which this very process listens."""
    connections = psutil.Process().net_connections(kind="tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def describe(processes: list[psutil.Process]) -> Iterator[str]:
    """Yield one line per process: id, command and the ports it listens on."""
    for process in processes:
        try:
            command = " ".join(process.cmdline())[:160]
            ports = [
                connection.laddr.port
                for connection in process.net_connections(kind="tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        yield f"pid {process.pid}: {command}" + (f" (listens on {ports})" if ports else "")
