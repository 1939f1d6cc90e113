"""Two processes with one identity are found; restarts of the device or of the broker are none."""

from __future__ import annotations

import itertools

import pytest

from broker.wire.messages import DeviceState
from fl_server.members.twins import ProcessHistory

NUMBERS = itertools.count()


def connection(process: str) -> DeviceState:
    """Return the presence of a new connection of a process."""
    return DeviceState(status="ready", boot_id=f"{process}-{next(NUMBERS)}", tasks=["digits"])


def told(*processes: str) -> list[bool]:
    history = ProcessHistory()
    return [history.shows_two(connection(each)) for each in processes]


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ("aaaaa", [False] * 5),  # a broker that restarts: the process connects again
        ("abcde", [False] * 5),  # a device that restarts
        ("aabbc", [False] * 5),
        ("aba", [False, False, True]),
        ("abab", [False, False, True, True]),
        ("abca", [False, False, False, True]),  # one of the two started again in between
        ("abaa", [False, False, True, False]),
    ],
)
def test_a_process_that_is_back_after_another_one_lives_beside_it(
    processes: str, expected: list[bool]
) -> None:
    assert told(*processes) == expected


def test_a_message_that_comes_again_shows_nothing() -> None:
    history, first = ProcessHistory(), connection("a")
    assert [history.shows_two(each) for each in (first, connection("b"), first)] == [False] * 3


def test_devices_of_an_earlier_release_do_not_say_which_process_they_are() -> None:
    history = ProcessHistory()
    old = [DeviceState(status="ready", boot_id=boot, tasks=[]) for boot in ("a1", "b1", "a2")]
    assert [history.shows_two(each) for each in old] == [False] * 3


def test_twins_are_found_after_any_number_of_connections() -> None:
    assert told(*"a" * 100, "b", "a")[-1]
