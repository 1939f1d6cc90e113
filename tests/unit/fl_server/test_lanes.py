"""Lanes of work: in order each, beside one another, and none left after the end."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from fl_server.dataplane.lanes import Lanes

_LONG_S = 10.0


def test_a_lane_keeps_its_order_and_waits_for_no_other() -> None:
    lanes, gate, done = Lanes(), threading.Event(), []
    blocked = lanes.submit("a", lambda: gate.wait(_LONG_S))
    behind = lanes.submit("a", lambda: done.append("a"))
    for number in range(50):
        last = lanes.submit("b", lambda number=number: done.append(number))  # type: ignore[misc]
    last.result(_LONG_S)
    assert done == list(range(50))
    assert not blocked.done()
    gate.set()
    behind.result(_LONG_S)
    assert done[-1] == "a"
    lanes.shutdown()


def test_an_error_is_the_future_s_and_the_lane_goes_on() -> None:
    lanes = Lanes()
    failed: Future[float] = lanes.submit("a", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(_LONG_S)
    assert lanes.submit("a", lambda: 3).result(_LONG_S) == 3
    lanes.shutdown()


def test_the_end_drops_what_has_not_begun_and_leaves_no_thread() -> None:
    lanes, gate, begun = Lanes(), threading.Event(), threading.Event()
    before = threading.active_count()

    def work() -> str:
        begun.set()
        gate.wait(_LONG_S)
        return "done"

    running, dropped = lanes.submit("a", work), lanes.submit("a", lambda: "never")
    assert begun.wait(_LONG_S)
    threading.Timer(0.05, gate.set).start()
    lanes.shutdown()
    assert running.result(0) == "done"
    assert dropped.cancelled()
    assert lanes.submit("a", lambda: "never").cancelled()
    assert threading.active_count() <= before + 1
