"""Retries: named errors only, bounded, and immediate in tests."""

from __future__ import annotations

import time

import pytest

from runtime.errors import Corrupt, NotFound, StorageError, Unavailable
from runtime.retry import instant, retry, retrying


class Failing:
    """Fails so often, then answers."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times = times
        self.error = error
        self.calls = 0

    def __call__(self, answer: str = "done") -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return answer


def test_it_tries_again_until_it_works() -> None:
    work = Failing(3, Unavailable("busy"))
    with instant():
        assert retrying((Unavailable,), attempts=5)(work, "answer") == "answer"
    assert work.calls == 4


def test_the_last_error_is_raised_as_it_was() -> None:
    error = Unavailable("busy")
    work = Failing(99, error)
    with instant(), pytest.raises(Unavailable) as caught:
        retrying((Unavailable,), attempts=3)(work)
    assert caught.value is error
    assert work.calls == 3


@pytest.mark.parametrize("error", [NotFound("x"), Corrupt("x"), ValueError("x"), OSError("x")])
def test_what_is_not_named_is_raised_at_once(error: Exception) -> None:
    work = Failing(1, error)
    with instant(), pytest.raises(type(error)):
        retrying((Unavailable,), attempts=5)(work)
    assert work.calls == 1


def test_a_named_error_stands_for_its_children() -> None:
    work = Failing(1, NotFound("x"))
    with instant():
        assert retrying((StorageError,), attempts=2)(work) == "done"


def test_the_total_time_bounds_it() -> None:
    work = Failing(99, Unavailable("busy"))
    began = time.monotonic()
    with pytest.raises(Unavailable):
        retrying((Unavailable,), attempts=1000, total_s=0.2, first_s=0.05, longest_s=0.05)(work)
    assert 2 < work.calls < 1000
    assert time.monotonic() - began < 5


def test_instant_ends_with_its_block() -> None:
    def waits() -> float:
        work = Failing(3, Unavailable("busy"))
        began = time.monotonic()
        # full jitter may draw near nothing once, hardly three times
        retrying((Unavailable,), attempts=4, first_s=2.0, longest_s=0.5)(work)
        return time.monotonic() - began

    with instant():
        assert waits() < 0.05
    assert waits() > 0.05


def test_a_decorated_function_keeps_its_arguments() -> None:
    calls: list[int] = []

    @retry((Unavailable,), attempts=3)
    def work(number: int, *, double: bool = False) -> int:
        calls.append(number)
        if len(calls) < 3:
            raise Unavailable("busy")
        return 2 * number if double else number

    with instant():
        assert work(4, double=True) == 8
    assert calls == [4, 4, 4]
