"""What a library would convert without a word is read as it was meant, or refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_client.datasets.dataset import Dataset
from fl_client.datasets.settings import DataPlace, DataSettings
from runtime.errors import ConfigError

ROWS = 200


def dataset(folder: Path, source: dict[str, Any], **more: Any) -> Dataset:
    settings = DataSettings.model_validate({"source": source, **more})
    return Dataset(DataPlace(task="t", folder=folder / "own", settings=settings))


# --- SQLite --------------------------------------------------------------------------------------

TABLES = {
    "table": "CREATE TABLE log (n INTEGER, day INTEGER, x REAL)",
    "without rowid": "CREATE TABLE log (n INTEGER PRIMARY KEY, day INTEGER, x REAL) WITHOUT ROWID",
    "view": "CREATE TABLE base (n INTEGER, day INTEGER, x REAL)",
}


def log_of(tmp_path: Path, kind: str, **more: Any) -> Dataset:
    path = tmp_path / "log.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(TABLES[kind])
        into = "base" if kind == "view" else "log"
        rows = [(number, number // 100, number / 2) for number in range(ROWS)]
        db.executemany(f"INSERT INTO {into} VALUES (?, ?, ?)", rows)
        if kind == "view":
            db.execute("CREATE VIEW log AS SELECT * FROM base")
    db.close()
    source = {"kind": "sqlite", "path": str(path), "table": "log", "features": ["x"], **more}
    return dataset(tmp_path, source)


@pytest.mark.parametrize("kind", ["without rowid", "view"])
def test_rows_without_a_number_are_refused_until_a_column_numbers_them(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ConfigError, match=r"log of .* is a view or .*WITHOUT ROWID.*set rowid to"):
        log_of(tmp_path, kind).splits()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("table", {}),
        *((kind, {"rowid": "n"}) for kind in TABLES),
        *((kind, {"rowid": "day", "id": "n"}) for kind in TABLES),
    ],
)
def test_both_sides_of_the_split_get_their_share(
    tmp_path: Path, kind: str, more: dict[str, str]
) -> None:
    kept, held_out = log_of(tmp_path, kind, **more).splits()
    assert kept is not None
    assert held_out is not None
    # a fifth of 200, within four deviations
    assert 18 <= len(held_out[0]) <= 62
    assert len(kept[0]) + len(held_out[0]) == ROWS


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_that_names_many_rows_alike_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"column day of log .* has 2 values in 200 rows: set"):
        log_of(tmp_path, kind, rowid="day").splits()


# --- CSV -----------------------------------------------------------------------------------------


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("x,y,x\n1,2,3\n")
    with pytest.raises(ConfigError, match="more than one column x"):
        dataset(tmp_path, {"kind": "csv", "path": str(path), "features": ["x"]}).splits()
    found = dataset(tmp_path, {"kind": "csv", "path": str(path), "features": ["y"]})
    assert [list(sample.features) for sample in found.samples()] == [[2.0]]


@pytest.mark.parametrize("value", ["", " ", "1_5", "1,5", "nan", "inf", "1e60", "0x10", "true"])
def test_a_cell_that_is_no_number_is_no_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"x;y\n{value};1\n2;2\n")
    source = {"kind": "csv", "path": str(path), "features": ["x"], "delimiter": ";"}
    found = dataset(tmp_path, source)
    assert [list(sample.features) for sample in found.samples()] == [[2.0]]
    assert sum(found.refused.values()) == 1


# --- pictures ------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 16).reshape(4, 4)


def pixels(tmp_path: Path, image: Image.Image, **more: Any) -> Any:
    image.save(tmp_path / "a.png")
    found = dataset(tmp_path, {"kind": "folder", "path": str(tmp_path), **more})
    (sample,) = found.samples()
    return sample.features


@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("depth", [8, 16])
def test_grey_of_either_depth_is_between_0_and_1(
    tmp_path: Path, depth: int, grayscale: bool
) -> None:
    kind = np.uint8 if depth == 8 else np.uint16
    image = Image.fromarray((RAMP * (2**depth - 1)).round().astype(kind))
    found = pixels(tmp_path, image, grayscale=grayscale)
    assert found.shape == (1 if grayscale else 3, 4, 4)
    for channel in found:
        np.testing.assert_allclose(channel, RAMP, atol=0.003)


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_of_either_depth_is_scaled(tmp_path: Path, depth: int) -> None:
    kind = np.uint8 if depth == 8 else np.uint16
    image = Image.fromarray((RAMP * (2**depth - 1)).round().astype(kind))
    found = pixels(tmp_path, image, grayscale=True, image_size=[2, 2])
    assert found.shape == (1, 2, 2)
    assert found.min() >= 0
    # the means of the quarters, as far as the filter is one
    np.testing.assert_allclose(found[0], RAMP.reshape(2, 2, 2, 2).mean((1, 3)), atol=0.06)


def test_a_palette_gives_its_colours_and_one_bit_black_and_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    found = pixels(tmp_path, image)
    np.testing.assert_array_equal(found[:, 0].T, [[1, 0, 0], [0, 0, 1]])
    image = Image.new("1", (2, 1))
    image.putdata([0, 1])
    found = pixels(tmp_path, image, grayscale=True)
    np.testing.assert_array_equal(found, [[[0, 1]]])


def test_what_is_transparent_has_the_colour_that_the_file_gives_it(tmp_path: Path) -> None:
    found = pixels(tmp_path, Image.new("RGBA", (1, 1), (255, 0, 51, 0)))
    np.testing.assert_allclose(found[:, 0, 0], [1, 0, 0.2])
