"""The training child: a process that trains for an agent, so that the agent stays small.

``python -m fl_client.training --task SPEC --engine NAME --device-id ID …`` reads jobs from
standard input and answers on standard output (see ``fl_client.training.frames``). It is kept warm
from round to round. It ends when standard input ends, at once, also in the middle of a job.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

from fl_client.datasets.device import Device
from fl_client.engines.base import Precision, Tuning
from fl_client.tasks.registry import load_task
from fl_client.training.failure import failure_of, file_of
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
from fl_client.training.participant import Participant
from fl_client.training.work import Reporter, perform
from runtime.disk import met_full_disk
from runtime.errors import (
    PeerError,
)

if TYPE_CHECKING:
    from fl_client.datasets.settings import DataPlace

_LOG = logging.getLogger(__name__)
_PROGRESS_EVERY_S = 0.5
_MAX_REASON_CHARS = 1500


class Channel:
    """The pipes to the agent, which were standard input and output.

    User code cannot reach them: what it prints goes to standard error, and it reads nothing.
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
        """Answer the agent; if the agent has ended, end this process."""
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
    """Do jobs until standard input ends; returns 2 when the task cannot be loaded."""
    channel = Channel()
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


def _answer(participant: Participant, job: TrainingJob, channel: Channel) -> Done | Failed:
    try:
        return perform(participant, job, _throttled(channel.send))
    # the task is the user's own code: whatever it raises is told to the agent
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return _failure(error, file_of(participant.task))


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


def _failure(error: BaseException, task_file: Path) -> Failed:
    """Describe an error in a line; its traceback goes to standard error."""
    _print(error)
    return failure_of(error, task_file)


def _print(error: BaseException) -> None:
    try:
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
    except OSError as unwritten:
        # the log is a file: what is told the agent must not be lost with it
        if not met_full_disk(unwritten):
            raise


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
        partition=options.partition,
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
    parser.add_argument("--partition", default="", help="how a shared data set is divided")
    parser.add_argument("--accelerators", default="", help="what this process was started for")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--compile", default="", help="a backend of torch.compile")
    parser.add_argument("--loader-threads", type=int, default=0)
    return parser
