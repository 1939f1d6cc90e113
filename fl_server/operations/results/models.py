"""What operations on versions of models, canaries and the store return. Pure."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from broker.wire.messages import (
    Sha256,
)
from broker.wire.messages.base import Key, Url
from fl_server.operations.arguments import Name
from fl_server.operations.results.base import (
    MAX_DEVICES,
    Count,
    Finite,
    Listing,
    OperationResult,
    Seconds,
    Short,
    Text,
    encoded_bytes,
)
from storage.versions.manifest import Manifest, Record, Stage

_KEYS_SHOWN = 200


class ModelRow(OperationResult):
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
    headline: Short = "accuracy"
    sha256: Sha256
    size_bytes: Count
    created_ms: Count
    reason: Annotated[str, Field(max_length=200)]


class ModelList(Listing):
    """Versions, the latest first."""

    rows_key, id_key = "models", "name"
    models: Annotated[list[ModelRow], Field(max_length=1_000_000)]


class SetAside(OperationResult):
    """A version with a document that the store does not give, or not as it was written."""

    name: Short
    reason: Text


class SetAsideList(Listing):
    """The versions that are set aside, by name."""

    rows_key, id_key = "set_aside", "name"
    set_aside: Annotated[list[SetAside], Field(max_length=1_000_000)]


class ModelDetail(ModelRow):
    """A version with its lineage and its record."""

    manifest: Manifest
    record: Record


class ModelUrl(OperationResult):
    """A presigned GET of a version, and its manifest as the server signed it."""

    name: Short
    url: Url
    key: Key
    sha256: Sha256
    size_bytes: Count
    manifest: Annotated[str, Field(max_length=192 << 10)]


class CanaryBegun(OperationResult):
    """The canary that tries a version."""

    canary_id: Name


class CanaryReport(OperationResult):
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


class CleanupReport(OperationResult):
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
