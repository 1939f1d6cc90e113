"""Retries: only named errors, bounded, with jitter. Built on tenacity.

``instant()`` makes the retries of :func:`retrying` immediate for tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tenacity

from runtime.errors import RengoError

_instant: ContextVar[bool] = ContextVar("rengo_instant_retries", default=False)


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
