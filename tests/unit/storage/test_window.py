"""What is on its way of an upload in parts: one body at a time, so many bytes unanswered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Unavailable
from storage.transfer.in_flight import MAX_UNANSWERED_BYTES, InFlightLimit

BLOCK = memoryview(bytes(1))
SOON_S = 5.0


class Store:
    """Counts what comes and answers a part when it is told to."""

    def __init__(self, window: InFlightLimit, senders: int = 2) -> None:
        self.window = window
        self.pool = ThreadPoolExecutor(senders)
        self.changed = threading.Condition()
        self.came: dict[int, int] = {}
        self.answers: dict[int, threading.Event] = {}
        self.failing: set[int] = set()

    def send(self, number: int, size: int) -> Future[None]:
        self.answers[number] = threading.Event()
        return self.pool.submit(self._send, number, size)

    def _send(self, number: int, size: int) -> None:
        with self.window.part() as paced:
            for _ in paced(BLOCK for _ in range(size)):
                with self.changed:
                    self.came[number] = self.came.get(number, 0) + 1
                    self.changed.notify_all()
                if number in self.failing:
                    raise Unavailable("cut")
            assert self.answers[number].wait(SOON_S)

    def wait_for(self, **came: int) -> None:
        wanted = {int(name.removeprefix("part")): count for name, count in came.items()}
        with self.changed:
            assert self.changed.wait_for(lambda: self.came == wanted, SOON_S), self.came


@pytest.fixture
def store() -> Iterator[Store]:
    found = Store(InFlightLimit(10))
    yield found
    found.window.abort()
    for answer in found.answers.values():
        answer.set()
    found.pool.shutdown()


def test_the_next_part_fills_the_window_while_an_answer_is_awaited(store: Store) -> None:
    first, second = store.send(1, 7), store.send(2, 7)
    store.wait_for(part1=7, part2=3)
    store.answers[1].set()
    first.result(SOON_S)
    store.wait_for(part1=7, part2=7)
    store.answers[2].set()
    second.result(SOON_S)


def test_a_part_larger_than_the_window_goes_alone(store: Store) -> None:
    first = store.send(1, 25)
    store.wait_for(part1=25)
    second = store.send(2, 1)
    store.answers[1].set()
    first.result(SOON_S)
    store.wait_for(part1=25, part2=1)
    store.answers[2].set()
    second.result(SOON_S)


def test_a_part_that_fails_gives_back_what_it_took(store: Store) -> None:
    store.failing.add(1)
    with pytest.raises(Unavailable, match="cut"):
        store.send(1, 7).result(SOON_S)
    store.failing.clear()
    second = store.send(2, 10)
    store.wait_for(part1=1, part2=10)
    store.answers[2].set()
    second.result(SOON_S)


def test_whoever_leaves_waits_for_no_answer(store: Store) -> None:
    store.send(1, 7)
    second = store.send(2, 7)
    store.wait_for(part1=7, part2=3)
    store.window.abort()
    with pytest.raises(Unavailable, match="aborted"):
        second.result(SOON_S)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 4),
)
def test_every_part_goes_and_what_is_unanswered_stays_below(
    sizes: list[int], most: int, senders: int
) -> None:
    window, lock = InFlightLimit(most), threading.Lock()
    state = {"unanswered": 0, "worst": 0, "bodies": 0}

    def send(size: int) -> int:
        with window.part() as paced:
            sent = 0
            for _ in paced(BLOCK for _ in range(size)):
                with lock:
                    state["unanswered"] += 1
                    alone = state["unanswered"] == sent + 1
                    if not alone:
                        state["worst"] = max(state["worst"], state["unanswered"])
                sent += 1
            with lock:
                state["unanswered"] -= sent
            return sent

    with ThreadPoolExecutor(senders) as pool:
        assert list(pool.map(send, sizes, timeout=SOON_S)) == sizes
    assert state["worst"] <= most


def test_a_cut_costs_at_most_16_mb() -> None:
    assert MAX_UNANSWERED_BYTES <= 16_000_000
