"""Certificates for tests, each authority in a folder of its own."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from rengo.site.certificates import Authority, Validity
from runtime.security.tls import Tls

PAST = Validity(datetime(1980, 1, 1, tzinfo=UTC), datetime(1981, 1, 1, tzinfo=UTC))
FUTURE = Validity(datetime(9990, 1, 1, tzinfo=UTC), datetime(9991, 1, 1, tzinfo=UTC))
LOOPBACK = ("127.0.0.1", "localhost")


def trust(authority: Authority) -> Tls:
    return Tls(authority.certificate_pem)


def issued_then(authority: Authority, validity: Validity, name: str = "then") -> tuple[Path, Path]:
    """Return a listener's pair of the same authority, valid at another time."""
    return Authority(authority.folder, validity).issue_server(LOOPBACK, name)


def listener(pair: tuple[Path, Path], client_ca: str | None = None) -> ssl.SSLContext:
    """Return what a server of Python's own shows; with ``client_ca`` it asks for certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def own_pair(authority: Authority, folder: Path, name: str = "dev-a") -> tuple[Path, Path]:
    """Return the files of a client's certificate and key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    for path, text in zip((certificate, key), authority.issue_client(name), strict=True):
        path.write_text(text)
        path.chmod(0o600)
    return certificate, key


def shake_hands(
    client: ssl.SSLContext, server: ssl.SSLContext, host: str, *, then_read: bool = True
) -> ssl.SSLError | None:
    """Return why the client's handshake in memory failed; None when it stands.

    With ``then_read`` the client reads once more, which since TLS 1.3 brings a refusal.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    done = False
    for _ in range(8):
        try:
            if not done:
                ours.do_handshake()
                done = True
            elif then_read:
                ours.read(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            return error
        try:
            theirs.do_handshake()
        except ssl.SSLError:
            continue
    assert done
    return None
