"""Data sets of other libraries as two arrays: torchvision's, Hugging Face's, any with an index."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.pictures import pixels_of
from fl_client.datasets.sample import BadSample
from fl_client.datasets.settings import PictureForm
from runtime.errors import ConfigError

_GREY = ("1", "L", "LA", "I", "F")


class Indexed(Protocol):
    """A data set whose items are found by number: tuples, or dicts by column."""

    def __len__(self) -> int:
        """Return how many items there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return an item."""
        ...


def arrays(
    dataset: Indexed,
    inputs: str | int = 0,
    target: str | int = 1,
    *,
    image_size: tuple[int, int] | None = None,
    grayscale: bool | None = None,
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return all inputs, float32, and targets of a data set, for any engine.

    Args:
        inputs: where an item has its input: a column (``"image"``) or a place in a tuple. Pictures
            of Pillow's get values in 0..1 and the shape [channels, height, width]; all else must
            be numbers.
        target: where it has its target: a class number, or a number.
        image_size: width and height to which pictures are scaled.
        grayscale: whether pictures have one channel; None: as the first one is.

    Raises:
        ConfigError: an item has no such place, or its input is neither a picture nor numbers, or
            has another shape than the first.
    """
    found, targets = [], []
    form: PictureForm | None = None
    for number in range(len(dataset)):
        item = dataset[number]
        try:
            value, label = item[inputs], item[target]
        except (KeyError, IndexError, TypeError) as error:
            there = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise ConfigError(f"item {number} has no {error}; it has: {there}") from error
        if hasattr(value, "convert") and hasattr(value, "mode"):
            if form is None:
                grey = value.mode.startswith(_GREY) if grayscale is None else grayscale
                form = PictureForm(image_size=image_size, grayscale=grey)
            found.append(_picture(value, number, form))
        else:
            found.append(_numbers(value, number))
        if found[-1].shape != found[0].shape:
            raise ConfigError(
                f"item {number} has an input of shape {found[-1].shape}, the first one "
                f"{found[0].shape}; image_size scales pictures to one"
            )
        targets.append(np.asarray(label))
    if not found:
        raise ConfigError("the data set has no items")
    return np.stack(found), np.stack(targets)


def _picture(value: Any, number: int, form: PictureForm) -> NDArray[np.float32]:
    try:
        return pixels_of(value, f"item {number}", form)
    except BadSample as error:
        raise ConfigError(str(error)) from error


def _numbers(value: Any, number: int) -> NDArray[np.float32]:
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the input of item {number} is neither a picture nor numbers: {error}"
        ) from error
