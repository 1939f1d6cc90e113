"""The training child: a process that trains for an agent, so that the agent stays small.

``python -m fl_client.training --task SPEC --engine NAME --device-id ID …`` reads jobs from
standard input and answers on standard output (see ``fl_client.training.frames``). It is kept warm
from round to round. It ends when standard input ends, at once, also in the middle of a job.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, get_args

import algorithms
from fl_client.engines.base import (
    LocalRound,
    LocalUpdate,
    Precision,
    Tally,
    TrainingFailed,
    Tuning,
    no_progress,
)
from fl_client.tasks import load_task
from fl_client.tasks.base import Device
from fl_client.training.checkpoint import FileCheckpoint, Pace
from fl_client.training.frames import (
    Done,
    Failed,
    Frame,
    Ready,
    StepProgress,
    TrainingJob,
    read_job,
    write_frame,
)
from fl_client.training.out_of_memory import ran_short, shrunk
from fl_client.training.participant import Participant
from runtime.errors import (
    ConfigError,
    Corrupt,
    NotFound,
    PeerError,
    RengoError,
    StorageError,
    Unavailable,
)
from runtime.files import sync_folder
from runtime.processes.child import die_with_parent
from storage.updates.info import UpdateInfo
from storage.updates.stream import WrittenUpdate, write_update
from storage.weights import Array, Weights, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from fl_client.datasets.settings import DataPlace

__all__ = ["TrainingJob", "main", "perform"]

_LOG = logging.getLogger(__name__)
_PROGRESS_EVERY_S = 0.5
_MAX_REASON_CHARS = 1500
_OF_A_TRAINING = {
    *("run_id", "round", "attempt", "device_id", "base_sha256", "seed"),
    *("algorithm", "algorithm_settings"),
}


Reporter: TypeAlias = Callable[[float, float | None], None]


class Channel:
    """The two ends of the agent's pipe, taken away from user code.

    What user code prints goes to standard error, and what it reads is empty.
    """

    def __init__(self) -> None:
        self._jobs: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._queue: queue.SimpleQueue[TrainingJob] = queue.SimpleQueue()

    def send(self, frame: Frame) -> None:
        """Answer the agent; when it has gone, end."""
        try:
            write_frame(self._answers, frame)
        except BrokenPipeError:
            os._exit(0)

    def jobs(self) -> Iterator[TrainingJob]:
        """Yield jobs for ever; a thread watches for the end of the stream meanwhile."""
        threading.Thread(target=self._watch, name="jobs", daemon=True).start()
        while True:
            yield self._queue.get()

    def _watch(self) -> None:
        try:
            while (job := read_job(self._jobs)) is not None:
                self._queue.put(job)
        except PeerError as error:
            self.send(Failed(reason=str(error)[:_MAX_REASON_CHARS]))
            os._exit(2)
        # no clean-up: nobody is left to answer, and files are whole or absent
        os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input ends; returns 2 when the task cannot be loaded."""
    channel = Channel()
    die_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    options = _parser().parse_args(argv)
    try:
        task = load_task(options.task)
    # the file is the user's own code: whatever it raises is told to the agent
    except (Exception, SystemExit) as error:  # noqa: BLE001
        channel.send(_failure(error, Path(options.task.rpartition(":")[0] or options.task)))
        return 2
    accelerators = tuple(name for name in options.accelerators.split(",") if name)
    tuning = Tuning(accelerators, options.precision, options.compile, options.loader_threads)
    participant = Participant(
        task, _device(options), options.engine, owns_process=True, tuning=tuning
    )
    channel.send(Ready())
    for job in channel.jobs():
        channel.send(_answer(participant, job, channel))
    return 0


def perform(participant: Participant, job: TrainingJob, progress: Reporter = no_progress) -> Done:
    """Do one job and return how it went; the update's file is on disk then.

    Raises:
        RengoError: why there is no result. Whatever the task's own code raises comes as it is.
    """
    started = time.monotonic()
    weights = _read_weights(Path(job.model_path))
    checkpoint = _checkpoint(participant, job)
    plan = LocalRound(
        algorithm=algorithms.load(job.algorithm, job.algorithm_settings),
        settings=shrunk(participant.task.training.overridden(job.training), job.shrink),
        seed=job.seed,
        round=job.round,
        device_id=job.device_id,
        state=_read_state(job),
        progress=progress,
        checkpoint=checkpoint,
        memory_bytes=job.memory_bytes,
    )
    if job.action == "evaluate":
        count, metrics = participant.evaluate(weights, plan)
        return _done(count, metrics, None, started, plan.tally)
    update = participant.train(weights, plan)
    written = _write_update(job, plan, weights, update)
    _write_state(job, update)
    if checkpoint is not None:
        checkpoint.discard()
    done = _done(update.num_examples, update.metrics, written, started, plan.tally)
    return replace(done, keeps_state=bool(update.state))


def _answer(participant: Participant, job: TrainingJob, channel: Channel) -> Done | Failed:
    try:
        return perform(participant, job, _throttled(channel.send))
    # the task is the user's own code: whatever it raises is told to the agent
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return _failure(error, _task_file(participant))


def _throttled(send: Callable[[Frame], None]) -> Reporter:
    """Return a reporter that sends at most twice a second."""
    last = time.monotonic()

    def report(fraction: float, loss: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY_S:
            last = now
            send(StepProgress(fraction=fraction, loss=loss))

    return report


def _done(
    count: int,
    metrics: dict[str, float],
    written: WrittenUpdate | None,
    started: float,
    tally: Tally,
) -> Done:
    return Done(
        num_examples=count,
        metrics=metrics,
        header_sha256=written.header_sha256 if written else None,
        size_bytes=written.size_bytes if written else 0,
        train_s=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        **asdict(tally),
    )


def _failure(error: BaseException, task_file: Path) -> Failed:
    """Describe an error in a line; its traceback goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    if isinstance(error, RengoError):
        # a file that is damaged or missing can be fetched again; nothing else gets better
        retryable = isinstance(error, StorageError)
        unusable = isinstance(error, TrainingFailed)
        reason = str(error)[:_MAX_REASON_CHARS]
        return Failed(reason=reason, retryable=retryable, unusable=unusable)
    text = f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]
    return Failed(reason=f"{text} ({_place(error, task_file)})", out_of_memory=ran_short(error))


def _place(error: BaseException, task_file: Path) -> str:
    """Return ``file:line`` of the innermost frame in the task's folder, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = task_file.resolve().parent
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    if not frames:
        return str(task_file)
    found = (own or frames)[-1]
    return f"{found.filename}:{found.lineno}"


def _task_file(participant: Participant) -> Path:
    module = sys.modules[type(participant.task).__module__]
    return Path(module.__file__ or ".")


def _read_weights(path: Path) -> Weights:
    try:
        return read_safetensors(path)
    except OSError as error:
        raise NotFound(f"the global model {path} cannot be read: {error.strerror}") from error


def _read_state(job: TrainingJob) -> dict[str, Array]:
    path = Path(job.state_path) if job.state_path else None
    if path is None or not path.exists():
        return {}
    try:
        return read_safetensors(path).arrays()
    except Corrupt as error:
        # it was on the disk before the server counted on it: the card itself has lost it
        _LOG.error("the algorithm's state of this device is lost, it begins anew: %s", error)
        return {}


def _checkpoint(participant: Participant, job: TrainingJob) -> FileCheckpoint | None:
    """Return where the training goes on from, bound to all that it is a function of but the data.

    How a batch is cut into pieces is left out: after an out-of-memory kill it is cut smaller.
    """
    if job.checkpoint_path is None:
        return None
    state = Path(job.state_path or "")
    order = {
        **{name: getattr(job, name) for name in _OF_A_TRAINING},
        "training": {name: job.training[name] for name in job.training if name != "micro_batch"},
        "task": participant.task.name,
        "engine": participant.engine_name,
        "state": hashlib.sha256(state.read_bytes()).hexdigest() if state.is_file() else "",
    }
    pace = Pace(job.checkpoint_every_s, job.checkpoint_bytes)
    return FileCheckpoint(Path(job.checkpoint_path), order, pace)


def _write_update(
    job: TrainingJob, plan: LocalRound, weights: Weights, update: LocalUpdate
) -> WrittenUpdate:
    if job.update_path is None:
        raise ConfigError("a training job needs an update_path")
    info = UpdateInfo(
        run_id=job.run_id,
        round=job.round,
        attempt=job.attempt,
        device_id=job.device_id,
        base_sha256=job.base_sha256,
        layout_hash=weights.layout.hash,
        kind=plan.algorithm.kind,
        num_examples=update.num_examples,
        metrics=update.metrics,
    )
    with _whole_file(Path(job.update_path)) as out:
        return write_update(out, info, update.vector, codec=job.codec)


def _write_state(job: TrainingJob, update: LocalUpdate) -> None:
    """Leave the algorithm's next state beside the current one, or nothing."""
    if job.state_path is None:
        return
    pending = Path(job.next_state_path or f"{job.state_path}.next")
    if not update.state:
        # what an attempt that was never accepted left behind must not become permanent
        pending.unlink(missing_ok=True)
        return
    with _whole_file(pending, forced=True) as out:
        write_safetensors(Weights.from_arrays(update.state), out)


@contextmanager
def _whole_file(path: Path, *, forced: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when the block ends without an error.

    Args:
        forced: it is on the disk then. What the agent checks by a hash before it uses it, and can
            have again, is not forced: cards wear.
    """
    part = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            yield out
            if forced:
                out.flush()
                os.fsync(out.fileno())
        part.replace(path)
        if forced:
            # the name too: the result that counts on the file goes out next
            sync_folder(path.parent)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage: on Linux its figure begins with that of the process that forked us
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _device(options: argparse.Namespace) -> Device:
    return Device(
        id=options.device_id,
        index=options.index,
        count=options.count,
        role=options.role,
        seed=options.data_seed,
        profile=options.profile,
        folder=options.folder,
        data=None if options.data is None else _data_place(options.data),
    )


def _data_place(text: str) -> DataPlace:
    from fl_client.datasets.settings import DataPlace  # noqa: PLC0415  few devices have any

    return DataPlace.model_validate_json(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fl_client.training", description=__doc__)
    parser.add_argument("--task", required=True, help="a task's name, or FILE.py:CLASS")
    parser.add_argument("--engine", required=True, help="torch or numpy")
    parser.add_argument("--device-id", required=True)
    parser.add_argument("--index", type=int, default=0, help="this device among --count")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--role", choices=["trainer", "evaluator"], default="trainer")
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--profile", default="cpu", help="gpu, cpu or pi")
    parser.add_argument("--folder", type=Path, help="where the device's own data lies")
    parser.add_argument("--data", help="what the settings say of the task's data, as JSON")
    parser.add_argument("--accelerators", default="", help="what this process was started for")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--compile", default="", help="a backend of torch.compile")
    parser.add_argument("--loader-threads", type=int, default=0)
    return parser
