"""Feature shift: the same images, seen differently by each device. Pure.

Source: of the turned images A. Ghosh et al., "An Efficient Framework for Clustered Federated
Learning", NeurIPS 2020, section 6, https://arxiv.org/abs/2006.04088.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigError

Images = NDArray[np.float32]
"""Values in 0..1, [n, channels, height, width]."""


def shifted(images: Images, shift: str, index: int, seed: int) -> Images:
    """Return new images as the device with this ``index`` sees them, with values in 0..1.

    ``turned``: by 0, 90, 180 or 270 degrees, by turns. ``inverted``: every second device has
    negatives. ``tinted``: each channel has a contrast and a brightness of the device's own.
    ``domains``: by turns as they are, turned by 90 degrees, inverted, tinted.

    Raises:
        ConfigError: images that are not square cannot be turned.
    """
    return _SHIFTS[shift](images, index, seed)


def shifted_evenly(images: Images, shift: str, count: int, seed: int) -> Images:
    """Return images of which each of ``count`` devices has its share: for who measures them all."""
    seen = np.empty_like(images)
    for index in range(min(count, len(images))):
        seen[index::count] = shifted(images[index::count], shift, index, seed)
    return seen


def _turned(images: Images, index: int, seed: int) -> Images:
    del seed
    if images.shape[2] != images.shape[3]:
        raise ConfigError(
            f"shift turned: images of {images.shape[2]} x {images.shape[3]} are not square"
        )
    return np.rot90(images, index % 4, axes=(2, 3)).copy()


def _inverted(images: Images, index: int, seed: int) -> Images:
    del seed
    return 1 - images if index % 2 else images.copy()


def _tinted(images: Images, index: int, seed: int) -> Images:
    random = np.random.default_rng([seed, index])
    contrast = random.uniform(0.3, 1.0, (images.shape[1], 1, 1))
    brightness = random.uniform(0, 1, contrast.shape) * (1 - contrast)
    return (contrast * images + brightness).astype(np.float32)


def _domains(images: Images, index: int, seed: int) -> Images:
    match index % 4:
        case 1:
            return _turned(images, 1, seed)
        case 2:
            return _inverted(images, 1, seed)
        case 3:
            return _tinted(images, index, seed)
    return images.copy()


_SHIFTS: dict[str, Callable[[Images, int, int], Images]] = {
    "turned": _turned,
    "inverted": _inverted,
    "tinted": _tinted,
    "domains": _domains,
}
