"""How much of an upload in parts is on its way: the most that a cut costs, and no pause for it.

A store answers a part only when it lies there. So that the link does not rest meanwhile, the next
part begins when the last byte of this one has gone, and pauses where too much is unanswered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from runtime.errors import Unavailable

MOST_AT_RISK_BYTES = 16_000_000
Paced: TypeAlias = Callable[[Iterable[memoryview]], Iterator[memoryview]]


class InFlightLimit:
    """Lets the bodies of parts go one after another, with so many bytes unanswered.

    A part that is larger than the window goes alone. Safe for use by many threads.

    Args:
        most_bytes: of all parts whose answers are awaited, together.
    """

    def __init__(self, most_bytes: int = MOST_AT_RISK_BYTES) -> None:
        self._most = most_bytes
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._unanswered = 0
        self._left = False

    def leave(self) -> None:
        """End what is on its way at its next block."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    @contextmanager
    def part(self) -> Iterator[Paced]:
        """Wait until a body may go; the block gets what paces it, and ends with the answer."""
        sent = 0
        self._turn.acquire()
        has_turn = True

        def paced(blocks: Iterable[memoryview]) -> Iterator[memoryview]:
            nonlocal sent, has_turn
            for block in blocks:
                self._take(len(block), sent)
                sent += len(block)
                yield block
            self._turn.release()
            has_turn = False

        try:
            yield paced
        finally:
            if has_turn:
                self._turn.release()
            with self._changed:
                self._unanswered -= sent
                self._changed.notify_all()

    def _take(self, size: int, own: int) -> None:
        """Wait until so many more bytes may go, beside ``own`` of this part."""

        def may_go() -> bool:
            fits = self._unanswered + size <= self._most
            return self._left or fits or self._unanswered == own

        with self._changed:
            self._changed.wait_for(may_go)
            if self._left:
                raise Unavailable("the upload was left")
            self._unanswered += size
