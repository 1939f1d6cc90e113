"""Retries: named errors only, bounded, and immediate in tests."""

from __future__ import annotations

import threading
import time

import pytest

from runtime.backoff import Backoff
from runtime.errors import Corrupt, NotFound, StorageError, Unavailable
from runtime.retry import instant, retrying, retrying_until


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


def test_until_stopped_goes_on_for_as_long_as_it_takes() -> None:
    work, waits = Failing(5, Unavailable("busy")), []
    policy = retrying_until(threading.Event(), (Unavailable,), waits.append, first_s=0.001)
    assert policy(work) == "done"
    assert [str(error) for error in waits] == ["busy"] * 5


def test_the_event_ends_a_pause_and_raises_what_was_waited_for() -> None:
    stopped = threading.Event()
    policy = retrying_until(
        stopped, (Unavailable,), lambda _: stopped.set(), first_s=1e6, longest_s=1e6
    )
    with pytest.raises(Unavailable, match="busy"):
        policy(Failing(99, Unavailable("busy")))


def test_until_stopped_raises_at_once_what_is_not_named() -> None:
    work = Failing(1, NotFound("gone"))
    with pytest.raises(NotFound):
        retrying_until(threading.Event(), (Unavailable,), print)(work)
    assert work.calls == 1


def test_pauses_grow_to_their_bound_and_begin_anew() -> None:
    backoff = Backoff(1.0, 10.0, least=1.0)
    assert [backoff.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next_s() == 1
    assert [Backoff(5.0, 600.0, factor=3.0, least=1.0).next_s() for _ in range(2)] == [5, 5]


def test_jitter_draws_from_the_least_part_to_the_whole() -> None:
    for least in (0.0, 0.5):
        backoff = Backoff(8.0, 8.0, least=least)
        drawn = [backoff.next_s() for _ in range(300)]
        assert least * 8 <= min(drawn) < least * 8 + 1
        assert 7 < max(drawn) <= 8


def test_pauses_stay_finite_for_ever() -> None:
    backoff = Backoff(1.0, 30.0, factor=10.0, least=1.0)
    assert {backoff.next_s() for _ in range(1000)} == {1.0, 10.0, 30.0}
