"""Retries: only named errors, bounded by attempts and by time, with full jitter.

The form is stamina's, over tenacity. ``instant()`` makes every retry immediate for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import tenacity

from runtime.errors import RengoError

P = ParamSpec("P")
T = TypeVar("T")

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


def retry(
    errors: tuple[type[RengoError], ...], *, attempts: int = 5, total_s: float = 60.0
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function with :func:`retrying`."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return retrying(errors, attempts=attempts, total_s=total_s)(function, *args, **kwargs)

        return call

    return decorate
