"""The time by which requests to a store are signed: the store's, where the two clocks differ.

A store refuses what was signed more than 15 minutes away from its time. It tells its time in every
answer, also in a refusal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from storage.store.settings import StoreSettings

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from mypy_boto3_s3 import S3Client

_LOG = logging.getLogger(__name__)
_CLOSE_S = 60.0
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
_SIGNED = ("Authorization", "X-Amz-Date", "X-Amz-Content-SHA256", "X-Amz-Security-Token")


class StoreClock:
    """This machine's clock, corrected by what the store says. Thread-safe.

    A jump of this machine's clock is bridged by the monotonic clock until the store has refused a
    date; what is slower than a jump, as NTP's corrections are, is followed.

    Args:
        wall: this machine's clock, as Unix time.
        monotonic: a clock that does not jump.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset_s = 0.0
        self._above_monotonic_s = wall() - monotonic()

    def now_s(self) -> float:
        """Return the time, as Unix time."""
        with self._lock:
            return self._now_s()

    def stamp(self) -> str:
        """Return the time as Signature Version 4 writes it."""
        return time.strftime(_TIMESTAMP, time.gmtime(self.now_s()))

    def learn(self, date: str) -> bool:
        """Take over the store's time where the two differ; return whether they did.

        Args:
            date: the ``Date`` header of a refusal.
        """
        try:
            theirs_s = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return False
        with self._lock:
            off_s = theirs_s - self._now_s()
            if abs(off_s) < _CLOSE_S:
                return False
            self._offset_s += off_s
            self._above_monotonic_s += off_s
            _LOG.warning(
                "this machine's clock is %.0f s %s that of the store, which refuses such dates: "
                "requests are signed by the store's time; set the clocks, for example: "
                "sudo timedatectl set-ntp true",
                abs(self._offset_s),
                "behind" if self._offset_s > 0 else "ahead of",
            )
        return True

    def _now_s(self) -> float:
        now_s = self._wall() + self._offset_s
        jump_s = now_s - self._monotonic() - self._above_monotonic_s
        if abs(jump_s) < _CLOSE_S:
            self._above_monotonic_s += jump_s
            return now_s
        self._offset_s -= jump_s
        _LOG.warning(
            "this machine's clock has jumped by %+.0f s: requests to the store are signed by the "
            "time before",
            jump_s,
        )
        return now_s - jump_s


def sign_by(clock: StoreClock, client: S3Client, settings: StoreSettings) -> None:
    """Have boto3's client sign by the clock, and ask again where the store refused a date."""
    from botocore.auth import S3SigV4Auth  # noqa: PLC0415  (boto3 is the server's alone)
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415

    class _HeaderAuth(S3SigV4Auth):
        def _modify_request_before_signing(self, request: AWSRequest) -> None:
            request.context["timestamp"] = clock.stamp()
            super()._modify_request_before_signing(request)  # type: ignore[misc]  # not in the stubs

    auth = _HeaderAuth(credentials_of(settings), "s3", settings.region)

    def sign_again(request: Any, **_: object) -> None:
        signed = request.headers.get("X-Amz-Date", b"")
        if signed in {clock.stamp(), clock.stamp().encode()}:
            return
        again = AWSRequest(method=request.method, url=request.url, data=request.body)
        for name, value in request.headers.items():
            if name not in _SIGNED:
                again.headers[name] = value.decode() if isinstance(value, bytes) else value
        auth.add_auth(again)
        for name in _SIGNED:
            if name in again.headers:
                request.headers[name] = again.headers[name]

    def is_refused_date(response: Any, **_: object) -> float | None:
        if response is None or response[0].status_code not in {401, 403}:
            return None
        return 0.0 if clock.learn(response[0].headers.get("Date", "")) else None

    client.meta.events.register("before-send.s3", sign_again)
    client.meta.events.register("needs-retry.s3", is_refused_date)  # type: ignore[arg-type]


def credentials_of(settings: StoreSettings) -> Any:
    """Return the keys as botocore has them."""
    from botocore.credentials import Credentials  # noqa: PLC0415

    token = settings.session_token
    return Credentials(
        settings.access_key,
        settings.secret.get_secret_value(),
        None if token is None else token.get_secret_value(),
    )
