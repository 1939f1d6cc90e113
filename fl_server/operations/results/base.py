"""Results of operations: JSON documents of bounded fields, checked at both ends. Pure.

The keys are a contract: ``rengo … --json`` prints these documents. A reader ignores keys that it
does not know, so that an older command line understands a newer server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field

from runtime.bounds import MAX_FINITE, MAX_INTEGER

MAX_ROWS = 1_000_000
MAX_DEVICES = 1_000_000

Text = Annotated[str, Field(max_length=2000)]
Short = Annotated[str, Field(max_length=256)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Finite = Annotated[float, Field(ge=-MAX_FINITE, le=MAX_FINITE, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OperationResult(BaseModel):
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


class Listing(OperationResult):
    """A list of rows, which may be brought in pages."""

    rows_key: ClassVar[str]
    """The only field."""
    id_key: ClassVar[str]
    """What tells one row from another."""

    @property
    def rows(self) -> Sequence[OperationResult]:
        """The rows, in order."""
        found: Sequence[OperationResult] = getattr(self, self.rows_key)
        return found


def encoded_bytes(result: OperationResult) -> int:
    """Return how large a result is in a message."""
    packed: bytes = msgpack.packb(result.document())
    return len(packed)
