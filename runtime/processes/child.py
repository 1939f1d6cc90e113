"""A supervised child process: started, watched for readiness, and stopped by its own pid.

On Linux the kernel ends the child when its parent dies (``PR_SET_PDEATHSIG``), so that a killed
``rengo`` leaves no server behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from runtime.errors import ConfigError, TransportError
from runtime.processes.logs import LogBound

# what it makes is for its owner alone, whatever library makes it
PRIVATE_UMASK = 0o077
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_POLL_S = 0.02
_LOG_TAIL_BYTES = 4000
# where programs, libraries and temporary files are, the time zone, the language, how many threads
_PASSED_ON = frozenset({"PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "LANG", "GOMAXPROCS"})


def foreign_environment() -> dict[str, str]:
    """Return what a program that is not ours learns of the user's environment.

    Such a program sets itself up by variables too. A store must not take the user's keys for its
    own, nor a broker's secrets lie in its memory.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith("LC_")
    }


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it ends (Linux only).

    The kernel watches the thread, not the process: start children from a thread that stays.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One child process with its output in a log file.

    It has a process group of its own, so that Ctrl-C on the terminal reaches only the parent, which
    then stops its children in order. One thread starts it and must outlive it; the other methods
    may be called from any thread.

    Args:
        name: what a person calls it, for messages.
        argv: the command; it must hold no secret.
        log: where stdout and stderr go (created 0600, appended).
        environment: replaces the inherited environment where given.
        pipes: its stdin and stdout are pipes, and only stderr goes to the log.
        log_bound: how long its logs may become, also while it runs.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pipes: bool = False,
        log_bound: LogBound = LogBound(),  # noqa: B008 (frozen)
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self.log = log
        self._environment = None if environment is None else dict(environment)
        self._cwd = cwd
        self._pipes = pipes
        self._log_bound = log_bound
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    @property
    def pid(self) -> int:
        """The running process's id; raises TransportError when it was never started."""
        if self._process is None:
            raise TransportError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the process is alive now."""
        return self._process is not None and self._process.poll() is None

    @property
    def stdin(self) -> BinaryIO:
        """The pipe to a started process that has ``pipes``."""
        assert self._process is not None
        return cast("BinaryIO", self._process.stdin)

    @property
    def stdout(self) -> BinaryIO:
        """The pipe from a started process that has ``pipes``."""
        assert self._process is not None
        return cast("BinaryIO", self._process.stdout)

    def start(self) -> None:
        """Start the process; it must not be running.

        Raises:
            ConfigError: its program cannot be run, or its log cannot be written.
        """
        if self.running:
            raise TransportError(f"{self.name} is already running as pid {self.pid}")
        try:
            process = self._process = self._popen()
        except OSError as error:
            path = error.filename or self._argv[0]
            raise ConfigError(f"{self.name} cannot be started: {path}: {error.strerror}") from error
        ended = self._ended = threading.Event()
        threading.Thread(
            target=lambda: self._log_bound.keep(self.log, lambda: process.poll() is None, ended),
            name=f"log of {self.name}",
            daemon=True,
        ).start()

    def _popen(self) -> subprocess.Popen[bytes]:
        log = self._open_log()
        try:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE if self._pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._pipes else log,
                stderr=log,
                env=self._environment,
                cwd=self._cwd,
                # one prctl call, no allocation and no lock: safe between fork and exec
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
                process_group=0,
                umask=PRIVATE_UMASK,
            )
        finally:
            os.close(log)

    def _open_log(self) -> int:
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log_bound.set_aside(self.log)
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return when ``ready()`` holds.

        Raises:
            TransportError: the process ended first, or the time is over; names the log's last line.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                ended = f"{self.name} ended at start with status {self.returncode}"
                raise TransportError(f"{ended}: {self.explanation()}")
            if time.monotonic() > deadline:
                late = f"{self.name} was not ready within {timeout_s:.0f} s"
                raise TransportError(f"{late}: {self.explanation()}")
            time.sleep(_POLL_S)

    def last_line(self) -> str:
        """Return the last line of the log that is not blank, "" when there is none."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def explanation(self) -> str:
        """Return the last line of the log, or that there is none, for a message."""
        return self.last_line() or f"its log {self.log} is empty"

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of a started process; return its exit status.

        Raises:
            TimeoutError: it did not end within ``timeout_s``.
        """
        assert self._process is not None
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} did not end within {timeout_s} s") from None
        self._ended.set()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process and its group at once (SIGKILL) and reap it."""
        if self._process is not None:
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._ended.set()

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the process to end, kill it after ``grace_s``, and reap it."""
        if self._process is not None:
            self.signal(signal.SIGTERM)
            self.end_within(grace_s)

    def end_within(self, grace_s: float) -> None:
        """Wait for the end of a started process, and kill it after ``grace_s``."""
        try:
            self.wait(grace_s)
        except TimeoutError:
            self.kill()
