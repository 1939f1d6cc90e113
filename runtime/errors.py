"""What can go wrong, told apart by what the caller should do about it."""

from __future__ import annotations

from collections.abc import Sequence


class RengoError(Exception):
    """The root of every error that Rengo raises on purpose; its text is fit for a person."""


class ConfigError(RengoError):
    """Bad usage or configuration: mend the named input and start again (exit code 2)."""


class MissingExtra(ConfigError):
    """An optional dependency is not installed.

    Args:
        package: the import that failed, for example ``torch``.
        extra: the extra of the distribution that brings it, for example ``torch``.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'rengo[{extra}]'"
        )
        self.package = package
        self.extra = extra


class Mismatch(ConfigError):
    """Weights do not fit a model.

    Args:
        summary: what does not fit what.
        lines: each difference.
    """

    def __init__(self, summary: str, lines: Sequence[str]) -> None:
        super().__init__("\n  ".join([f"{summary}:", *lines]))
        self.lines = tuple(lines)


class RunNotCompleted(RengoError):
    """The run ended without the asked-for model (exit code 3)."""


class TransportError(RengoError):
    """The broker cannot be reached or the connection was lost: retry later (exit code 4)."""


class AuthenticationFailed(TransportError):
    """The broker refused the credentials: retrying does not help."""


class UntrustedPeer(AuthenticationFailed):
    """The peer's certificate is not one to trust: retrying does not help, a person must look."""


class StorageError(RengoError):
    """The object store did not do what was asked."""


class Unavailable(StorageError):
    """The store cannot be reached or is overloaded: retry later (exit code 4)."""


class NotFound(StorageError):
    """No such object."""


class AccessDenied(StorageError):
    """The credentials or the presigned URL were refused: renew them.

    Args:
        store_date: the time by the store's clock, as it gives it; "" where unknown.
    """

    def __init__(self, text: str, store_date: str = "") -> None:
        super().__init__(text)
        self.store_date = store_date


class PreconditionFailed(StorageError):
    """The object is not in the state that the request named."""


class Corrupt(StorageError):
    """Bytes that are not what their hash, size or format says: never use them."""


class Damaged(Corrupt):
    """The store has an object that it cannot give, while it serves others: no waiting mends it."""


class PeerError(RengoError):
    """The peer sent something it must not send: drop it, count it, perhaps bar the peer.

    Args:
        reason: one of a few fixed words to count by; never text of the peer's own.
    """

    def __init__(self, text: str, reason: str = "malformed") -> None:
        super().__init__(text)
        self.reason = reason


class InvalidTransition(RengoError):
    """Our own bug: a state machine was driven where it cannot go."""
