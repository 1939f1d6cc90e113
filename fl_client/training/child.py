"""The agent's side of its training child: started when needed, kept warm, its end is an event.

Light: importing this loads neither numpy nor torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast

from fl_client.training.frames import (
    Answer,
    Done,
    Failed,
    Ready,
    StepProgress,
    TrainingJob,
    read_answer,
    write_frame,
)
from runtime.errors import InvalidTransition, PeerError

if TYPE_CHECKING:
    from fl_client.datasets.settings import DataPlace

_LOG_TAIL_BYTES = 4000
# one thread, so that sums have one order; and what a process of one thread does not need
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class ChildSettings:
    """What a training child is started with.

    ``task`` comes from this device's own settings, or is a bundle's, which has an interpreter of
    its own: ``python``.
    """

    task: str
    engine: str
    device_id: str
    index: int = 0
    count: int = 1
    role: str = "trainer"
    data_seed: int = 0
    profile: str = "cpu"
    folder: Path | None = None
    python: Path | None = None
    accelerators: tuple[str, ...] = ()
    precision: str = "auto"
    compile: str = ""
    loader_threads: int = 0
    data: DataPlace | None = None

    def argv(self) -> list[str]:
        """Return the command line."""
        folder = [] if self.folder is None else ["--folder", str(self.folder)]
        data = [] if self.data is None else ["--data", self.data.model_dump_json()]
        # -P: modules are not looked for in the agent's working folder
        return [
            *(sys.executable if self.python is None else str(self.python), "-P"),
            # a bundle's files stay as they were signed
            *(("-B",) if self.python is not None else ()),
            *("-m", "fl_client.training"),
            *("--task", self.task),
            *("--engine", self.engine),
            *("--device-id", self.device_id),
            *("--index", str(self.index)),
            *("--count", str(self.count)),
            *("--role", self.role),
            *("--data-seed", str(self.data_seed)),
            *("--profile", self.profile),
            *("--accelerators", ",".join(self.accelerators)),
            *("--precision", self.precision),
            *("--compile", self.compile),
            *("--loader-threads", str(self.loader_threads)),
            *folder,
            *data,
        ]


@dataclass(frozen=True)
class ChildReady:
    """The child runs and has loaded its task."""

    pid: int


@dataclass(frozen=True)
class ChildProgressed:
    """The job goes on."""

    job: TrainingJob
    fraction: float
    loss: float | None


@dataclass(frozen=True)
class ChildFinished:
    """The job ended; a training job's update is on disk."""

    job: TrainingJob
    result: Done


@dataclass(frozen=True)
class ChildFailed:
    """The job gave nothing; ``job`` is None when the task itself could not be loaded."""

    job: TrainingJob | None
    reason: str
    retryable: bool
    out_of_memory: bool = False
    unusable: bool = False


@dataclass(frozen=True)
class ChildDied:
    """The process has ended, and with it ``job``, if it had one.

    Attributes:
        returncode: the exit status, or minus the signal's number.
        expected: whether ``stop`` or ``kill`` was called first.
    """

    job: TrainingJob | None
    returncode: int
    reason: str
    expected: bool


ChildEvent: TypeAlias = ChildReady | ChildProgressed | ChildFinished | ChildFailed | ChildDied


class TrainingChild:
    """Runs one job at a time in a child process.

    ``submit``, ``stop`` and ``kill`` belong to one thread, which must outlive the child: on Linux
    the kernel ends the child together with the thread that started it.

    Args:
        events: called on a reader thread; it must only enqueue.
        log: where the child's standard error goes (created 0600, appended); None: to ours.
        environment: laid over ours.
        started: is told the process's id at once, before it has done anything.
    """

    def __init__(
        self,
        settings: ChildSettings,
        events: Callable[[ChildEvent], None],
        *,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        started: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._events = events
        self._log = log
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._started = started
        self._life: _ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """The running process's id, None when there is none."""
        if self._life is None or self._life.process.poll() is not None:
            return None
        return self._life.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.pid is not None

    @property
    def busy(self) -> bool:
        """Whether a job is under way: its end has not been told yet."""
        return self._life is not None and self._life.job is not None

    def start(self) -> None:
        """Start the process, unless it runs; ``submit`` does so by itself."""
        if self._life is None or self._life.ended:
            own = os.environ if self._settings.python is None else _for_a_stranger()
            process = _popen(self._settings.argv(), self._log, {**own, **self._environment})
            if self._started is not None:
                self._started(process.pid)
            self._life = _ChildProcess(process, self._events, self._log)

    def submit(self, job: TrainingJob) -> None:
        """Hand over a job and return; how it goes arrives as events.

        Raises:
            InvalidTransition: a job is still under way.
        """
        if self.busy:
            raise InvalidTransition("the training child already has a job")
        self.start()
        assert self._life is not None
        if not self._life.submit(job):
            # it ended between the two lines: a new one takes the job
            self.start()
            self._life.submit(job)

    def stop(self, grace_s: float = 2.0) -> None:
        """End the process, and with it a job; returns when it has gone."""
        if self._life is not None:
            self._life.stop(grace_s)

    def kill(self) -> None:
        """End the process by SIGKILL; returns when it has gone."""
        if self._life is not None:
            self._life.stop(0.0)


class _ChildProcess:
    """One process from its start to its end, so that a late event never meets the next one."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        events: Callable[[ChildEvent], None],
        log: Path | None,
    ) -> None:
        self.process = process
        self.job: TrainingJob | None = None
        self.ended = False
        self._events = events
        self._log = log
        self._lock = threading.Lock()
        self._expected = False
        self._broke = ""
        self._reader = threading.Thread(target=self._read, name="training-child", daemon=True)
        self._reader.start()

    def submit(self, job: TrainingJob) -> bool:
        """Take the job, or return False when the end has already been told."""
        with self._lock:
            if self.ended:
                return False
            self.job = job
            # of a process that has gone the reader thread tells, with the job
            with contextlib.suppress(BrokenPipeError):
                write_frame(cast("BinaryIO", self.process.stdin), job)
            return True

    def stop(self, grace_s: float) -> None:
        self._expected = True
        if grace_s > 0:
            with self._lock:
                self._close_stdin()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        else:
            self.process.kill()
        self._reader.join()

    def _close_stdin(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            cast("BinaryIO", self.process.stdin).close()

    def _read(self) -> None:
        answers = cast("BinaryIO", self.process.stdout)
        try:
            while (answer := read_answer(answers)) is not None:
                self._events(self._event(answer))
        except PeerError as error:
            self._broke = str(error)
            self.process.kill()
        returncode = self.process.wait()
        answers.close()
        with self._lock:
            self._close_stdin()
            self.ended = True
            job, self.job = self.job, None
        self._events(ChildDied(job, returncode, self._reason(returncode), self._expected))

    def _event(self, answer: Answer) -> ChildEvent:
        match answer:
            case Ready():
                return ChildReady(self.process.pid)
            case Failed():
                job, self.job = self.job, None
                return ChildFailed(
                    job, answer.reason, answer.retryable, answer.out_of_memory, answer.unusable
                )
            case StepProgress() | Done() if self.job is None:
                raise PeerError(f"the training child sent {answer.kind} without a job")
            case StepProgress(fraction=fraction, loss=loss):
                return ChildProgressed(self.job, fraction, loss)
            case Done():
                job, self.job = self.job, None
                return ChildFinished(job, answer)

    def _reason(self, returncode: int) -> str:
        if self._broke:
            return self._broke
        if returncode == -signal.SIGKILL and not self._expected:
            return "training was killed (SIGKILL): out of memory?"
        if returncode < 0:
            return f"training was ended by {signal.Signals(-returncode).name}"
        last = _last_line(self._log)
        return f"training exited with status {returncode}" + (f": {last}" if last else "")


def _for_a_stranger() -> dict[str, str]:
    """Return our environment without what is the agent's own: its secrets and its modules."""
    own = ("RENGO_AGENT", "RENGO_SERVER", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def _popen(
    argv: list[str], log: Path | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    descriptor = None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            env=environment,
            # Ctrl-C on the terminal reaches the agent alone, which then ends the child
            process_group=0,
        )
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _last_line(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
