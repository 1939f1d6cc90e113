"""Feature shift: what each device sees of the same images."""

from __future__ import annotations

import numpy as np
import pytest

from fl_client.datasets.splits.scheme import SHIFTS
from fl_client.datasets.splits.shifts import shifted, shifted_evenly
from runtime.errors import ConfigError

IMAGES = np.random.default_rng(0).random((9, 3, 6, 6)).astype(np.float32)
CORNER = np.zeros((1, 1, 2, 2), np.float32)
CORNER[0, 0, 0, 1] = 1


def test_devices_turn_by_a_quarter_each() -> None:
    places = [np.argwhere(shifted(CORNER, "turned", index, 0)[0, 0])[0] for index in range(5)]
    # the bright corner goes round against the clock and is back with the fifth device
    assert [place.tolist() for place in places] == [[0, 1], [0, 0], [1, 0], [1, 1], [0, 1]]


def test_every_second_device_has_negatives() -> None:
    assert np.array_equal(shifted(IMAGES, "inverted", 0, 0), IMAGES)
    assert np.array_equal(shifted(IMAGES, "inverted", 3, 0), 1 - IMAGES)


def test_a_tint_is_a_straight_line_for_each_channel() -> None:
    seen = shifted(IMAGES, "tinted", 2, 7)
    for channel in range(3):
        x, y = IMAGES[:, channel].ravel(), seen[:, channel].ravel()
        slope, start = np.polyfit(x, y, 1)
        np.testing.assert_allclose(y, slope * x + start, atol=1e-6)
        assert 0.3 <= slope <= 1
    other = shifted(IMAGES, "tinted", 3, 7)
    assert not np.allclose(seen, other)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_a_pure_function_within_the_range(shift: str) -> None:
    before = IMAGES.tobytes()
    for index in range(6):
        one, two = (shifted(IMAGES, shift, index, 3) for _ in range(2))
        assert one.tobytes() == two.tobytes()
        assert one.shape == IMAGES.shape
        assert one.dtype == np.float32
        assert one.min() >= 0
        assert one.max() <= 1
        one[:] = 5
    assert IMAGES.tobytes() == before


def test_the_domains_are_four() -> None:
    seen = [shifted(IMAGES, "domains", index, 0) for index in range(5)]
    assert len({each.tobytes() for each in seen[:4]}) == 4
    assert np.array_equal(seen[0], IMAGES)
    assert np.array_equal(seen[4], IMAGES)
    assert np.array_equal(seen[1], np.rot90(IMAGES, 1, axes=(2, 3)))
    assert np.array_equal(seen[2], 1 - IMAGES)


@pytest.mark.parametrize("count", [1, 4, 20])
def test_an_evaluator_sees_each_device_s_share(count: int) -> None:
    seen = shifted_evenly(IMAGES, "turned", count, 0)
    for number, image in enumerate(seen):
        expected = shifted(IMAGES[number : number + 1], "turned", number % count, 0)
        assert np.array_equal(image, expected[0])


def test_only_squares_are_turned() -> None:
    with pytest.raises(ConfigError, match="6 x 5 are not square"):
        shifted(IMAGES[:, :, :, :5], "turned", 1, 0)
