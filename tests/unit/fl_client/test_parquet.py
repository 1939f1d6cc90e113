"""Parquet and Arrow files as a device's data: rows, pictures, damage, and what is told."""

from __future__ import annotations

import io
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import ipc, parquet

from fl_client.datasets.dataset import Dataset
from fl_client.datasets.sample import NoData
from fl_client.datasets.settings import DataPlace, read_sections
from runtime.errors import ConfigError

SOURCE = {"kind": "parquet", "features": ["a", "b"], "label": "state"}


def dataset(path: Path, source: dict[str, Any] | None = None, **more: Any) -> Dataset:
    section = {"source": {**(source or SOURCE), "path": path}, **more}
    (settings,) = read_sections({"pump": section}).values()
    return Dataset(DataPlace(task="pump", folder=path.parent / "agent", settings=settings))


def rows(first: int, count: int) -> pa.Table:
    numbers = list(range(first, first + count))
    states = ["worn" if number % 3 else "ok" for number in numbers]
    return pa.table(
        {"a": numbers, "b": [n / 2 for n in numbers], "state": states, "c": [b"x"] * count}
    )


def write(path: Path, table: pa.Table, kind: str = "parquet") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=7)
        return path
    new = ipc.new_stream if kind == "stream" else ipc.new_file
    with new(path, table.schema) as out:
        out.write_table(table, 7)
    return path


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_a_file_s_rows_are_examples_in_their_order(tmp_path: Path, kind: str) -> None:
    name = "log.parquet" if kind == "parquet" else "data-00000-of-00001.arrow"
    found = dataset(write(tmp_path / name, rows(0, 300), kind), classes=["ok", "worn"]).samples()
    assert [list(each.features) for each in found] == [[n, n / 2] for n in range(300)]
    assert [each.label for each in found] == [float(n % 3 > 0) for n in range(300)]


def test_a_folder_s_newest_files_come_first_up_to_the_bound(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "sub/new")):
        path = write(tmp_path / f"{name}.parquet", rows(100 * number, 20))
        os.utime(path, (1000 + number, 1000 + number))
    bounded = dataset(tmp_path, classes=["ok", "worn"], store={"max_examples": 25})
    values = [each.features[0] for each in bounded.samples()]
    assert values == [*range(15, 20), *range(100, 120)]


def test_the_form_of_hugging_face_s_save_to_disk_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    for number in range(2):
        table = rows(50 * number, 50).append_column("label", pa.array([number] * 50))
        write(folder / f"data-0000{number}-of-00002.arrow", table, "stream")
    (folder / "state.json").write_text(json.dumps({"_data_files": []}))
    source = {"kind": "parquet", "features": ["a"], "label": "label"}
    found = dataset(folder, source, classes=["0", "1"]).samples()
    assert sorted(each.features[0] for each in found) == list(range(100))
    assert sum(each.label for each in found) == 50


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_lie_in_a_column_as_bytes_or_in_a_struct(tmp_path: Path, nested: bool) -> None:
    pictures: list[Any] = [png(0), png(255), None, b"no picture"]
    if nested:
        pictures = [each if each is None else {"bytes": each, "path": "x"} for each in pictures]
    table = pa.table({"image": pictures, "label": [0, 1, 1, 0]})
    source = {
        "kind": "parquet",
        "picture": "image",
        "label": "label",
        "image_size": [4, 4],
        "grayscale": True,
    }
    read = dataset(write(tmp_path / "train.parquet", table), source, classes=["0", "1"])
    found = read.samples()
    assert [each.features.shape for each in found] == [(1, 4, 4)] * 2
    assert [float(each.features.mean()) for each in found] == [0.0, 1.0]
    assert [each.label for each in found] == [0.0, 1.0]
    assert read.refused == {"missing": 1, "unreadable": 1}


def test_windows_times_and_unusable_rows(tmp_path: Path) -> None:
    table = pa.table(
        {
            "wave": [[1.0, 2.0], [3.0, 4.0], [5.0], None, [float("nan"), 1.0]],
            "at": [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 6)],
            "state": ["ok", "bad", "ok", "ok", "ok"],
        }
    )
    source = {
        "kind": "parquet",
        "features": [{"name": "wave", "length": 2}],
        "label": "state",
        "time": "at",
        "group_by_day": True,
    }
    read = dataset(write(tmp_path / "log.parquet", table), source, classes=["ok", "worn"])
    (found,) = read.samples()
    assert list(found.features) == [1.0, 2.0]
    assert found.group.strip() == "2026-01-01"
    assert read.refused == {"class": 1, "length": 1, "missing": 1, "type": 1}


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_file_is_counted_and_the_others_are_read(
    tmp_path: Path, kind: str, damage: str
) -> None:
    ending = "parquet" if kind == "parquet" else "arrow"
    write(tmp_path / f"whole.{ending}", rows(0, 20), kind)
    path = write(tmp_path / f"broken.{ending}", rows(100, 20), kind)
    content = path.read_bytes()
    noise = np.random.default_rng(0).bytes(len(content))
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": noise}[damage])
    read = dataset(tmp_path, classes=["ok", "worn"])
    assert {each.features[0] for each in read.samples()} >= set(range(20))
    assert sum(read.refused.values()) >= 1


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", rows(0, 5))
    source = {"kind": "parquet", "features": ["a", "d"], "label": "mood"}
    with pytest.raises(ConfigError, match="no column d, mood; its columns are: a, b, state, c"):
        dataset(path, source).samples()


def test_what_is_not_there_is_no_data_yet(tmp_path: Path) -> None:
    with pytest.raises(NoData, match="is not there"):
        dataset(tmp_path / "nowhere").samples()


def test_without_pyarrow_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.parquet", rows(0, 5))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        dataset(path).samples()


@pytest.mark.parametrize(
    "more", [{}, {"features": ["a"], "picture": "image"}, {"features": ["a", "a"]}]
)
def test_inputs_are_features_or_one_column_of_pictures(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.pump\.source"):
        read_sections({"pump": {"source": {"kind": "parquet", "path": "/x", **more}}})


def test_a_report_of_pictures_is_of_their_mean_and_spread(tmp_path: Path) -> None:
    table = pa.table({"image": [png(n) for n in range(40)], "label": ["a", "b"] * 20})
    source = {"kind": "parquet", "picture": "image", "label": "label", "grayscale": True}
    read = dataset(write(tmp_path / "t.parquet", table), source, classes=["a", "b"])
    train, held_out = read.splits()
    assert train is not None
    assert held_out is not None
    assert len(train[0]) + len(held_out[0]) == 40
    report = json.loads(next((tmp_path / "agent").glob("report*.json")).read_text())
    named = [each["name"] for each in report["quantities"]]
    assert named == ["the label", "values mean", "values spread"]
