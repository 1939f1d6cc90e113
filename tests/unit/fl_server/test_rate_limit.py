"""The throttle: bursts pass, floods do not, and one name's flood is no other's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_server.members.rate_limit import RateLimit


def test_a_burst_passes_then_the_rate_holds() -> None:
    throttle = RateLimit(per_s=10.0, burst=5)
    assert sum(throttle.admits("a", 0.0) for _ in range(100)) == 5
    assert throttle.admits("b", 0.0), "another name is not touched"
    assert not throttle.admits("a", 0.05)
    assert throttle.admits("a", 0.16)
    assert sum(throttle.admits("a", 100.0) for _ in range(100)) == 5, (
        "no more than a burst is saved"
    )


def test_names_are_bounded_and_the_longest_unheard_goes() -> None:
    throttle = RateLimit(per_s=1.0, burst=1, names=2)
    assert throttle.admits("a", 0.0)
    assert throttle.admits("b", 0.0)
    assert not throttle.admits("a", 0.0)
    assert throttle.admits("c", 0.0)
    assert not throttle.admits("a", 0.0)
    assert throttle.admits("b", 0.0), "it was forgotten for c"


@given(st.lists(st.floats(0, 1), max_size=200), st.floats(0.1, 100), st.integers(1, 20))
def test_never_more_than_the_burst_and_the_rate(
    gaps: list[float], per_s: float, burst: int
) -> None:
    throttle, now, passed = RateLimit(per_s, burst), 0.0, 0
    for gap in gaps:
        now += gap
        passed += throttle.admits("a", now)
    assert passed <= burst + now * per_s + 1e-6


def test_what_weighs_more_takes_more() -> None:
    throttle = RateLimit(per_s=10.0, burst=100)
    assert sum(throttle.admits("a", 0.0, weight=30.0) for _ in range(10)) == 3
    assert throttle.admits("a", 0.0, weight=10.0), "what is left serves what fits"
    assert not throttle.admits("a", 0.0)
    assert not throttle.admits("b", 0.0, weight=101.0), "more than a burst is never heard"
