"""The settings of a device's own data: the ``[data.<task>]`` sections of the agent's file.

Imports neither numpy nor a network library: a waiting agent reads them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from runtime.config import AbsolutePath

Name = Annotated[str, Field(min_length=1, max_length=64)]
_Edges = Annotated[list[float], Field(min_length=1, max_length=15)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Feature(_Settings):
    """One input of the model; in the file, a name alone is enough.

    Attributes:
        length: how many numbers it has: 1, or a window's length.
        least: a sample with a smaller number, a fault of the sensor, is refused.
        most: a sample with a larger one is, too.
    """

    name: Name
    length: Annotated[int, Field(ge=1, le=65_536)] = 1
    least: float | None = None
    most: float | None = None


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Schema(_Settings):
    """Which fields of a record make a sample.

    Attributes:
        features: in the order of the model's inputs.
        label: the target's field; empty for none (the target is 0).
        id: the field that identifies an example; empty for a digest of all fields but the label.
        group: a field, such as a session; examples with the same value are on one side of the
            split.
        time: the field of the time, in seconds since 1970 or as ISO 8601.
        group_by_day: examples of one day (UTC, by ``time``) are on one side of the split.
    """

    features: Annotated[
        list[Annotated[Feature, BeforeValidator(_named)]], Field(min_length=1, max_length=256)
    ]
    label: str = ""
    id: str = ""
    group: str = ""
    time: str = ""
    group_by_day: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Schema:
        names = [feature.name for feature in self.features]
        if len({*names}) != len(names):
            raise ValueError("a feature is named twice")
        if self.group_by_day and not self.time:
            raise ValueError("group_by_day needs the name of the time's field")
        return self


class PictureForm(_Settings):
    """How pictures are given to the model.

    Attributes:
        image_size: width and height to which images are scaled.
    """

    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    grayscale: bool = False


class FolderSource(PictureForm):
    """Files in a folder that grows; a sub-folder's name is its examples' class.

    Attributes:
        group: "file" groups the examples of one file, "prefix" those of all files whose names are
            the same up to the last ``_`` or ``-``.
    """

    kind: Literal["folder"]
    path: AbsolutePath
    group: Literal["", "file", "prefix"] = ""


class CsvSource(Schema):
    """A CSV file that is appended to, or a folder of them; the first line names the columns."""

    kind: Literal["csv"]
    path: AbsolutePath
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","


class ParquetSource(Schema, PictureForm):
    """A Parquet or Arrow file, or a folder of them: Hugging Face's ``save_to_disk`` writes such.

    Attributes:
        picture: the column of pictures that are the inputs, in place of ``features``: the bytes of
            a file, or a struct that has them as ``bytes``.
    """

    kind: Literal["parquet"]
    path: AbsolutePath
    features: Annotated[
        list[Annotated[Feature, BeforeValidator(_named)]], Field(max_length=256)
    ] = []
    picture: str = ""

    @model_validator(mode="after")
    def _has_inputs(self) -> ParquetSource:
        if bool(self.features) == bool(self.picture):
            raise ValueError("name the columns of the inputs as features, or one as picture")
        return self


class SqliteSource(Schema):
    """A growing table, which is only read.

    Attributes:
        rowid: the column that increases; it identifies an example unless ``id`` does.
    """

    kind: Literal["sqlite"]
    path: AbsolutePath
    table: Name
    rowid: Name = "rowid"


class SensorSource(Schema):
    """What the task's ``samples(device)`` yields, in a process beside the agent.

    Attributes:
        every_s: the pause between two samples; 0 if the task waits itself.
    """

    kind: Literal["sensor"]
    every_s: Annotated[float, Field(ge=0)] = 0.0


class MqttSource(Schema):
    """Topics of the site's own broker, with credentials that have nothing to do with Rengo.

    Attributes:
        password_file: a file with the password as its only line.
        ca: the authority to trust; if given, the connection uses TLS.
        max_per_s: messages beyond this rate are dropped and counted.
    """

    kind: Literal["mqtt"]
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 1883
    username: Name
    password_file: AbsolutePath
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    ca: AbsolutePath | None = None
    topics: Annotated[list[Name], Field(min_length=1, max_length=64)]
    payload: Literal["json", "msgpack"] = "json"
    max_payload_bytes: Annotated[int, Field(ge=1, le=1 << 18)] = 16_384
    max_per_s: Annotated[float, Field(gt=0)] = 100.0


Gathered = SensorSource | MqttSource
Source = Annotated[
    FolderSource | CsvSource | ParquetSource | SqliteSource | SensorSource | MqttSource,
    Field(discriminator="kind"),
]


class SampleStoreSettings(_Settings):
    """How much gathered data is stored, and how much is read from other sources.

    Attributes:
        max_age_days: older samples are deleted; 0 for no limit.
        flush_s: samples are written to the disk together, at most so long after they came.
    """

    max_mib: Annotated[float, Field(gt=0, le=1 << 20)] = 32.0
    max_examples: Annotated[int, Field(ge=1)] = 20_000
    max_age_days: Annotated[float, Field(ge=0)] = 0.0
    flush_s: Annotated[float, Field(gt=0)] = 30.0


class DriftSettings(_Settings):
    """What is reported about the data, in aggregates.

    Attributes:
        report: whether anything is sent.
        min_count: no smaller count is sent, and every count is a multiple of it.
        reference_count: the least number of examples in the reference.
        window: how many of the newest examples are compared.
        every_s: the shortest time between two reports.
        bins: agreed edges by feature; without them, quantiles of the reference, which are never
            sent.
    """

    report: bool = True
    min_count: Annotated[int, Field(ge=5)] = 20
    reference_count: Annotated[int, Field(ge=5)] = 100
    window: Annotated[int, Field(ge=5)] = 1000
    every_s: Annotated[float, Field(ge=0)] = 3600.0
    bins: dict[Name, _Edges] = {}

    @model_validator(mode="after")
    def _grow(self) -> DriftSettings:
        if self.window < self.min_count:
            raise ValueError("window is less than min_count")
        for name, edges in self.bins.items():
            if any(first >= second for first, second in pairwise(edges)):
                raise ValueError(f"the edges of {name} do not grow")
        return self


class DataSettings(_Settings):
    """One task's data on this device.

    Attributes:
        classes: the labels, in the order of the model's outputs; empty if the target is a number.
        held_out: about which share of the examples is never trained on.
    """

    source: Source
    classes: Annotated[list[Name], Field(max_length=1000)] = []
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    store: SampleStoreSettings = SampleStoreSettings()
    drift: DriftSettings = DriftSettings()

    @model_validator(mode="after")
    def _classes_differ(self) -> DataSettings:
        if len({*self.classes}) != len(self.classes):
            raise ValueError("a class is named twice")
        return self


class DataPlace(_Settings):
    """One task's data settings and the agent's folder for them."""

    task: str
    folder: AbsolutePath
    settings: DataSettings


def read_sections(given: Mapping[str, Any]) -> dict[str, DataSettings]:
    """Return the sections ``[data.<task>]``.

    Raises:
        ValueError: naming the first key that is wrong.
    """
    return {task: _section(task, given[task]) for task in given}


def _section(task: str, given: object) -> DataSettings:
    try:
        return DataSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(["data", task, *(str(part) for part in first["loc"])])
        raise ValueError(f"{key}: {first['msg']}") from error
