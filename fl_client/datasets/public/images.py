"""Images in the IDX files of MNIST and of what was published in its form.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist/, section "File formats".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.public.files import Buffer, find, read
from fl_client.datasets.public.published import Published, PublishedFile
from runtime.errors import ConfigError

_UNSIGNED_BYTES = 8


@dataclass(frozen=True)
class LabelledImages:
    """Images as bytes, uint8 [n, 1, height, width], and their classes, int64 [n]."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def idx_files(digests: Mapping[str, str]) -> tuple[PublishedFile, ...]:
    """Return the four files of a set of 60,000 and 10,000 images of 28 x 28, by their sha256."""
    sizes = {"train": 60_000, "t10k": 10_000}
    found = []
    for name, digest in digests.items():
        count = sizes[name.partition("-")[0]]
        size = 16 + count * 28 * 28 if "images" in name else 8 + count
        found.append(PublishedFile(name, size, digest))
    return tuple(found)


def load_images(wanted: Published, folder: Path | None = None) -> LabelledImages:
    """Return a data set's images; the files stay mapped, and a process reads them once.

    Raises:
        ConfigError: they are not here (the text says how to get them), or not the published ones.
    """
    return _read_images(wanted, find(wanted, folder))


@lru_cache(maxsize=2)
def _read_images(wanted: Published, place: Path) -> LabelledImages:
    content = read(wanted, place)
    arrays = [as_array(content[file.name], file.name) for file in wanted.files]
    train_images, train_labels, test_images, test_labels = arrays
    return LabelledImages(
        train_images[:, np.newaxis],
        train_labels.astype(np.int64),
        test_images[:, np.newaxis],
        test_labels.astype(np.int64),
    )


def as_array(content: Buffer, name: str) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes; it shares the memory of ``content``.

    Raises:
        ConfigError: it is no such file, or its size is not what its head says.
    """
    head = bytes(content[:4])
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTES:
        raise ConfigError(f"{name} is no IDX file of unsigned bytes")
    start = 4 + 4 * head[3]
    shape = tuple(int(side) for side in np.frombuffer(bytes(content[4:start]), ">u4"))
    if len(shape) != head[3] or len(content) != start + math.prod(shape):
        raise ConfigError(f"{name} has another size than its head says: {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
