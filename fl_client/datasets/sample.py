"""A sample, and how a record becomes one. Imports no numpy, for the collector."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fl_client.datasets.settings import Feature, Schema
from runtime.errors import PeerError, RengoError

ID_BYTES = 16
_NUMBERS = (int, float)
_LAST_SECOND = 253_402_300_799


class BadSample(PeerError):
    """A record cannot be used as a sample: it is skipped and counted."""


class NoData(RengoError):
    """The device has no data for a task, or cannot read them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example.

    Attributes:
        id: always the same for the same example.
        group: examples of one group are on the same side of the split; empty for no group.
        label: the class's number, or the target.
        features: float32 numbers, an array of any shape.
    """

    id: bytes
    group: str
    label: float
    features: Any

    @property
    def size_bytes(self) -> int:
        """Its size as counted against a bound."""
        count = getattr(self.features, "size", None)
        return 4 * (len(self.features) if count is None else int(count)) + ID_BYTES


class SampleReader:
    """Turns records into samples by a declared schema.

    Args:
        classes: the labels, in order; empty if the target is a number.
        textual: whether numbers may be text, as in CSV.
    """

    def __init__(self, schema: Schema, classes: Sequence[str], *, textual: bool = False) -> None:
        self._schema = schema
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._textual = textual

    def read(self, record: Mapping[str, Any], name: str = "") -> Sample:
        """Return the sample of a record.

        Args:
            name: of the example, if the source has one.

        Raises:
            BadSample: a field is missing, has another type or length, or is out of bounds.
        """
        schema = self._schema
        features = array("f")
        for feature in schema.features:
            features.extend(self._numbers_of(feature, _field(record, feature.name)))
        return Sample(self._id(record, name), self._group(record), self._label(record), features)

    def _numbers_of(self, feature: Feature, value: Any) -> list[float]:
        values = self._spread(feature, value)
        if not isinstance(values, list) or len(values) != feature.length:
            raise BadSample(f"{feature.name} needs {feature.length} numbers", "length")
        numbers = [self._number(feature.name, each) for each in values]
        low = -math.inf if feature.least is None else feature.least
        high = math.inf if feature.most is None else feature.most
        if any(not low <= each <= high for each in numbers):
            raise BadSample(f"{feature.name} is beyond its bounds", "bounds")
        return numbers

    def _spread(self, feature: Feature, value: Any) -> Any:
        """Return a field as a list; a column can have a window as text or as float32 bytes."""
        if feature.length == 1:
            return value if isinstance(value, list) else [value]
        if self._textual and isinstance(value, str):
            return value.strip("[] ").replace(",", " ").split()
        if self._textual and isinstance(value, bytes) and len(value) == 4 * feature.length:
            return list(array("f", value))
        return value

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (*_NUMBERS, str)):
            raise BadSample(f"{name} is no number", "type")
        # Python also reads 1_5 as fifteen
        if isinstance(value, str) and (not self._textual or "_" in value):
            raise BadSample(f"{name} is no number", "type")
        try:
            # in the precision that it is stored and trained in
            number = array("f", [float(value)])[0]
        except (ValueError, OverflowError) as error:
            raise BadSample(f"{name} is no number", "type") from error
        if not math.isfinite(number):
            raise BadSample(f"{name} is not finite", "type")
        return number

    def _label(self, record: Mapping[str, Any]) -> float:
        if not self._schema.label:
            return 0.0
        value = _field(record, self._schema.label)
        if not self._numbers:
            return self._number(self._schema.label, value)
        if not isinstance(value, str | int) or str(value) not in self._numbers:
            raise BadSample(f"{self._schema.label} is none of the classes", "class")
        return float(self._numbers[str(value)])

    def _id(self, record: Mapping[str, Any], name: str) -> bytes:
        if self._schema.id:
            return digest("id", _plain(_field(record, self._schema.id)))
        if name:
            return digest("name", name)
        # correcting a label must not move an example to the other side of the split
        fields = {key: record[key] for key in record if key != self._schema.label}
        return digest("fields", json.dumps(fields, sort_keys=True, default=str))

    def _group(self, record: Mapping[str, Any]) -> str:
        schema = self._schema
        group = _plain(_field(record, schema.group)) if schema.group else ""
        if not schema.group_by_day:
            return group
        return f"{group} {_day(_field(record, schema.time))}"


def digest(kind: str, text: str | bytes) -> bytes:
    """Return an example's id; the same text of another kind has another id."""
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.blake2b(content, digest_size=ID_BYTES, person=kind.encode()).digest()


def _field(record: Mapping[str, Any], name: str) -> Any:
    value = record.get(name)
    if value is None or value == "":
        raise BadSample(f"{name} is missing", "missing")
    return value


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadSample("an id or a group is neither text nor a number", "type")
    return str(value)[:256]


def _day(value: Any) -> str:
    try:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                moment = datetime.fromisoformat(value)
                aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
                return aware.astimezone(UTC).date().isoformat()
        if isinstance(value, bool) or not 0 <= value <= _LAST_SECOND:
            raise BadSample("a time is out of range", "time")
        return datetime.fromtimestamp(value, UTC).date().isoformat()
    except (ValueError, TypeError, OverflowError) as error:
        raise BadSample("a time is none", "time") from error
