"""Data sets of other libraries become two arrays that any engine takes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_client.datasets.device import Device
from fl_client.datasets.indexed import arrays
from runtime.errors import ConfigError
from tests.support import require_package

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 5, 7, 3), np.uint8)
# kept: without it torch forgets what it defines
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def test_tuples_of_pictures_and_classes() -> None:
    inputs, targets = arrays([(Image.fromarray(each), n % 2) for n, each in enumerate(PIXELS)])
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, (PIXELS / np.float32(255)).transpose(0, 3, 1, 2))
    assert targets.tolist() == [0, 1] * 3
    assert targets.dtype.kind == "i"


def test_rows_of_columns_with_grey_pictures() -> None:
    grey = [Image.fromarray(each[..., 0]) for each in PIXELS]
    rows = [{"image": each, "label": 3} for each in grey]
    inputs, _ = arrays(rows, "image", "label")
    np.testing.assert_array_equal(inputs[:, 0], PIXELS[..., 0] / np.float32(255))
    assert arrays(rows, "image", "label", grayscale=False)[0].shape == (6, 3, 5, 7)
    assert arrays(rows, "image", "label", image_size=(2, 3))[0].shape == (6, 1, 3, 2)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_numbers_in_any_form(kind: Any) -> None:
    rows = [(kind([1.0, 2.0 * n]), 0.5 * n) for n in range(4)]
    inputs, targets = arrays(rows)
    assert inputs.tolist() == [[1.0, 2.0 * n] for n in range(4)]
    assert targets.tolist() == [0.0, 0.5, 1.0, 1.5]


def test_a_dataset_of_torch_s() -> None:
    dataset = torch.utils.data.TensorDataset(torch.arange(8.0).reshape(4, 2), torch.arange(4))
    inputs, targets = arrays(dataset)
    assert inputs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "no items"),
        ([{"img": 1, "label": 2}], "no 'image'; it has: img, label"),
        ([{"image": "text", "label": 2}], "item 0 is neither a picture nor numbers"),
        (
            [{"image": [1.0], "label": 0}, {"image": [1.0, 2.0], "label": 0}],
            r"item 1 has an input of shape \(2,\), the first one \(1,\)",
        ),
        ([{"image": Image.new("F", (2, 2), -3.0), "label": 0}], "item 0 has pixels of a kind"),
    ],
)
def test_what_cannot_be_arrays_is_told(items: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arrays(items, "image", "label")


@pytest.fixture
def torchvision() -> ModuleType:
    """The data sets of torchvision, also of one whose operators were built for another torch."""
    require_package("torchvision")
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError:
        for name in [each for each in sys.modules if each.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float t) -> Tensor")
        return importlib.import_module("torchvision.datasets")


@pytest.fixture
def hugging_face(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The library `datasets`, without a network and with its cache in the test's folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    require_package("datasets")
    return importlib.import_module("datasets")


def test_torchvision_s_image_folder(torchvision: Any, tmp_path: Path) -> None:
    for number, pixels in enumerate(PIXELS):
        place = tmp_path / ("pear" if number % 2 else "apple")
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    inputs, targets = arrays(torchvision.ImageFolder(tmp_path))
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(inputs[1, 0], PIXELS[2, ..., 0] / np.float32(255))


def test_torchvision_s_mnist_from_the_disk(torchvision: Any, tmp_path: Path) -> None:
    raw, images = tmp_path / "MNIST" / "raw", RANDOM.integers(0, 256, (7, 28, 28), np.uint8)
    raw.mkdir(parents=True)
    for name, values in (("images-idx3", images), ("labels-idx1", np.arange(7, dtype=np.uint8))):
        for part in ("train", "t10k"):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(head + values.tobytes())
    inputs, targets = arrays(torchvision.MNIST(tmp_path, train=True, download=False))
    np.testing.assert_array_equal(inputs[:, 0], images / np.float32(255))
    assert targets.tolist() == [*range(7)]


def test_hugging_face_s_datasets_from_the_disk(hugging_face: Any, tmp_path: Path) -> None:
    made = hugging_face.Dataset.from_dict({"a": [[1.0, 2.0], [3.0, 4.0]], "label": [1, 0]})
    made.save_to_disk(tmp_path / "saved")
    inputs, targets = arrays(hugging_face.load_from_disk(tmp_path / "saved"), "a", "label")
    assert inputs.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert targets.tolist() == [1, 0]


def test_hugging_face_s_pictures_are_read_with_and_without_its_library(
    hugging_face: Any, tmp_path: Path
) -> None:
    columns = {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["a", "b"])}
    rows = {"image": [Image.fromarray(each) for each in PIXELS], "label": [0, 1] * 3}
    made = hugging_face.Dataset.from_dict(rows, features=hugging_face.Features(columns))
    made.save_to_disk(tmp_path / "saved")
    inputs, targets = arrays(hugging_face.load_from_disk(tmp_path / "saved"), "image", "label")
    np.testing.assert_array_equal(inputs, (PIXELS / np.float32(255)).transpose(0, 3, 1, 2))
    assert targets.tolist() == [0, 1] * 3
    source = {"kind": "parquet", "picture": "image", "label": "label"}
    described = {"source": source, "classes": ["0", "1"]}
    parts = Device("d", folder=tmp_path / "saved").dataset(described).splits()
    found = np.concatenate([each[0] for each in parts if each is not None])
    assert sorted(each.tobytes() for each in found) == sorted(each.tobytes() for each in inputs)
