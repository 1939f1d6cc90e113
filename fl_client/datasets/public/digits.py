"""Handwritten digits: 1,797 images of 8 x 8 pixels, ten classes. They come with the package.

The images are those of ``sklearn.datasets.load_digits``, which is the test set of the UCI
"Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998,
https://doi.org/10.24432/C50P49); here as bytes 0..16 in ``data/digits.npz``.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.public.published import Published

DATASET = Published(
    name="digits",
    summary="handwritten digits, 8 x 8 pixels, ten classes",
    examples=1_797,
    licence="CC BY 4.0, E. Alpaydin, C. Kaynak",
)


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all images, float32 [1797, 64] within 0..1, and their labels, int64 [1797]."""
    with (files("fl_client.datasets.public") / "data" / "digits.npz").open("rb") as file:
        stored = np.load(cast("Any", file), allow_pickle=False)
        return stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int64)
