"""When to connect again, and which failures to report: the rules of a session, without I/O."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from broker.session.endpoint import ClientIdInUse, Unanswered
from runtime.backoff import Backoff
from runtime.errors import AuthenticationFailed, UntrustedPeer

_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 30.0
# a broker that reloads its users has them after this
_RELOAD_S: Final = 0.25
# a connection that lived longer is no sign of a second process with the same client id
_STABLE_S: Final = 10.0
_SHORT_LIVES: Final = 3
# added while the client id is in use elsewhere or the password is refused: neither ends quickly
_REPORTED_DELAY_S: Final = 10.0


class NextAttempt(Enum):
    """How to go on after a failed attempt to connect."""

    OTHER_PASSWORD = auto()
    SAME_AGAIN = auto()
    REPORT = auto()
    """Try again, and report the failure to those who wait for the connection."""


class ReconnectPolicy:
    """Decides for one session; its thread alone calls it."""

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
        self._short_lives = 0
        self._others_tried = 0
        self._tried_again = False
        self._reported: type[Exception] | None = None

    @property
    def first_attempt(self) -> bool:
        """Whether no attempt has failed since the last connection that lasted."""
        return self._backoff.attempts == 0

    def connected(self) -> None:
        """Note that the broker accepted."""
        self._others_tried, self._tried_again = 0, False

    def connection_ended(
        self, lived_s: float, error: Exception | None, *, lost: bool
    ) -> ClientIdInUse | None:
        """Note the end of a connection that the broker had accepted.

        Args:
            lived_s: how long it stood.
            error: the reason that the broker gave.
            lost: whether the broker or the network ended it.

        Returns:
            What to report, if anything.
        """
        if lived_s >= _STABLE_S:
            self._backoff.reset()
            self._short_lives = 0
            self._reported = None
        elif lost:
            self._short_lives += 1
        if isinstance(error, ClientIdInUse):
            return error
        if self._short_lives < _SHORT_LIVES:
            return None
        return ClientIdInUse(
            f"connections of client id {self._client_id!r} end soon after they stand, and the "
            "broker accepts the next one at once: most likely another process uses the same "
            "identity; stop one of them"
        )

    def attempt_failed(self, error: Exception, *, other_passwords: int) -> NextAttempt:
        """Return how to continue; ``other_passwords`` is how many more the endpoint has."""
        refused = isinstance(error, AuthenticationFailed)
        other_password = refused and other_passwords > 0
        unreachable = not refused and not isinstance(error, Unanswered)
        if other_password or unreachable:
            # then the broker ended those connections itself
            self._short_lives = 0
        if refused and self._others_tried < other_passwords:
            # the broker may have been told another password meanwhile
            self._others_tried += 1
            return NextAttempt.OTHER_PASSWORD
        self._others_tried = 0
        if refused and not self._tried_again and not isinstance(error, UntrustedPeer):
            # a broker refuses everybody in the moment in which it reloads its users
            self._tried_again = True
            return NextAttempt.SAME_AGAIN
        return NextAttempt.REPORT

    def is_new(self, error: Exception) -> bool:
        """Whether to report the error: once for a series of the same kind."""
        if self._reported is type(error):
            return False
        self._reported = type(error)
        return True

    def next_delay_s(self) -> float:
        """Return how long to wait before the next attempt: exponential with full jitter."""
        delay_s = self._backoff.next_s()
        if self._tried_again:
            delay_s += _RELOAD_S
        if self._reported is not None:
            delay_s += _REPORTED_DELAY_S
        return delay_s
