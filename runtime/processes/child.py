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
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runtime.errors import ConfigError, TransportError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_POLL_S = 0.02


def die_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it ends (Linux only).

    The kernel watches the thread, not the process: start children from a thread that stays.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One child process with its output in a log file.

    Args:
        name: what a person calls it, for messages.
        argv: the command; it must hold no secret.
        log: where stdout and stderr go (created 0600, appended).
        environment: replaces the inherited environment where given.
        own_group: a process group of its own, so that Ctrl-C on the terminal reaches only the
            parent, which then stops its children in order.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        own_group: bool = True,
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self.log = log
        self._environment = None if environment is None else dict(environment)
        self._cwd = cwd
        self._own_group = own_group
        self._process: subprocess.Popen[bytes] | None = None

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

    def start(self) -> None:
        """Start the process; it must not be running.

        Raises:
            ConfigError: its program cannot be run.
        """
        if self.running:
            raise TransportError(f"{self.name} is already running as pid {self.pid}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=self._environment,
                cwd=self._cwd,
                # one prctl call, no allocation and no lock: safe between fork and exec
                preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
                process_group=0 if self._own_group else None,
            )
        except OSError as error:
            raise ConfigError(
                f"{self.name} cannot be started: {self._argv[0]}: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return when ``ready()`` holds.

        Raises:
            TransportError: the process ended first, or the time is over; names the log's last line.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise TransportError(
                    f"{self.name} ended at start with status {self.returncode}: {self.last_line()}"
                )
            if time.monotonic() > deadline:
                raise TransportError(
                    f"{self.name} was not ready within {timeout_s:.0f} s: {self.last_line()}"
                )
            time.sleep(_POLL_S)

    def last_line(self) -> str:
        """Return the last line of the log that is not empty."""
        try:
            tail = self.log.read_bytes()[-4000:]
        except FileNotFoundError:
            return f"no log at {self.log}"
        lines = [line for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"nothing in {self.log}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process at once (SIGKILL) and reap it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the process to end, kill it after ``grace_s``, and reap it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.kill()
