"""The signed documents of a version of the global model: its manifest and its record. Pure.

A file is JSON in JSON: ``{"signed": "<the document>", "signature": "<hex>"}``. The signature covers
a purpose and the exact characters of the document, so that no document has to be encoded again to
be verified.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import Corrupt, PeerError
from runtime.security.signing import PublicKey, SecretKey
from storage.updates.header import Name, Sha256

MAX_DOCUMENT_BYTES = 192 << 10
"""Fits into one message with its envelope."""

Stage = Literal["none", "candidate", "production", "archived"]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
# what is written lies within narrower bounds, but signed records outlive the bounds of their time
Metrics = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[float, Field(allow_inf_nan=False)],
    ],
    Field(max_length=64),
]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Reason = Annotated[str, Field(max_length=2000)]
MAX_COHORT = 2000


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


class Signed(_Document):
    """A document that the server signs for one purpose."""

    @classmethod
    def purpose(cls) -> bytes:
        """The prefix under the signature that says which kind of document it is."""
        return f"rengo-{cls.__name__.lower()}-1\0".encode()

    def encode(self, key: SecretKey) -> bytes:
        """Return the signed file.

        Raises:
            Corrupt: it is larger than a document may be.
        """
        text = self.model_dump_json()
        signature = key.sign(self.purpose() + text.encode())
        data = json.dumps({"signed": text, "signature": signature.hex()}).encode()
        if len(data) > MAX_DOCUMENT_BYTES:
            raise Corrupt(
                f"a {type(self).__name__} of {len(data)} bytes, at most {MAX_DOCUMENT_BYTES}"
            )
        return data

    @classmethod
    def decode(cls, data: bytes, key: PublicKey, where: str) -> Self:
        """Return the document of a signed file.

        Args:
            where: names the file in the error.

        Raises:
            Corrupt: too large, malformed, or not signed by ``key``.
        """
        if len(data) > MAX_DOCUMENT_BYTES:
            raise Corrupt(f"{where}: {len(data)} bytes, at most {MAX_DOCUMENT_BYTES}")
        try:
            envelope = _ManifestEnvelope.model_validate_json(data)
            key.verify(bytes.fromhex(envelope.signature), cls.purpose() + envelope.signed.encode())
            return cls.model_validate_json(envelope.signed)
        except PeerError as error:
            raise Corrupt(f"{where}: not signed by this site's server") from error
        except (ValidationError, UnicodeError) as error:
            raise Corrupt(f"{where}: not a {cls.__name__}: {_first_line(error)}") from error


class _ManifestEnvelope(_Document):
    signed: str
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Parent(_Document):
    """The version that a version was made from."""

    run_id: Name
    version: Count
    sha256: Sha256


class Manifest(Signed):
    """One committed version; never changed.

    Attributes:
        version: the round that produced it; 0 for the weights that the run began with.
        attempt: the round's attempt that was committed; 0 for version 0.
        parent: None where a run began with weights that are no version of this project.
        cohort: the devices whose updates are in it; at most the first 2,000, ``cohort_size`` counts
            them all.
        num_examples: the sum over the updates.
        changed: byte ranges ``[start, end)`` of the file that differ from the parent's, where both
            have the same layout and a patch saves a download; None where unknown.
        created_ms: by the server's clock, for people.
    """

    schema_version: Literal[1] = 1
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    run_id: Name
    version: Count
    attempt: Count
    task: Name
    algorithm: Name
    algorithm_settings: dict[str, Any]
    training: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    parent: Parent | None
    cohort: Annotated[list[Name], Field(max_length=MAX_COHORT)]
    cohort_size: Count
    num_examples: Count
    key: Annotated[str, Field(min_length=1, max_length=512)]
    sha256: Sha256
    size_bytes: Count
    layout_hash: Sha256
    state_key: Annotated[str, Field(max_length=512)] = ""
    state_sha256: Sha256 | Literal[""] = ""
    changed: list[tuple[Count, Count]] | None = None
    created_ms: Count

    @property
    def name(self) -> str:
        """The version's name for people: ``RUN:VERSION``."""
        return f"{self.run_id}:{self.version}"


class Record(Signed):
    """What may change of a version.

    Attributes:
        revision: grows with every change.
        promotions: the project's count of promotions each time this version was promoted; the
            version of a task with the highest count is the one in production.
        withdrawn: it was rolled back from production, and no rollback returns to it.
        reason: why it has its stage, in words.
    """

    schema_version: Literal[1] = 1
    run_id: Name
    version: Count
    sha256: Sha256
    revision: Count = 0
    stage: Stage = "none"
    tags: Annotated[list[Label], Field(max_length=64)] = []
    metrics: Metrics = {}
    promotions: Annotated[list[Count], Field(max_length=1000)] = []
    withdrawn: bool = False
    reason: Reason = ""
    changed_ms: Count = 0


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
