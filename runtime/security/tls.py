"""TLS towards a peer: whom to trust, one clear line for every failure, and a pinned first contact.

The peer's certificate and host name are always verified. Only the first look of
:func:`fetch_authority` takes what comes, and believes nothing but a certificate whose hash it was
given.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.errors import (
    AuthenticationFailed,
    ConfigError,
    TransportError,
    UntrustedPeer,
)

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# OpenSSL's X509_V_ERR_*
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = frozenset({2, 7, 18, 19, 20, 21, 24, 27})
_WRONG_NAME = frozenset({62, 64})
# what OpenSSL of any version says when the other side does not speak TLS
_PLAINTEXT = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"}
    | {"PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "NO_PROTOCOLS_AVAILABLE"}
)


@dataclass(frozen=True)
class Tls:
    """Whom to trust, and what to show when the peer asks who comes.

    Args:
        ca: certificates in PEM text that sign the peer's; None trusts the system's authorities.
        certificate: a PEM file with one's own certificate, for mutual TLS.
        key: the PEM file of its key, without a passphrase.

    Raises:
        ConfigError: one of ``certificate`` and ``key`` without the other.
    """

    ca: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            there, missing = ("key", "certificate") if self.key else ("certificate", "key")
            raise ConfigError(f"tls: a {there} without its {missing}: name both files, or neither")

    @classmethod
    def trusting(cls, ca: Path | None) -> Tls:
        """Return what trusts the authorities of a PEM file, None for the system's.

        Raises:
            ConfigError: the file cannot be read.
        """
        return cls(None if ca is None else read_pem(ca))

    def context(self) -> ssl.SSLContext:
        """Return a new client context: TLS 1.2 or newer, certificate and host name verified.

        The files are read anew, so that a renewed certificate serves the next connection.

        Raises:
            ConfigError: naming what cannot be used and why.
        """
        try:
            # an empty text must not stand for the system's authorities
            context = ssl.create_default_context(cadata="\n" if self.ca == "" else self.ca)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                "tls: the CA is not a certificate in PEM text "
                "(-----BEGIN CERTIFICATE----- and what follows)"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca is not None:
            # what was pinned is the anchor, a root or not: Python 3.13's default on every version
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if self.certificate is not None and self.key is not None:
            _show(context, self.certificate, self.key)
        return context


def read_pem(path: Path) -> str:
    """Return the text of a PEM file; ConfigError when it cannot be read."""
    try:
        return path.read_text("ascii")
    except OSError as error:
        raise ConfigError(f"tls: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"tls: {path} is not in PEM form") from error


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        read_pem(path)

    def no_passphrase() -> str:
        raise ConfigError(f"tls: the key {key} has a passphrase: give one without")

    try:
        context.load_cert_chain(certificate, key, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls: the key {key} is not that of {certificate}") from error
        raise ConfigError(
            f"tls: {certificate} and {key} are not a certificate and its key in PEM form "
            f"({error.reason or error})"
        ) from error
    except OSError as error:
        raise ConfigError(f"tls: {certificate} or {key}: {error.strerror}") from error


def tls_error(error: BaseException, host: str) -> TransportError | None:
    """Return the error to raise for a failure of TLS with ``host``; None when it is no such one.

    Its class says what to do: :class:`UntrustedPeer` and :class:`AuthenticationFailed` need a
    person; a plain TransportError may pass, as a certificate that is out of its time does when the
    clock is set.
    """
    match error:
        case ssl.SSLCertVerificationError():
            return _refused_by_us(error, host)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return TransportError(
                f"{host} closed the connection within TLS; if it always does, "
                "this is not its TLS port"
            )
        case ssl.SSLError():
            return _failed(error, host)
        case _:
            return None


def tls_problem(error: BaseException, host: str) -> str | None:
    """Return what :func:`tls_error` says, for a person; None when TLS is not what failed."""
    found = tls_error(error, host)
    return None if found is None else str(found)


def _refused_by_us(error: ssl.SSLCertVerificationError, host: str) -> TransportError:
    code, said = error.verify_code, error.verify_message.rstrip(".")
    if code in {_NOT_YET_VALID, _EXPIRED}:
        now = datetime.now(UTC)
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        return TransportError(
            f"the certificate of {host} {what} by this machine's clock, which says "
            f"{now:%Y-%m-%d %H:%M} UTC: set the clock if that is wrong, else renew the certificate"
        )
    if code in _WRONG_NAME:
        return UntrustedPeer(
            f"the certificate of {host} is for another name ({said}): "
            "use a name that it has, or issue it for this one"
        )
    if code in _UNKNOWN_AUTHORITY:
        return UntrustedPeer(
            f"the certificate of {host} comes from no authority that is trusted here ({said}): "
            "either this is another server, or its CA certificate must be given"
        )
    return UntrustedPeer(f"the certificate of {host} cannot be accepted: {said}")


def _failed(error: ssl.SSLError, host: str) -> TransportError:
    reason: str = getattr(error, "reason", None) or ""
    if reason in _PLAINTEXT:
        return TransportError(f"{host} does not speak TLS on this port")
    if "ALERT" not in reason:
        return TransportError(f"TLS with {host} failed: {reason or error}")
    said = reason.partition("ALERT_")[2].replace("_", " ").lower()
    # what a peer answers to a client without a certificate, before TLS 1.3 and since
    if "CERTIFICATE" in reason or said in {"unknown ca", "handshake failure", "access denied"}:
        return AuthenticationFailed(
            f"{host} takes no client without a certificate that it trusts (it said: {said}): "
            "give this client a certificate and its key"
        )
    return TransportError(f"{host} ended TLS: {said}")


def fetch_authority(host: str, port: int, fingerprint: str, timeout_s: float = 10.0) -> str:
    """Return the certificate with this hash out of the chain that the server shows, as PEM text.

    Nothing is believed of the first look but the certificate that was asked for. It then has to
    verify the server's chain and name on a second connection.

    Args:
        host: the server's name or address, which its certificate must be for.
        port: where it speaks TLS from the first byte.
        fingerprint: the sha256 of the certificate in DER, 64 hexadecimal digits.
        timeout_s: for each of the two connections.

    Raises:
        ConfigError: the fingerprint is none.
        UntrustedPeer: this is not the server that the fingerprint was made for.
        TransportError: it cannot be reached, or speaks no TLS.
    """
    wanted = fingerprint.lower().replace(":", "")
    if _FINGERPRINT.fullmatch(wanted) is None:
        raise ConfigError("a certificate's fingerprint is 64 hexadecimal digits (sha256)")
    place = f"{host}:{port}"
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with _handshake(host, port, anyone, timeout_s) as connection:
        shown = _chain(connection)
        names = _names(connection)
    hashes = [hashlib.sha256(each).hexdigest() for each in shown]
    found = [
        each
        for each, digest in zip(shown, hashes, strict=True)
        if hmac.compare_digest(digest, wanted)
    ]
    if not found:
        seen = ", ".join(f"{digest[:16]}…" for digest in hashes) or "nothing"
        raise UntrustedPeer(
            f"the server at {place} is not the one this token was made for "
            f"(it shows {seen}; the token names {wanted[:16]}…)"
        )
    authority = ssl.DER_cert_to_PEM_cert(found[0])
    try:
        with _handshake(host, port, Tls(authority).context(), timeout_s):
            return authority
    except UntrustedPeer as error:
        known = f"; it is for {', '.join(names)}" if names else ""
        raise UntrustedPeer(f"{error}{known}") from error


@contextlib.contextmanager
def _handshake(
    host: str, port: int, context: ssl.SSLContext, timeout_s: float
) -> Iterator[ssl.SSLSocket]:
    place = f"{host}:{port}"
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            yield connection
    except (OSError, ValueError) as error:
        found = tls_error(error, place)
        if found is None:
            detail = getattr(error, "strerror", None) or error
            found = TransportError(f"{place} cannot be reached: {detail}")
        raise found from error


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates that the peer showed, in DER."""
    inner: Any = connection
    if hasattr(inner, "get_unverified_chain"):  # public from Python 3.13 on
        return list(inner.get_unverified_chain())
    chain = inner._sslobj.get_unverified_chain() or ()
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]


def _names(connection: ssl.SSLSocket) -> list[str]:
    """Return what the peer's certificate is for, as far as this Python tells; for messages only."""
    inner: Any = connection
    try:
        chain = inner._sslobj.get_unverified_chain() or ()
        info: dict[str, Any] = chain[0].get_info() if chain else {}
    except (AttributeError, ssl.SSLError):
        return []
    return [str(value)[:128] for _, value in info.get("subjectAltName", ())][:8]
