"""The bounds that messages, disks and answers share."""

from __future__ import annotations

import datetime
import math
from typing import Any

import msgpack
import pytest

from runtime.bounds import (
    MAX_EXAMPLES,
    MAX_FINITE,
    MAX_INTEGER,
    MAX_SETTINGS_NESTING,
    MAX_TOTAL,
    is_plausible,
    plausible,
    require_plain,
    total,
)

DEVICES = 100_000


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def test_a_sum_over_all_examples_of_all_devices_is_finite() -> None:
    assert math.isfinite(MAX_FINITE * MAX_EXAMPLES * DEVICES)
    assert MAX_FINITE > 3.4028235e38, "what an engine computes in float32 may be told"


def test_sums_stay_within_what_may_be_told() -> None:
    assert total([MAX_TOTAL, 1]) == total([MAX_TOTAL] * DEVICES) == MAX_TOTAL
    assert total([2, 3]) == 5


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        *((each, True) for each in (0.0, -0.0, 5e-324, MAX_FINITE, -MAX_FINITE, 1)),
        *((each, False) for each in (math.nan, math.inf, -math.inf, 1e308, -1e300)),
        (math.nextafter(MAX_FINITE, math.inf), False),
    ],
)
def test_a_metric_is_plausible_within_its_bounds(value: float, allowed: bool) -> None:
    assert is_plausible(value) is allowed
    assert plausible({"it": value, "loss": 0.5}) == ({"it": value} if allowed else {}) | {
        "loss": 0.5
    }


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, MAX_INTEGER, -MAX_INTEGER, 1e308, 5e-324, "Küche", ""),
        {"a": [1, {"b": None}]},
        {"a": nested(MAX_SETTINGS_NESTING - 1)},
    ],
)
def test_plain_settings_pass_and_any_message_can_hold_them(value: Any) -> None:
    require_plain(value)
    assert msgpack.unpackb(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": b"x"}, "a is a bytes"),
        ({"a": {"b": [1, b"x"]}}, r"a\.b\.1 is a bytes"),
        ({"a": datetime.date(2026, 1, 1)}, "a is a date"),
        ({"a": {1}}, "a is a set"),
        ({"a": (1, 2)}, "a is a tuple"),
        ({"a": math.nan}, "a must be a finite number"),
        ({"a": -math.inf}, "a must be a finite number"),
        ({"a": MAX_INTEGER + 1}, "a must be within 64 bits"),
        ({"a": 10**5000}, "a must be within 64 bits"),
        ({"a": "\ud800"}, "a is no valid Unicode"),
        ({"a": {"\ud800": 1}}, "a has a key that is no text"),
        ({1: 2}, "it has a key that is no text"),
        ({"a": nested(MAX_SETTINGS_NESTING)}, "nested deeper than 8"),
    ],
)
def test_what_is_no_plain_setting_is_named(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_plain(value)
