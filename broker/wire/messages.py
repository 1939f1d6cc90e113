"""The messages: signed msgpack on the wire, strictly validated, bounded, unknown kinds refused.

An envelope carries what MQTT 5 properties would (MQTT 3.1.1 has none) and one body. A body's class
is found in a fixed table by ``kind``; nothing from the wire is ever an import path. Before the
envelope stands its sender's signature over the topic and the envelope, so that a broker can delay
a message or drop it, but not forge one, alter one or bring one to another place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.wire.limits import MAX_PAYLOAD_BYTES, MessageTooLarge
from broker.wire.topics import Address
from runtime.errors import ConfigError, PeerError
from runtime.signing import SIGNATURE_BYTES, PublicKey, SecretKey

SCHEMA_VERSION = 1
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES
MAX_SEALED_BYTES = 8192
MAX_MANIFEST_BYTES = 192 << 10
MAX_NESTING = 16
MAX_PARTS = 400

Id = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sealed = Annotated[bytes, Field(max_length=MAX_SEALED_BYTES)]
Text = Annotated[str, Field(max_length=2000)]
Url = Annotated[str, Field(max_length=4096)]
Key = Annotated[str, Field(max_length=512)]
StoreHeader = Annotated[str, Field(pattern=r"^x-amz-[a-z0-9-]{1,64}$")]
StoreHeaderValue = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$")]
Round = Annotated[int, Field(ge=0, le=1_000_000)]
Attempt = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=0, le=1 << 40)]
# a list where it is decoded, so the tuple is taken leniently; each end stays strict
ByteRange = Annotated[tuple[Size, Size], Field(strict=False)]
Seconds = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Metrics = Annotated[dict[Annotated[str, Field(max_length=64)], Finite], Field(max_length=64)]
Settings = Annotated[dict[str, Any], Field(max_length=128)]
Action = Literal["train", "evaluate"]
RunStatus = Literal["waiting", "running", "paused", "completed", "stopped", "failed"]


class Message(BaseModel):
    """The root of every body. ``kind`` names it on the wire, ``leaf`` where it may travel."""

    # built when first used: a device needs a third of them
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
    kind: ClassVar[str]
    place: ClassVar[tuple[str, str]]


class ServerState(Message):
    """The server's retained presence. ``epoch`` grows by one at every start of the server."""

    kind = "server_state"
    place = ("server", "state")
    status: Literal["online", "offline"]
    epoch: Annotated[int, Field(ge=0)]


class DeviceState(Message):
    """A device's retained presence; the will carries the boot id of its own connection.

    ``tasks`` are those that are installed, ``bundles`` those that it may take as a bundle, or "*".
    """

    kind = "device_state"
    place = ("dev", "state")
    status: Literal["ready", "training", "draining", "offline", "lost"]
    boot_id: Id
    role: Literal["trainer", "evaluator"] = "trainer"
    tasks: Annotated[list[Text], Field(max_length=64)] = []
    bundles: Annotated[list[Text], Field(max_length=64)] = []

    def takes(self, task: str, *, bundled: bool) -> bool:
        """Whether the device has a task, or takes it as a bundle where the run has one."""
        return task in self.tasks or (bundled and not {task, "*"}.isdisjoint(self.bundles))


class Compute(Message):
    """What a device's orders run on, and the precision of its products there.

    ``capability`` is CUDA's compute capability or ROCm's target.
    """

    kind = "compute"
    place = ("", "")
    name: Text
    model: Text = ""
    memory_bytes: Size = 0
    capability: Text = ""
    precision: Text = ""


class DeviceInfo(Message):
    """What a device can do, retained.

    ``accelerators`` are those of its machine, ``compute`` what it uses.
    """

    kind = "device_info"
    place = ("dev", "info")
    role: Literal["trainer", "evaluator"]
    profile: Text
    engine: Text
    cpus: Annotated[int, Field(ge=0)]
    ram_bytes: Size
    accelerators: Annotated[list[Text], Field(max_length=64)]
    versions: Annotated[dict[str, Text], Field(max_length=64)]
    tasks: Annotated[list[Text], Field(max_length=64)]
    labels: Annotated[dict[str, Text], Field(max_length=64)] = {}
    compute: Annotated[list[Compute], Field(max_length=64)] = []


class DeviceHealth(Message):
    """How a device's machine is, retained. None is unknown: not every machine can tell everything.

    ``load`` is of one minute for each CPU, ``disk_wear_percent`` what the medium says is used of
    its life, ``link_dbm`` the signal of Wi-Fi. ``throttled`` names what holds the processor back
    now. ``paused`` is why no training goes on, empty when it may. ``data_left_bytes`` may still go
    over the network today.
    """

    kind = "health"
    place = ("dev", "health")
    temperature_c: Finite | None = None
    throttled: Annotated[list[Id], Field(max_length=8)] | None = None
    under_voltage: bool | None = None
    load: Finite | None = None
    memory_available_bytes: Size | None = None
    disk_free_bytes: Size | None = None
    disk_wear_percent: Annotated[int, Field(ge=0, le=200)] | None = None
    link: Annotated[str, Field(max_length=64)] | None = None
    link_dbm: Finite | None = None
    metered: bool | None = None
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    on_battery: bool | None = None
    clock_synced: bool | None = None
    paused: Text = ""
    data_left_bytes: Size | None = None


class Bar(Message):
    """A class or a range of values, and how many examples lie in it."""

    kind = "bar"
    place = ("", "")
    name: Annotated[str, Field(max_length=64)]
    count: Size


class Quantity(Message):
    """The label or a feature of a device's data: a histogram, and how much it has changed.

    PSI is against the reference of the first training, and against the report before;
    ``by_chance`` is what as few examples may give without any change. None: no reference yet.
    """

    kind = "quantity"
    place = ("", "")
    name: Annotated[str, Field(max_length=80)]
    bars: Annotated[list[Bar], Field(max_length=16)]
    psi_reference: Finite | None = None
    psi_previous: Finite | None = None
    by_chance: Finite | None = None


class TaskData(Message):
    """What may be told of one task's data: every count is a multiple of ``min_count``."""

    kind = "task_data"
    place = ("", "")
    task: Id
    min_count: Annotated[int, Field(ge=1)]
    examples: Size
    held_out: Size
    refused: Size
    quantities: Annotated[list[Quantity], Field(max_length=16)]


class DataReport(Message):
    """How a device's own data are, retained: aggregates, nothing of a single example."""

    kind = "data_report"
    place = ("dev", "data")
    tasks: Annotated[list[TaskData], Field(max_length=16)]


class Patch(Message):
    """Who holds the file ``base_sha256`` needs only these byte ranges ``[start, end)`` of another.

    The ranges are in order and apart; what they leave out is the same in both files.
    """

    kind = "patch"
    place = ("", "")
    base_sha256: Sha256
    changed: Annotated[list[ByteRange], Field(max_length=256)]


class ModelRef(Message):
    """A model in the store, by a presigned URL. ``sha256`` and ``size_bytes`` are of the file.

    ``patches`` say how it differs from versions before it, where that saves a download.
    """

    kind = "model_ref"
    place = ("", "")
    url: Url
    key: Key
    sha256: Sha256
    size_bytes: Size
    patches: Annotated[list[Patch], Field(max_length=4)] = []


class PartsRef(Message):
    """Where a large file goes in parts: presigned PUTs in order, and a POST that completes it.

    Every part but the last has ``part_bytes``. The same ``upload_id`` again means that the parts
    that have arrived still count.
    """

    kind = "parts_ref"
    place = ("", "")
    upload_id: Annotated[str, Field(min_length=1, max_length=2048)]
    part_bytes: Annotated[int, Field(ge=1, le=5 << 30)]
    urls: Annotated[list[Url], Field(min_length=1, max_length=MAX_PARTS)]
    complete_url: Url


class UploadRef(Message):
    """Where an update goes: a presigned PUT, with the headers that are signed into it.

    A large one goes by ``parts``, where they are given.
    """

    kind = "upload_ref"
    place = ("", "")
    url: Url
    key: Key
    headers: Annotated[dict[StoreHeader, StoreHeaderValue], Field(max_length=4)] = {}
    parts: PartsRef | None = None


class BundleRef(Message):
    """A task bundle in the store, by a presigned URL, for whoever has not the task installed."""

    kind = "bundle_ref"
    place = ("", "")
    url: Url
    sha256: Sha256
    size_bytes: Size


class Order(Message):
    """The server asks a device to train or to evaluate.

    The same (run, round, attempt, action) again renews the URLs. ``time_left_s`` counts from
    receipt, so that no clock must be right. ``upload`` is None for an evaluation.
    """

    kind = "order"
    place = ("dev", "task")
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
    place = ("dev", "ack")
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    reason: Text
    unusable: bool = False


class Progress(Message):
    """How far a device is with its order; never needed for correctness."""

    kind = "progress"
    place = ("dev", "progress")
    run_id: Id
    round: Round
    attempt: Attempt
    fraction: Annotated[float, Field(ge=0, le=1)]
    loss: Finite | None = None


class UpdateRef(Message):
    """An uploaded update: its object, size, and the sha256 of its header."""

    kind = "update_ref"
    place = ("", "")
    key: Key
    size_bytes: Size
    header_sha256: Sha256


class Usage(Message):
    """What an order cost the device.

    ``train_s`` is the whole job, ``steps`` of it took ``steps_s``; ``full_steps`` are what its
    epochs would give on the device's data. ``micro_batch`` is what batches were cut into, 0 for
    none. All but the first four are 0 where a device does not count them.
    """

    kind = "usage"
    place = ("", "")
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
    place = ("dev", "result")
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
    place = ("dev", "request")
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
    place = ("dev", "receipt")
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    status: Literal["accepted", "late", "refused", "unknown"]
    reason: Text = ""


class NewPassword(Message):
    """The server gives a device another password, sealed for its key; ``rotation`` counts them."""

    kind = "new_password"
    place = ("dev", "task")
    rotation: Annotated[int, Field(ge=1, le=1_000_000)]
    sealed: Sealed


class PasswordKept(Message):
    """A device has the new password on disk: the broker may take it from now on."""

    kind = "password_kept"
    place = ("dev", "ack")
    rotation: Annotated[int, Field(ge=1, le=1_000_000)]


class Claim(Message):
    """Whoever holds a join token asks to become a device; signed by the token's key.

    ``public_key`` is the new device's own, ``name`` the id that it wishes for, if any.
    """

    kind = "claim"
    place = ("enroll", "")
    public_key: KeyText
    name: Id | Literal[""]


class ClaimAnswer(Message):
    """The server's answer to the claim of ``public_key``, which alone can read ``sealed``."""

    kind = "claim_answer"
    place = ("enroll", "result")
    public_key: KeyText
    admitted: bool
    reason: Text = ""
    sealed: Sealed = b""


class RunDocument(Message):
    """All that a late joiner or a dashboard needs of a run, retained."""

    kind = "run_document"
    place = ("run", "state")
    run_id: Id
    task: Text
    algorithm: Text
    status: RunStatus
    reason: Text = ""
    round: Round
    attempt: Annotated[int, Field(ge=0)]
    rounds: Round
    epoch: Annotated[int, Field(ge=0)]
    phase: Text
    deadline_s: Seconds
    cohort: Annotated[list[Id], Field(max_length=2000)]
    answered: Annotated[list[Id], Field(max_length=2000)]
    model_sha256: Sha256 | Literal[""]
    accuracy: Finite | None
    loss: Finite | None


class RunEvent(Message):
    """One line of a run's live stream. ``name`` is the fact's name, in the past tense."""

    kind = "run_event"
    place = ("run", "events")
    run_id: Id
    name: Annotated[str, Field(max_length=64)]
    round: Round
    attempt: Annotated[int, Field(ge=0)]
    detail: Settings


class ProductionDocument(Message):
    """Which version of a task is in production, retained; empty where none is.

    ``manifest`` is the version's signed file. ``promotion`` grows with every promotion and every
    rollback: who has followed a higher one refuses a lower one, which somebody has replayed.
    """

    kind = "production"
    place = ("model", "state")
    task: Id
    manifest: Annotated[bytes, Field(max_length=MAX_MANIFEST_BYTES)]
    promotion: Annotated[int, Field(ge=1, lt=1 << 53)]
    epoch: Annotated[int, Field(ge=0)]


class ModelRequest(Message):
    """A device asks for a URL of the model that is in production."""

    kind = "model_request"
    place = ("dev", "request")
    task: Id
    sha256: Sha256


class ModelOffer(Message):
    """The answer; there is none when another version is in production by now."""

    kind = "model_offer"
    place = ("dev", "task")
    task: Id
    model: ModelRef


class OperatorRequest(Message):
    """An operator's command line asks for one operation."""

    kind = "operator_request"
    place = ("op", "request")
    request_id: Id
    operation: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    arguments: Settings


class OperatorReply(Message):
    """The answer; ``error`` is empty on success, ``exit_code`` is the command line's."""

    kind = "operator_reply"
    place = ("op", "reply")
    request_id: Id
    result: Settings
    error: Text = ""
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0


KINDS: dict[str, type[Message]] = {
    message.kind: message
    for message in (
        ServerState,
        DeviceState,
        DeviceInfo,
        DeviceHealth,
        DataReport,
        Order,
        Decline,
        Progress,
        Result,
        Request,
        Receipt,
        NewPassword,
        PasswordKept,
        Claim,
        ClaimAnswer,
        RunDocument,
        RunEvent,
        ProductionDocument,
        ModelRequest,
        ModelOffer,
        OperatorRequest,
        OperatorReply,
    )
}


class Envelope(BaseModel):
    """What surrounds every body.

    ``sent_ms`` is the sender's clock: for people, and the server's for whether a bundle's signature
    has expired. Nothing else depends on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    v: int
    kind: Annotated[str, Field(max_length=64)]
    sender: Id
    boot_id: Id
    seq: Annotated[int, Field(ge=0, lt=1 << 63)]
    sent_ms: Annotated[int, Field(ge=0, lt=1 << 63)]
    ttl_s: Seconds | None = None
    body: dict[str, Any]


def encode(
    message: Message,
    address: Address,
    key: SecretKey,
    *,
    sender: str,
    boot_id: str,
    seq: int,
    sent_ms: int,
) -> bytes:
    """Return the wire form of a message that goes to ``address``, signed by ``key``.

    Raises:
        MessageTooLarge: it is larger than a message may be.
        ConfigError: a free setting holds what msgpack has no form for, as a date.
    """
    fields = {
        "v": SCHEMA_VERSION,
        "kind": message.kind,
        "sender": sender,
        "boot_id": boot_id,
        "seq": seq,
        "sent_ms": sent_ms,
        "ttl_s": None,
        "body": message.model_dump(),
    }
    try:
        envelope: bytes = msgpack.packb(fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"a {message.kind} message cannot hold this: {error}") from error
    size = SIGNATURE_BYTES + len(envelope)
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"a {message.kind} message of {size} bytes exceeds {MAX_MESSAGE_BYTES}"
        )
    return key.sign(_signed(address, envelope)) + envelope


def decode(payload: bytes, address: Address, key: PublicKey | None) -> tuple[Envelope, Message]:
    """Return the envelope and the validated body of a message that came to ``address``.

    Args:
        payload: the wire form.
        address: the topic that it came on.
        key: the key of whoever may write there; None where the reader only shows it to a person
            and nobody's key is known.

    Raises:
        PeerError: oversized, not signed by ``key``, malformed, of another schema version, of an
            unknown kind, in the wrong place, or with another sender than its topic says;
            ``reason`` tells which.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise PeerError(
            f"a message of {len(payload)} bytes exceeds {MAX_MESSAGE_BYTES}", "oversize"
        )
    signature, content = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
    if key is not None:
        key.verify(signature, _signed(address, content))
    envelope = _envelope(content)
    if envelope.v != SCHEMA_VERSION:
        raise PeerError(
            f"schema version {envelope.v}, this side speaks {SCHEMA_VERSION}", "schema_version"
        )
    message_type = KINDS.get(envelope.kind)
    if message_type is None:
        raise PeerError(f"unknown kind {envelope.kind!r}", "unknown_kind")
    if message_type.place != (address.area, address.leaf):
        raise PeerError(f"a {envelope.kind} message does not belong on {address}", "wrong_place")
    says = envelope.sender
    if _written_by_owner(address) and says != address.id:
        raise PeerError(f"sender {says!r} wrote on the topic of {address.id!r}", "wrong_sender")
    try:
        return envelope, message_type.model_validate(envelope.body)
    except ValidationError as error:
        raise PeerError(f"{envelope.kind}: {first_problem(error)}", "body") from error


def _signed(address: Address, envelope: bytes) -> bytes:
    """Return what a signature covers: the topic, which no envelope can continue, and all else."""
    return address.topic.encode() + b"\0" + envelope


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a validation, with its key, without the offending value."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "body"
    return f"{where}: {problem['msg']}"


def _envelope(content: bytes) -> Envelope:
    try:
        raw = msgpack.unpackb(
            content,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique_pairs,
            max_ext_len=0,
        )
    except PeerError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError(f"not msgpack: {type(error).__name__}", "not_msgpack") from error
    _require_shallow(raw)
    try:
        return Envelope.model_validate(raw)
    except ValidationError as error:
        raise PeerError(f"envelope: {first_problem(error)}", "envelope") from error


def _unique_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise PeerError("a key stands twice in one map", "duplicate_key")
    return unique


def _require_shallow(value: Any, depth: int = 0) -> None:
    if depth > MAX_NESTING:
        raise PeerError(f"nested deeper than {MAX_NESTING}", "too_deep")
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, list):
        children = value
    for child in children:
        _require_shallow(child, depth + 1)


def _written_by_owner(address: Address) -> bool:
    """Whether the level after the area names the writer, not the reader."""
    match address.area:
        case "dev":
            return address.leaf not in {"task", "receipt"}
        case "op":
            return address.leaf == "request"
        case "enroll":
            return address.leaf == ""
    return False
