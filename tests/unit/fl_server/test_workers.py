"""The data plane's threads: whoever waits for a piece of work is told how it ended."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest

from fl_server.dataplane.workers import Done, JobCrashed, TaskDone, Workers
from runtime.errors import NotFound, RengoError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotFound("no such object"), "no such object"),
        (ZeroDivisionError("by zero"), "internal error: ZeroDivisionError: by zero"),
    ],
)
@pytest.mark.parametrize("in_order", [False, True])
def test_whoever_waits_is_told_of_any_error(error: Exception, told: str, in_order: bool) -> None:
    posted: queue.SimpleQueue[Done] = queue.SimpleQueue()
    workers = Workers(posted.put, lambda: True)
    failures: list[RengoError] = []
    workers.start_task(_raising(error), _unwanted, failures.append, in_order=in_order)
    try:
        done = posted.get(timeout=10)
        if isinstance(done, JobCrashed):
            assert done.error is error
            done = posted.get(timeout=10)
        assert isinstance(done, TaskDone)
        done.then()
    finally:
        workers.stop()
    assert [str(each) for each in failures] == [told]


def _raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def _unwanted(_: object) -> None:
    raise AssertionError("it did not end well")
