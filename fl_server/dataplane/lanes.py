"""Lanes: work that is done one after the other, each lane beside the others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
_Item: TypeAlias = tuple["Future[Any]", Callable[[], Any]]


class Lanes:
    """A thread for each lane that has work. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Item]] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def submit(self, lane: str, work: Callable[[], T]) -> Future[T]:
        """Do ``work`` after all that was given to its lane before."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.cancel()
                return future
            queue = self._waiting.get(lane)
            if queue is not None:
                queue.append((future, work))
                return future
            self._waiting[lane] = deque([(future, work)])
            thread = threading.Thread(target=self._run, args=(lane,), name=f"lane {lane}")
            self._threads.add(thread)
            thread.start()
        return future

    def shutdown(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        with self._lock:
            self._closed = True
            dropped = [future for queue in self._waiting.values() for future, _ in queue]
            for queue in self._waiting.values():
                queue.clear()
            threads = list(self._threads)
        for future in dropped:
            future.cancel()
        for thread in threads:
            thread.join()

    def _run(self, lane: str) -> None:
        while True:
            with self._lock:
                queue = self._waiting[lane]
                if not queue:
                    del self._waiting[lane]
                    self._threads.discard(threading.current_thread())
                    return
                future, work = queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 (raised again by the future's result)
                future.set_exception(error)
            else:
                future.set_result(result)
