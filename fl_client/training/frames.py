"""The messages between an agent and its training child, and their frames.

A frame is its length (u32, big-endian) and a msgpack map. Light: no numpy, no torch.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import msgpack

from broker.wire.limits import MAX_EXCHANGE_BYTES
from runtime.bounds import (
    MAX_EXAMPLES,
    MAX_FINITE,
    MAX_METRIC_NAME,
    MAX_METRICS,
    MAX_SECONDS,
    MAX_SIZE,
    MAX_TRACEBACK_LINE,
    MAX_TRACEBACK_LINES,
)
from runtime.errors import PeerError
from runtime.records import Bounds, FieldError, build

MAX_FRAME_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
FrameT = TypeVar("FrameT", bound="Frame")
_Count = Annotated[int, Bounds(least=0)]
_Size = Annotated[int, Bounds(least=0, most=MAX_SIZE)]
_Seconds = Annotated[float, Bounds(least=0, most=MAX_SECONDS)]
_Metrics = Annotated[
    dict[
        Annotated[str, Bounds(length=MAX_METRIC_NAME)],
        Annotated[float, Bounds(least=-MAX_FINITE, most=MAX_FINITE)],
    ],
    Bounds(length=MAX_METRICS),
]
_Traceback = Annotated[
    list[Annotated[str, Bounds(length=MAX_TRACEBACK_LINE)]], Bounds(length=MAX_TRACEBACK_LINES)
]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One order for the training child: train, evaluate on the held-out split, or exchange.

    Attributes:
        phase: of an exchange, as ``seq`` and ``payload``: what its flow says.
        width: how much of the model is trained; below 1 the model is a part.
        model_path: the global model, a safetensors file that is already here; None: an exchange
            without a model.
        base_sha256: the hash of that file, for the update's header.
        update_path: where the update goes, or the answer to an exchange whose order has an upload;
            None for an evaluation.
        vectors_path: the algorithm's server vectors, where its clients get some.
        scalars: its server scalars.
        state_path: the algorithm's client state.
        next_state_path: where the state after this training goes, for the caller to move in place
            once the update is accepted; None: ``state_path + ".next"``.
        shrink: how often to quarter the micro batch, because memory ran short before.
        memory_bytes: what the training process may hold; 0: no limit.
        checkpoint_path: where the training goes on from after a cut; None: it begins anew.
        checkpoint_every_s: the shortest pause between two checkpoints.
        checkpoint_bytes: what the round's checkpoints may write in all.
    """

    kind: Literal["job"] = "job"
    action: Literal["train", "evaluate", "exchange"] = "train"
    run_id: str
    round: _Count
    attempt: _Count
    phase: str = ""
    seq: _Count = 0
    payload: Annotated[bytes, Bounds(length=MAX_EXCHANGE_BYTES)] = b""
    device_id: str
    algorithm: str = "fedavg"
    algorithm_settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seed: _Count = 0
    width: Annotated[float, Bounds(above=0, most=1)] = 1.0
    model_path: str | None = None
    base_sha256: str = ""
    update_path: str | None = None
    vectors_path: str | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    state_path: str | None = None
    next_state_path: str | None = None
    transforms: list[dict[str, Any]] = field(default_factory=list)
    memory_bytes: _Count = 0
    shrink: Annotated[int, Bounds(least=0, most=32)] = 0
    checkpoint_path: str | None = None
    checkpoint_every_s: float = 60.0
    checkpoint_bytes: _Count = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The child has loaded its task and waits for a job."""

    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """How far the job is; ``loss`` is the mean of the last whole epoch."""

    kind: Literal["progress"] = "progress"
    fraction: float
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """The job's end; of an evaluation there is no file, and the size is 0.

    ``header_sha256`` is of an update's header, or of the whole answer to an exchange, where that
    is a file; else the answer is ``payload``. ``num_examples`` of an exchange is 0. ``steps`` to
    ``micro_batch`` are the training's tally; ``keeps_state`` says that the algorithm or the task
    left a state.
    """

    kind: Literal["done"] = "done"
    num_examples: Annotated[int, Bounds(least=0, most=MAX_EXAMPLES)]
    metrics: _Metrics
    header_sha256: str | None = None
    size_bytes: _Size = 0
    train_s: _Seconds
    peak_rss_bytes: _Size
    steps: _Size = 0
    steps_s: _Seconds = 0.0
    full_steps: _Size = 0
    micro_batch: _Size = 0
    keeps_state: bool = False
    payload: Annotated[bytes, Bounds(length=MAX_EXCHANGE_BYTES)] = b""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job failed; ``retryable`` says whether the same job may succeed if it is repeated.

    ``unusable``: the job was done, and its update could never count. ``traceback``: the end of that
    of an error that the task's own code raised.
    """

    kind: Literal["failed"] = "failed"
    reason: Annotated[str, Bounds(length=2000)]
    retryable: bool = False
    out_of_memory: bool = False
    unusable: bool = False
    traceback: _Traceback = field(default_factory=list)


Answer = Ready | StepProgress | Done | Failed
Frame = TrainingJob | Answer
"""Everything that travels between the two; ``kind`` says which it is."""

_ANSWERS: dict[str, type[Ready] | type[StepProgress] | type[Done] | type[Failed]] = {
    "ready": Ready,
    "progress": StepProgress,
    "done": Done,
    "failed": Failed,
}


def write_frame(stream: BinaryIO, frame: Frame) -> None:
    """Write one frame; raises BrokenPipeError when the other side has gone."""
    data = msgpack.packb(asdict(frame))
    if len(data) > MAX_FRAME_BYTES:
        raise PeerError(f"a frame of {len(data)} bytes, at most {MAX_FRAME_BYTES}")
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_job(stream: BinaryIO) -> TrainingJob | None:
    """Return the next job, None at the end of the stream; PeerError for anything else."""
    fields = _read_frame(stream)
    return None if fields is None else _validated(TrainingJob, fields)


def read_answer(stream: BinaryIO) -> Answer | None:
    """Return the child's next answer, None at the end of the stream; PeerError otherwise."""
    fields = _read_frame(stream)
    if fields is None:
        return None
    answer = _ANSWERS.get(str(fields.get("kind")))
    if answer is None:
        raise PeerError(f"the training child sent a frame of kind {fields.get('kind')!r}")
    return _validated(answer, fields)


def _validated(model: type[FrameT], fields: dict[str, Any]) -> FrameT:
    try:
        return build(model, fields)
    except FieldError as error:
        raise PeerError(f"malformed {model.__name__}: {error}") from error


def _read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_FRAME_BYTES:
        raise PeerError(f"a frame of {length} bytes, at most {MAX_FRAME_BYTES}")
    data = stream.read(length)
    if len(data) < length:
        return None
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise PeerError("a frame that is not msgpack") from error
    if not isinstance(fields, dict):
        raise PeerError("a frame that is not a map")
    return fields
