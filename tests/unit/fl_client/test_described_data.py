"""A device with a folder and no settings: its task says in which form the data lie there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_client.datasets.device import Device
from fl_client.datasets.settings import DataPlace, read_sections
from runtime.errors import ConfigError

Image = pytest.importorskip("PIL.Image")
TABLE = {"kind": "csv", "features": ["a", "b"], "label": "state"}


def table(folder: Path, rows: int) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"{n},{2 * n},{'worn' if n % 3 else 'ok'}" for n in range(rows)]
    (folder / "log.csv").write_text("\n".join(["a,b,state", *lines, ""]))
    return folder


def pictures(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / ("apple" if number % 2 else "pear")
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def whole(device: Device, described: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    parts = [part for part in device.dataset(described).splits() if part is not None]
    inputs, targets = (np.concatenate(each) for each in zip(*parts, strict=True))
    return inputs, targets


def test_a_table_in_the_folder_is_read(tmp_path: Path) -> None:
    device = Device("d", folder=table(tmp_path / "alice", 30))
    described = {"source": TABLE, "classes": ["ok", "worn"]}
    inputs, targets = whole(device, described)
    order = inputs[:, 0].argsort()
    assert inputs[order].tolist() == [[n, 2 * n] for n in range(30)]
    assert targets[order].tolist() == [int(n % 3 > 0) for n in range(30)]
    train, held_out = device.dataset(described).splits()
    assert train is not None
    assert held_out is not None
    assert sorted(path.name for path in (tmp_path / "alice").iterdir()) == ["log.csv"]


def test_pictures_in_folders_of_their_classes_are_read(tmp_path: Path) -> None:
    device = Device("d", folder=pictures(tmp_path / "alice", 20))
    described = {
        "source": {"kind": "folder", "image_size": [4, 4]},
        "classes": ["apple", "pear"],
        "held_out": 0.3,
    }
    inputs, targets = whole(device, described)
    assert inputs.shape == (20, 3, 4, 4)
    assert np.bincount(targets).tolist() == [10, 10]


def test_a_folder_that_was_moved_has_the_same_examples_held_out(tmp_path: Path) -> None:
    described = {"source": TABLE, "classes": ["ok", "worn"]}
    first = Device("d", folder=table(tmp_path / "alice", 60)).dataset(described).splits()
    again = Device("e", folder=table(tmp_path / "bob", 60)).dataset(described).splits()
    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        assert np.array_equal(one[0], other[0])


def test_a_file_in_the_folder_may_be_named(tmp_path: Path) -> None:
    table(tmp_path / "alice", 5)
    (tmp_path / "alice" / "other.csv").write_text("x\n1\n")
    source = {**TABLE, "path": "log.csv"}
    inputs, _ = whole(
        Device("d", folder=tmp_path / "alice"), {"source": source, "classes": ["ok", "worn"]}
    )
    assert len(inputs) == 5


def test_the_device_s_own_section_comes_first(tmp_path: Path) -> None:
    section = {"source": {**TABLE, "path": table(tmp_path / "own", 7)}, "classes": ["ok", "worn"]}
    (settings,) = read_sections({"pump": section}).values()
    place = DataPlace(task="pump", folder=tmp_path / "agent", settings=settings)
    device = Device("d", folder=table(tmp_path / "alice", 30), data=place)
    inputs, _ = whole(device, {"source": TABLE, "classes": ["ok", "worn"]})
    assert len(inputs) == 7


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({}, "source must be a dict with its kind"),
        ({"source": {"kind": "csv"}}, r"source\.csv\.features: Field required"),
        ({"source": {"kind": "excel"}}, "source.*'csv'"),
        ({"source": TABLE, "clases": []}, r"clases: Extra inputs"),
    ],
)
def test_a_wrong_description_is_told(
    tmp_path: Path, described: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"described.*{said}|{said}"):
        Device("d", folder=tmp_path).dataset(described)


def test_without_a_folder_the_settings_are_missed() -> None:
    with pytest.raises(ConfigError, match="its settings need a section"):
        Device("d").dataset({"source": TABLE})
