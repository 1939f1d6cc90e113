"""What each operation returns: JSON documents of bounded fields, checked at both ends. Pure.

The keys are a contract: ``rengo … --json`` prints these documents. A reader ignores keys that it
does not know, so that an older command line understands a newer server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import msgpack
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from broker.wire.messages import (
    DataReport,
    DeviceHealth,
    DeviceInfo,
    KeyText,
    PartsRef,
    Sha256,
)
from broker.wire.messages.base import Key, Url
from broker.wire.messages.references import StoreHeader, StoreHeaderValue
from fl_server.operations.arguments import Name
from storage.versions.manifest import Manifest, Record, Stage

MAX_ROUNDS = 1_000_000
MAX_DEVICES = 1_000_000
_ROUND_TIMES_SHOWN, _ROUNDS_SHOWN, _DEVICES_SHOWN = 1000, 200, 500
_NAMES_SHOWN, _REASON_SHOWN, _KEYS_SHOWN = 100, 300, 200

Text = Annotated[str, Field(max_length=2000)]
Short = Annotated[str, Field(max_length=256)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Result(BaseModel):
    """What one operation returns."""

    model_config = ConfigDict(frozen=True)

    def document(self) -> dict[str, Any]:
        """Return it as plain data that JSON can hold."""
        return self.model_dump(mode="json")

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Return the result that a document holds.

        Raises:
            ValidationError: it holds no such result.
        """
        # as JSON: strict models, which stand within, take a list for a tuple there alone
        return cls.model_validate_json(json.dumps(document))

    def fitted(self, size_bytes: int) -> Self:
        """Return as much of it as fits into so many bytes; all of it where it cannot be cut."""
        return self


class Listing(Result):
    """A list of rows, which may be brought in pages."""

    rows_key: ClassVar[str]
    """The only field."""
    id_key: ClassVar[str]
    """What tells one row from another."""

    @property
    def rows(self) -> Sequence[Result]:
        """The rows, in order."""
        found: Sequence[Result] = getattr(self, self.rows_key)
        return found


def encoded_bytes(result: Result) -> int:
    """Return how large a result is in a message."""
    packed: bytes = msgpack.packb(result.document())
    return len(packed)


# --- the server and its members ---------------------------------------------------------------


class ServerInfo(Result):
    """What a server is and what it has refused."""

    domain: Name
    epoch: Count
    runs: Count
    devices_online: Count
    refused_messages: Annotated[dict[Short, Count], Field(max_length=128)]


class DeviceRow(Result):
    """What is known of a device: as a member, by its presence, and by its own reports.

    What is not known has no key in the document, but for ``info``, which is null then.
    """

    id: Name
    status: Literal["enrolled", "revoked", "ready", "training", "draining", "offline", "lost"]
    role: Literal["trainer", "evaluator", "-"]
    tasks: Annotated[list[Text], Field(max_length=64)]
    info: DeviceInfo | None
    boot_id: Name | None = None
    bundles: Annotated[list[Text], Field(max_length=64)] | None = None
    group: Annotated[str, Field(max_length=64)] | None = None
    project: Annotated[str, Field(max_length=64)] | None = None
    public_key: KeyText | None = None
    token: Annotated[str, Field(max_length=64)] | None = None
    admitted_by: Annotated[str, Field(max_length=64)] | None = None
    admitted_at: Finite | None = None
    rotating: bool | None = None
    health: DeviceHealth | None = None
    data_report: DataReport | None = None

    @model_serializer(mode="wrap")
    def _without_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {key: each for key, each in found.items() if each is not None or key == "info"}

    def fitted(self, size_bytes: int) -> Self:
        """Return it without what a device says too much of itself."""
        row = self
        for dropped in ("data_report", "health", "info"):
            if encoded_bytes(row) <= size_bytes:
                break
            less: dict[str, Any] = (
                {"info": None, "tasks": []} if dropped == "info" else {dropped: None}
            )
            row = row.model_copy(update=less)
        return row


class DeviceList(Listing):
    """Every device that was ever admitted or heard of, by id."""

    rows_key, id_key = "devices", "id"
    devices: Annotated[list[DeviceRow], Field(max_length=MAX_DEVICES)]


class NewToken(Result):
    """A join token; the server keeps only what it is checked by."""

    token: Annotated[str, Field(max_length=512, repr=False)]
    token_id: Name
    url: Annotated[str, Field(max_length=512)]


class Admitted(Result):
    """Which of the devices are (still) revoked."""

    revoked: Annotated[list[Name], Field(max_length=MAX_DEVICES)]


class Rotation(Result):
    """A password that is being changed; ``online``: whether its device is there to get it now."""

    device_id: Name
    online: bool


class Revoked(Result):
    """The device or join token that was taken out."""

    revoked: Name


class AuditRow(Result):
    """One line of the audit log."""

    number: Count
    at: Finite
    actor: Short
    act: Short
    subject: Short
    detail: Annotated[dict[str, Any], Field(max_length=64)]
    digest: Sha256


class AuditLog(Listing):
    """What was done, the latest first."""

    rows_key, id_key = "entries", "number"
    entries: Annotated[list[AuditRow], Field(max_length=1_000_000)]


class AuditVerified(Result):
    """How many entries the audit log has, each chained to the one before."""

    entries: Count


# --- runs -------------------------------------------------------------------------------------


class RunSummary(Result):
    """A run in one row. Units: ``submitted_at`` is Unix seconds."""

    run_id: Name
    task: Name
    algorithm: Name
    status: Short
    reason: Text
    phase: Short
    round: Count
    attempt: Count
    rounds: Count
    cohort_size: Count
    quorum: Count
    fit: Short
    bundled: bool
    evaluate_on: Short
    evaluate_every: Count
    rounds_completed: Count
    accuracy: Finite | None
    loss: Finite | None
    submitted_at: Finite


class RunList(Listing):
    """Every run, the latest first."""

    rows_key, id_key = "runs", "run_id"
    runs: Annotated[list[RunSummary], Field(max_length=1_000_000)]


class RoundRow(Result):
    """One attempt of a round. ``seconds`` is null while it goes on."""

    round: Count
    attempt: Count
    outcome: Literal["collecting", "committed", "abandoned"]
    reason: Text
    seconds: Finite | None
    invited: Count
    updates: Count
    included: Annotated[list[Name], Field(max_length=MAX_DEVICES)]
    refused: Annotated[dict[Name, Text], Field(max_length=MAX_DEVICES)]
    ordered_steps: Annotated[dict[Name, Count], Field(max_length=MAX_DEVICES)]
    accuracy: Finite | None
    loss: Finite | None

    def fitted(self, size_bytes: int) -> Self:
        """Return it with the first hundred names and the beginnings of reasons."""
        if encoded_bytes(self) <= size_bytes:
            return self
        refused = list(self.refused.items())[:_NAMES_SHOWN]
        return self.model_copy(
            update={
                "reason": self.reason[:_REASON_SHOWN],
                "included": self.included[:_NAMES_SHOWN],
                "refused": {name: reason[:_REASON_SHOWN] for name, reason in refused},
                "ordered_steps": dict(list(self.ordered_steps.items())[:_NAMES_SHOWN]),
            }
        )


class RunDevice(Result):
    """What one device did in a run: ``steps`` of ``full_steps`` are of its latest round."""

    id: Name
    rounds: Count
    bytes_up: Count
    bytes_down: Count
    peak_rss_bytes: Count
    steps: Count
    full_steps: Count
    step_s: Seconds
    profile: Annotated[str, Field(max_length=32)] = ""
    engine: Annotated[str, Field(max_length=32)] = ""


class RunReport(RunSummary):
    """A run with its rounds, devices, refusals, bytes and metrics.

    Units: times are Unix seconds or seconds, sizes bytes.
    """

    seed: Count
    model_key: Key
    model_sha256: Sha256
    wall_s: Finite
    round_s: Annotated[list[Finite], Field(max_length=MAX_ROUNDS)]
    bytes_up: Count
    bytes_down: Count
    history: Annotated[list[RoundRow], Field(max_length=MAX_ROUNDS)]
    devices: Annotated[list[RunDevice], Field(max_length=MAX_DEVICES)]

    def fitted(self, size_bytes: int) -> Self:
        """Return it with the latest rounds, as many as fit, and the first devices."""
        left = size_bytes - encoded_bytes(self.model_copy(update={"history": []}))
        if all((left := left - encoded_bytes(row)) >= 0 for row in reversed(self.history)):
            return self
        short = self.model_copy(
            update={
                "round_s": self.round_s[-_ROUND_TIMES_SHOWN:],
                "devices": self.devices[:_DEVICES_SHOWN],
                "history": [],
            }
        )
        left = size_bytes - encoded_bytes(short)
        rounds: list[RoundRow] = []
        for row in reversed(self.history[-_ROUNDS_SHOWN:]):
            shown = row.fitted(size_bytes // _ROUNDS_SHOWN)
            left -= encoded_bytes(shown) + 1
            if rounds and left < 0:
                break
            rounds.append(shown)
        return short.model_copy(update={"history": rounds[::-1]})


class RunUpload(Result):
    """Where version 0 of a prepared run goes: by one PUT, or in parts where it is large."""

    run_id: Name
    url: Url
    headers: dict[StoreHeader, StoreHeaderValue]
    parts: PartsRef | None = None


class RunStarted(Result):
    """The run that goes on by now."""

    run_id: Name


# --- versions of models -----------------------------------------------------------------------


class ModelRow(Result):
    """A version in one row. Units: ``created_ms`` is Unix milliseconds."""

    name: Short
    run_id: Name
    version: Count
    task: Name
    algorithm: Name
    stage: Stage
    in_production: bool
    tags: Annotated[list[Short], Field(max_length=64)]
    metrics: Annotated[dict[Short, Finite], Field(max_length=1024)]
    sha256: Sha256
    size_bytes: Count
    created_ms: Count
    reason: Annotated[str, Field(max_length=200)]


class ModelList(Listing):
    """Versions, the latest first."""

    rows_key, id_key = "models", "name"
    models: Annotated[list[ModelRow], Field(max_length=1_000_000)]


class ModelDetail(ModelRow):
    """A version with its lineage and its record."""

    manifest: Manifest
    record: Record


class ModelUrl(Result):
    """A presigned GET of a version, and its manifest as the server signed it."""

    name: Short
    url: Url
    key: Key
    sha256: Sha256
    size_bytes: Count
    manifest: Annotated[str, Field(max_length=192 << 10)]


class CanaryBegun(Result):
    """The canary that tries a version."""

    canary_id: Name


class CanaryReport(Result):
    """How a canary stands, or what came of it and why."""

    canary_id: Name
    task: Name
    candidate: Short
    production: Short
    metric: Short
    lower_is_better: bool
    max_drop: Finite
    deadline_s: Seconds
    measured_by: Literal["evaluators", "devices"]
    cohort: Annotated[list[Name], Field(max_length=MAX_DEVICES)]
    cohort_size: Count
    quorum: Count
    state: Short
    pairs: Count
    time_left_s: Seconds
    candidate_mean: Finite | None
    production_mean: Finite | None
    verdict: Literal["", "promoted", "rolled_back", "inconclusive"]
    reason: Text
    problem: Text


class CleanupReport(Result):
    """What was removed, or would be: ``keys`` are those of the objects."""

    objects: Count
    uploads: Count
    dry_run: bool
    bytes: Count
    keys: list[Key]

    def fitted(self, size_bytes: int) -> Self:
        """Return it with the first keys."""
        if encoded_bytes(self) <= size_bytes:
            return self
        return self.model_copy(update={"keys": self.keys[:_KEYS_SHOWN]})


# --- task bundles -----------------------------------------------------------------------------


class BundleRow(Result):
    """A task bundle of the site. Units: times are Unix milliseconds; 0 never expires."""

    name: Short
    task: Name
    version: Short
    sha256: Sha256
    size_bytes: Count
    signer: Annotated[str, Field(max_length=64)]
    created_ms: Count
    expires_ms: Count
    dependencies: Annotated[list[Text], Field(max_length=1000)]
    memory_bytes: Count


class BundleList(Listing):
    """The site's bundles, the latest made first."""

    rows_key, id_key = "bundles", "sha256"
    bundles: Annotated[list[BundleRow], Field(max_length=100_000)]


class BundleUrl(BundleRow):
    """A bundle with a presigned GET of it."""

    url: Url


class BundleUpload(Result):
    """Where a bundle is to be uploaded."""

    url: Url
    headers: dict[StoreHeader, StoreHeaderValue]
