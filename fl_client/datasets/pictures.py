"""Reads pictures as arrays. Pillow is needed for them alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.sample import BadSample
from fl_client.datasets.settings import PictureForm
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

_DEEPEST = 65_535


def read_picture(file: Path | BinaryIO, name: str, form: PictureForm) -> NDArray[np.float32]:
    """Return an image with values in 0..1, as [channels, height, width].

    Args:
        name: of the file, for errors.

    Raises:
        BadSample: it is too large, or its pixels have no known range.
        ConfigError: Pillow is not installed.
        OSError, ValueError: it cannot be read.
    """
    try:
        from PIL import Image  # noqa: PLC0415  (optional, only for images)
    except ImportError as error:
        raise ConfigError(f"{name} is a picture: reading it needs `pip install pillow`") from error
    try:
        with Image.open(file) as opened:
            return pixels_of(opened, name, form)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(f"{name}: {error}", "oversize") from error


def pixels_of(opened: Image.Image, name: str, form: PictureForm) -> NDArray[np.float32]:
    """Return a picture of Pillow's as ``read_picture`` does."""
    if opened.mode.startswith(("I", "F")):
        return _deep_grey(name, opened, form)
    picture = opened.convert("L" if form.grayscale else "RGB")
    if form.image_size is not None:
        picture = picture.resize(form.image_size)
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    return pixels[np.newaxis] if form.grayscale else pixels.transpose(2, 0, 1)


def _deep_grey(name: str, picture: Image.Image, form: PictureForm) -> NDArray[np.float32]:
    """Return a grey image of 16 bits, which Pillow would cut off at 255, with values in 0..1."""
    values = np.asarray(picture, np.float32)
    if picture.mode == "F" or not 0 <= values.min() <= values.max() <= _DEEPEST:
        raise BadSample(f"{name} has pixels of a kind without a known range", "pixels")
    if form.image_size is not None:
        # Pillow scales grey of 16 bits as floats only
        scaled = picture.convert("F").resize(form.image_size)
        values = np.clip(np.asarray(scaled, np.float32), 0, _DEEPEST)
    pixels = values / np.float32(_DEEPEST)
    return np.stack([pixels] * (1 if form.grayscale else 3))
