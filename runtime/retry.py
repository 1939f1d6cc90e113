"""Retries and the pauses between them: only named errors, bounded, with jitter. Built on tenacity.

``instant()`` makes the retries of :func:`retrying` immediate for tests.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tenacity

from runtime.errors import RengoError

_instant: ContextVar[bool] = ContextVar("rengo_instant_retries", default=False)
_MOST_DOUBLINGS = 64
# the pauses of many devices must differ, also where a task has seeded the global generator
_RANDOM = random.SystemRandom()


@contextmanager
def instant() -> Iterator[None]:
    """Within the block, retries do not wait (tests)."""
    token = _instant.set(True)
    try:
        yield
    finally:
        _instant.reset(token)


def retrying(
    errors: tuple[type[RengoError], ...],
    *,
    attempts: int = 5,
    total_s: float = 60.0,
    first_s: float = 0.2,
    longest_s: float = 5.0,
) -> tenacity.Retrying:
    """Return a policy to call as ``policy(function, *args)`` or to iterate over.

    The last error is raised as it was, never wrapped.
    """
    jitter = tenacity.wait_random_exponential(multiplier=first_s, max=longest_s)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(errors),
        stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_after_delay(total_s),
        wait=lambda state: 0.0 if _instant.get() else jitter(state),
        reraise=True,
    )


def retrying_until(
    stopped: threading.Event,
    errors: tuple[type[Exception], ...],
    on_wait: Callable[[BaseException], None],
    *,
    first_s: float = 0.1,
    longest_s: float = 5.0,
) -> tenacity.Retrying:
    """Return a policy that goes on until the work is done or ``stopped`` is set.

    Setting the event ends a pause at once, and the last error is raised. Threads may share one
    policy: what it keeps of a call is each thread's own.

    Args:
        on_wait: called with the error before each pause, to log what is waited for.
    """

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        if error is not None:
            on_wait(error)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(errors),
        stop=tenacity.stop_when_event_set(stopped),
        wait=tenacity.wait_random_exponential(multiplier=first_s, max=longest_s),
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=before_sleep,
        reraise=True,
    )


class Backoff:
    """The pauses of a loop that has its own waiting: each ``factor`` times the last, to a bound.

    Args:
        first_s: the first pause.
        longest_s: the bound.
        factor: how fast the pauses grow.
        least: a pause is drawn from this part of its full length to the whole: 0 is full jitter,
            1 is none.
    """

    def __init__(
        self, first_s: float, longest_s: float, *, factor: float = 2.0, least: float = 0.0
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._factor = factor
        self._least = least
        self.attempts = 0

    def next_s(self) -> float:
        """Return the next pause in seconds and count the attempt."""
        full_s = min(self._longest_s, self._first_s * self._factor**self.attempts)
        self.attempts = min(self.attempts + 1, _MOST_DOUBLINGS)
        return full_s * _RANDOM.uniform(self._least, 1.0)

    def reset(self) -> None:
        """Begin with the first pause again: an attempt has succeeded."""
        self.attempts = 0
