"""A limit on the bytes of an upload in parts that are sent but unanswered: what a cut may cost.

A store answers when it has stored a part. To use the link meanwhile, the next part begins when the
last byte of this one was sent, and it pauses while too many bytes are unanswered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from runtime.errors import Unavailable

MAX_UNANSWERED_BYTES = 16_000_000
Paced: TypeAlias = Callable[[Iterable[memoryview]], Iterator[memoryview]]


class InFlightLimit:
    """Sends the bodies of parts one after another, with a limit on the unanswered bytes.

    A part that is larger than the limit is sent alone. Any thread may call it.

    Args:
        most_bytes: of all unanswered parts together.
    """

    def __init__(self, most_bytes: int = MAX_UNANSWERED_BYTES) -> None:
        self._most = most_bytes
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._unanswered = 0
        self._aborted = False

    def abort(self) -> None:
        """End every body that is being sent, at its next block."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    @contextmanager
    def part(self) -> Iterator[Paced]:
        """Wait until a body may be sent; yields what paces its blocks, and ends with the answer."""
        sent = 0
        self._turn.acquire()
        has_turn = True

        def paced(blocks: Iterable[memoryview]) -> Iterator[memoryview]:
            nonlocal sent, has_turn
            for block in blocks:
                self._reserve(len(block), sent)
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

    def _reserve(self, size: int, own: int) -> None:
        """Wait until ``size`` more bytes may be sent, after ``own`` bytes of this part."""

        def may_send() -> bool:
            fits = self._unanswered + size <= self._most
            return self._aborted or fits or self._unanswered == own

        with self._changed:
            self._changed.wait_for(may_send)
            if self._aborted:
                raise Unavailable("the upload was aborted")
            self._unanswered += size
