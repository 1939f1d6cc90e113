"""The agent's side of its training child: it is started when needed, and its end is an event.

Light: importing this loads neither numpy nor torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fl_client.own_packages import command
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
from runtime.processes.child import Child

if TYPE_CHECKING:
    from fl_client.datasets.settings import DataPlace

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
    partition: str = ""

    def argv(self) -> list[str]:
        """Return the command line."""
        folder = [] if self.folder is None else ["--folder", str(self.folder)]
        data = [] if self.data is None else ["--data", self.data.model_dump_json()]
        # left out at its default: a bundle's environment may have an older Rengo
        partition = ["--partition", self.partition] if self.partition else []
        # a bundle's files stay as they were signed
        options = ["-B"] if self.python is not None else []
        return [
            *command("fl_client.training", self.python, *options),
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
            *partition,
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
    """The job failed; ``job`` is None when the task itself could not be loaded."""

    job: TrainingJob | None
    reason: str
    retryable: bool
    out_of_memory: bool = False
    unusable: bool = False
    traceback: tuple[str, ...] = ()


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
        log: where the child's standard error goes (created 0600, appended).
        environment: laid over ours.
        started: called with the process's id before the process has done anything.
    """

    def __init__(
        self,
        settings: ChildSettings,
        events: Callable[[ChildEvent], None],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        started: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._events = events
        self._log = log
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._started = started
        self._process: _ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """The running process's id, None when there is none."""
        if self._process is None or not self._process.process.running:
            return None
        return self._process.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.pid is not None

    @property
    def busy(self) -> bool:
        """Whether a job is under way: no event of its end was given yet."""
        return self._process is not None and self._process.job is not None

    def start(self) -> None:
        """Start the process, unless it runs; ``submit`` does so by itself."""
        if self._process is None or self._process.ended:
            own = os.environ if self._settings.python is None else _environment_for_bundles()
            environment = {**own, **self._environment}
            argv = self._settings.argv()
            process = Child("training", argv, self._log, environment=environment, pipes=True)
            process.start()
            if self._started is not None:
                self._started(process.pid)
            self._process = _ChildProcess(process, self._events)

    def submit(self, job: TrainingJob) -> None:
        """Give the process a job and return; progress and end arrive as events.

        Raises:
            InvalidTransition: a job is still under way.
        """
        if self.busy:
            raise InvalidTransition("the training child already has a job")
        self.start()
        assert self._process is not None
        if not self._process.submit(job):
            # the process ended in between: a new one gets the job
            self.start()
            self._process.submit(job)

    def stop(self, grace_s: float = 2.0) -> None:
        """End the process, and with it a job; returns when it has gone."""
        if self._process is not None:
            self._process.stop(grace_s)

    def kill(self) -> None:
        """End the process by SIGKILL; returns when it has gone."""
        if self._process is not None:
            self._process.stop(0.0)


class _ChildProcess:
    """One process from its start to its end: its late events never count for the next process."""

    def __init__(self, process: Child, events: Callable[[ChildEvent], None]) -> None:
        self.process = process
        self.job: TrainingJob | None = None
        self.ended = False
        self._events = events
        self._lock = threading.Lock()
        self._expected = False
        self._broke = ""
        self._reader = threading.Thread(target=self._read, name="training-child", daemon=True)
        self._reader.start()

    def submit(self, job: TrainingJob) -> bool:
        """Send the job; False when the process has ended, which an event has said."""
        with self._lock:
            if self.ended:
                return False
            self.job = job
            # if the process has gone, the reader thread reports it, with the job
            with contextlib.suppress(BrokenPipeError):
                write_frame(self.process.stdin, job)
            return True

    def stop(self, grace_s: float) -> None:
        self._expected = True
        if grace_s > 0:
            with self._lock:
                self._close_stdin()
        self.process.end_within(grace_s)
        self._reader.join()

    def _close_stdin(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        answers = self.process.stdout
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
                kinds = (answer.retryable, answer.out_of_memory, answer.unusable)
                return ChildFailed(job, answer.reason, *kinds, tuple(answer.traceback))
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
            return "training was killed (SIGKILL)"
        if returncode < 0:
            return f"training was ended by {signal.Signals(-returncode).name}"
        last = self.process.last_line()
        return f"training exited with status {returncode}" + (f": {last}" if last else "")


def _environment_for_bundles() -> dict[str, str]:
    """Return our environment without secrets and without the paths of the agent's modules."""
    own = ("RENGO_AGENT", "RENGO_SERVER", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}
