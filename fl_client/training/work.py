"""One job of the training child: what it reads, does, and leaves on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

import algorithms
from algorithms.base import UPDATE
from algorithms.transforms import load_all as load_transforms
from broker.wire.limits import MAX_EXCHANGE_BYTES
from fl_client.models.local_round import LocalRound, LocalUpdate, Tally, no_progress
from fl_client.tasks.exchange import ExchangeStep
from fl_client.training.checkpoint import FileCheckpoint, Pace
from fl_client.training.frames import Done, TrainingJob
from fl_client.training.out_of_memory import shrunk
from fl_client.training.participant import Participant
from fl_client.training.transforming import codec_of
from runtime.bounds import MAX_EXAMPLES
from runtime.errors import ConfigError, Corrupt, NotFound, Unavailable
from runtime.files import sync_folder
from storage.updates.info import Section, UpdateInfo
from storage.updates.stream import WrittenUpdate, write_update
from storage.weights import Array, Vector, Weights, read_safetensors, write_safetensors

_LOG = logging.getLogger(__name__)
_OF_A_TRAINING = {
    *("run_id", "round", "attempt", "device_id", "base_sha256", "seed"),
    *("algorithm", "algorithm_settings"),
}

Reporter: TypeAlias = Callable[[float, float | None], None]


def perform(participant: Participant, job: TrainingJob, progress: Reporter = no_progress) -> Done:
    """Do one job and return how it went; the update's file is on disk then.

    Raises:
        RengoError: why there is no result. Whatever the task's own code raises comes as it is.
    """
    if job.action == "exchange":
        return _exchange(participant, job)
    started = time.monotonic()
    weights = _read_weights(job)
    checkpoint = _checkpoint(participant, job)
    plan = LocalRound(
        algorithm=algorithms.load(job.algorithm, job.algorithm_settings),
        settings=shrunk(participant.task.training.overridden(job.training), job.shrink),
        seed=job.seed,
        round=job.round,
        device_id=job.device_id,
        width=job.width,
        transforms=load_transforms(job.transforms),
        state=_read_state(job),
        vectors=_read_vectors(job),
        scalars=job.scalars,
        progress=progress,
        checkpoint=checkpoint,
        memory_bytes=job.memory_bytes,
    )
    if job.action == "evaluate":
        count, metrics = participant.evaluate(weights, plan)
        if not 1 <= count <= MAX_EXAMPLES:
            raise ConfigError(
                f"task {participant.task.name}: evaluate saw {count} examples; a device reports "
                f"at least 1 and at most {MAX_EXAMPLES}"
            )
        return _done(count, metrics, None, started, plan.tally)
    update = participant.train(weights, plan)
    written = _write_update(job, plan, weights, update)
    _write_state(job, update.state)
    if checkpoint is not None:
        checkpoint.discard()
    done = _done(update.num_examples, update.metrics, written, started, plan.tally)
    return replace(done, keeps_state=bool(update.state))


def _exchange(participant: Participant, job: TrainingJob) -> Done:
    started = time.monotonic()
    step = ExchangeStep(
        run_id=job.run_id,
        round=job.round,
        attempt=job.attempt,
        phase=job.phase,
        seq=job.seq,
        payload=job.payload,
        seed=job.seed,
        weights=None if job.model_path is None else _read_weights(job),
        state=_read_state(job),
    )
    answer = participant.exchange(step)
    header_sha256, payload = None, answer.payload
    if job.update_path is not None:
        header_sha256, payload = hashlib.sha256(answer.payload).hexdigest(), b""
        with _whole_file(Path(job.update_path)) as out:
            out.write(answer.payload)
    elif len(payload) > MAX_EXCHANGE_BYTES:
        raise ConfigError(
            f"task {participant.task.name}: exchange gave a payload of {len(payload)} bytes in "
            f"phase {job.phase!r}; a message holds at most {MAX_EXCHANGE_BYTES}, and larger "
            "answers need an order with an upload"
        )
    _write_state(job, answer.state)
    return Done(
        num_examples=0,
        metrics=answer.metrics,
        header_sha256=header_sha256,
        size_bytes=0 if header_sha256 is None else len(answer.payload),
        train_s=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        keeps_state=bool(answer.state),
        payload=payload,
    )


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


def _read_weights(job: TrainingJob) -> Weights:
    if job.model_path is None:
        raise ConfigError(f"a job to {job.action} needs a model_path")
    try:
        return read_safetensors(Path(job.model_path))
    except OSError as error:
        raise NotFound(
            f"the global model {job.model_path} cannot be read: {error.strerror}"
        ) from error


def _read_state(job: TrainingJob) -> dict[str, Array]:
    path = Path(job.state_path) if job.state_path else None
    if path is None or not path.exists():
        return {}
    try:
        return read_safetensors(path).arrays()
    except Corrupt as error:
        # it was on the disk before the server counted on it: the medium itself has lost it
        _LOG.error("the run's state on this device is lost, it begins anew: %s", error)
        return {}


def _checkpoint(participant: Participant, job: TrainingJob) -> FileCheckpoint | None:
    """Return the training's checkpoint, bound to all that the training depends on but the data.

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
    vectors = {**update.vectors, **_as_vectors(update.scalars)}
    if update.vector is not None:
        vectors = {UPDATE: update.vector, **vectors}
    sections = tuple(Section(name, vector.size) for name, vector in vectors.items())
    if list(vectors) == [UPDATE]:
        sections = ()  # as servers of before know it
    info = UpdateInfo(
        run_id=job.run_id,
        round=job.round,
        attempt=job.attempt,
        device_id=job.device_id,
        base_sha256=job.base_sha256,
        layout_hash=weights.layout.hash,
        kind="delta",
        num_examples=update.num_examples,
        metrics=update.metrics,
        sections=sections,
    )
    with _whole_file(Path(job.update_path)) as out:
        return write_update(out, info, *vectors.values(), codec=codec_of(plan) or "float32")


def _as_vectors(scalars: Mapping[str, float]) -> dict[str, Vector]:
    return {name: np.array([value], np.float32) for name, value in scalars.items()}


def _read_vectors(job: TrainingJob) -> dict[str, Vector]:
    """Return the algorithm's server vectors that came with the order."""
    if job.vectors_path is None:
        return {}
    vectors = read_safetensors(Path(job.vectors_path))
    return {name: array.reshape(-1) for name, array in vectors.arrays().items()}


def _write_state(job: TrainingJob, state: Mapping[str, NDArray[Any]]) -> None:
    """Leave the next state beside the current one, or nothing."""
    if job.state_path is None:
        return
    pending = Path(job.next_state_path or f"{job.state_path}.next")
    if not state:
        # what an attempt that was never accepted left behind must not become permanent
        pending.unlink(missing_ok=True)
        return
    with _whole_file(pending, forced=True) as out:
        write_safetensors(Weights.from_arrays(state), out)


@contextmanager
def _whole_file(path: Path, *, forced: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when the block ends without an error.

    Args:
        forced: whether it is forced to the disk, which wears a flash card. A file that the agent
            verifies by a hash before it uses it, and can get again, need not be.
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
