"""Orders and their results: what the server asks of a device, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.wire.messages.base import (
    Action,
    Attempt,
    Finite,
    Id,
    Message,
    Round,
    Seconds,
    Settings,
    Size,
    Text,
    WireModel,
)
from broker.wire.messages.references import BundleRef, ModelRef, UpdateRef, UploadRef

Metrics = Annotated[dict[Annotated[str, Field(max_length=64)], Finite], Field(max_length=64)]


class Order(Message):
    """The server asks a device to train or to evaluate.

    The same (run, round, attempt, action) again renews the URLs. ``time_left_s`` counts from
    receipt, so that no clock must be right. ``upload`` is None for an evaluation.
    """

    kind = "order"
    channel = ("dev", "task")
    epoch: Annotated[int, Field(ge=0)]
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    task: Text
    algorithm: Text
    algorithm_settings: Settings
    training: Settings
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    model: ModelRef
    upload: UploadRef | None
    time_left_s: Seconds
    bundle: BundleRef | None = None


class Decline(Message):
    """A device does not take an order, and why; one that it takes is answered by its result.

    ``unusable``: it took the order, and what came of it could never count. Else it may be able to
    take a later one.
    """

    kind = "decline"
    channel = ("dev", "ack")
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    reason: Text
    unusable: bool = False


class Progress(Message):
    """How far a device is with its order; never needed for correctness."""

    kind = "progress"
    channel = ("dev", "progress")
    run_id: Id
    round: Round
    attempt: Attempt
    fraction: Annotated[float, Field(ge=0, le=1)]
    loss: Finite | None = None


class Usage(WireModel):
    """What an order cost the device.

    ``train_s`` is the whole job, ``steps`` of it took ``steps_s``; ``full_steps`` are what its
    epochs would give on the device's data. ``micro_batch`` is what batches were cut into, 0 for
    none. All but the first four are 0 where a device does not count them.
    """

    train_s: Seconds = 0.0
    bytes_down: Size = 0
    bytes_up: Size = 0
    peak_rss_bytes: Size = 0
    transfer_s: Seconds = 0.0
    steps: Size = 0
    steps_s: Seconds = 0.0
    full_steps: Size = 0
    micro_batch: Size = 0


class Result(Message):
    """A device's answer to an order; sent until the server's receipt has come."""

    kind = "result"
    channel = ("dev", "result")
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    num_examples: Annotated[int, Field(ge=1, le=1 << 40)]
    metrics: Metrics
    update: UpdateRef | None
    usage: Usage


class Request(Message):
    """A device asks for its order with fresh URLs."""

    kind = "request"
    channel = ("dev", "request")
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt


class Receipt(Message):
    """The server's last word on a result, sent after it was journalled.

    accepted: counted. late: another set was aggregated. refused: ``reason`` says why. unknown: no
    such run or round here.
    """

    kind = "receipt"
    channel = ("dev", "receipt")
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    status: Literal["accepted", "late", "refused", "unknown"]
    reason: Text = ""
