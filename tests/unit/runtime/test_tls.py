"""Whom TLS trusts, and that every failure is one clear line. Handshakes are in memory."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rengo.site.certificates import Authority, Validity
from runtime.errors import AuthenticationFailed, ConfigError, TransportError, UntrustedPeer
from runtime.security.tls import Tls, fetch_authority, tls_error, tls_problem
from tests.certificates import (
    FUTURE,
    LOOPBACK,
    PAST,
    issued_then,
    listener,
    own_pair,
    shake_hands,
    trust,
)
from tests.support import require

HOST = "127.0.0.1"


@pytest.fixture
def site(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "site")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


def failure(client: Tls, server: ssl.SSLContext, host: str = HOST) -> TransportError:
    error = shake_hands(client.context(), server, host)
    assert error is not None, "the handshake stands"
    found = tls_error(error, f"the broker at {host}:8883")
    assert found is not None
    assert "\n" not in str(found)
    assert str(found) == tls_problem(error, f"the broker at {host}:8883")
    assert "the broker at" in str(found)
    return found


@pytest.mark.parametrize("host", [*LOOPBACK, "::1", "broker.example"])
def test_a_pinned_authority_is_trusted_for_every_name_it_issued(site: Authority, host: str) -> None:
    pair = site.issue_server([*LOOPBACK, "::1", "broker.example"])
    assert shake_hands(trust(site).context(), listener(pair), host) is None


def test_every_context_verifies_and_speaks_no_old_version(site: Authority) -> None:
    for tls in (Tls(), trust(site)):
        context = tls.context()
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(Tls(site.certificate_pem).context().get_ca_certs()) == 1
    assert Tls().context() is not Tls().context()


def test_strict_verification_accepts_the_sites_certificates(
    site: Authority, tmp_path: Path
) -> None:
    """As Python 3.13 verifies by default."""
    server = listener(site.issue_server(LOOPBACK), site.certificate_pem)
    client = Tls(site.certificate_pem, *own_pair(site, tmp_path)).context()
    for context in (client, server):
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    assert shake_hands(client, server, HOST) is None


def test_an_unknown_authority_is_told(site: Authority, stranger: Authority) -> None:
    server = listener(stranger.issue_server(LOOPBACK))
    for client in (trust(site), Tls()):
        found = failure(client, server)
        assert isinstance(found, UntrustedPeer)
        assert "comes from no authority that is trusted here" in str(found)


def test_a_leaf_that_claims_our_authoritys_name_is_not_believed(
    site: Authority, stranger: Authority
) -> None:
    leaf, key = stranger.issue_server(LOOPBACK)
    # the stranger shows our authority beside its own leaf
    leaf.write_text(leaf.read_text().partition("-----END CERTIFICATE-----\n")[0])
    leaf.write_text(leaf.read_text() + "-----END CERTIFICATE-----\n" + site.certificate_pem)
    assert isinstance(failure(trust(site), listener((leaf, key))), UntrustedPeer)


def test_a_wrong_name_is_told(site: Authority) -> None:
    server = listener(site.issue_server(["broker.example", "10.0.0.7"]))
    for host in ("other.example", "10.0.0.8"):
        found = failure(trust(site), server, host)
        assert isinstance(found, UntrustedPeer)
        assert "is for another name" in str(found)
        assert host in str(found)


@pytest.mark.parametrize(
    ("validity", "text"), [(PAST, "has expired"), (FUTURE, "is not valid yet")]
)
def test_a_certificate_out_of_its_time_is_told_with_this_machines_clock(
    site: Authority, validity: Validity, text: str
) -> None:
    found = failure(trust(site), listener(issued_then(site, validity)))
    assert text in str(found)
    assert f"clock, which says {datetime.now(UTC):%Y}" in str(found)
    # the clock may be set meanwhile: worth trying again
    assert not isinstance(found, AuthenticationFailed)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_a_certificate_is_told(
    site: Authority, stranger: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    server = listener(site.issue_server(LOOPBACK), site.certificate_pem)
    server.minimum_version = server.maximum_version = version
    for shown in ((), own_pair(stranger, tmp_path)):
        found = failure(Tls(site.certificate_pem, *shown), server)
        assert type(found) is AuthenticationFailed
        assert "takes no client without a certificate that it trusts" in str(found)
    ours = Tls(site.certificate_pem, *own_pair(site, tmp_path, "dev-b"))
    assert shake_hands(ours.context(), server, HOST) is None


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {}\r\n", b"\x20\x02"])
def test_a_peer_without_tls_is_told(site: Authority, said: bytes) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = trust(site).context().wrap_bio(incoming, outgoing, server_hostname=HOST)
    incoming.write(said)
    incoming.write_eof()
    with pytest.raises(ssl.SSLError) as caught:
        ours.do_handshake()
    found = tls_problem(caught.value, "the broker at h:1883")
    assert found is not None
    assert "does not speak TLS on this port" in found or "not its TLS port" in found


def test_what_is_no_tls_failure_is_left_to_others() -> None:
    assert tls_error(ConnectionRefusedError(111, "refused"), HOST) is None
    assert tls_error(ValueError("x"), HOST) is None
    assert tls_problem(TimeoutError("timed out"), HOST) is None
    assert "TLS with h failed" in (tls_problem(ssl.SSLError(1, "odd"), "h") or "")


def test_material_that_cannot_be_used_is_named(site: Authority, tmp_path: Path) -> None:
    certificate, key = own_pair(site, tmp_path, "one")
    _, other = own_pair(site, tmp_path, "two")
    text = tmp_path / "text"
    text.write_text("not a certificate")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\x00")
    for ca in ("", "hello", certificate.read_text()[:200]):
        with pytest.raises(ConfigError, match="CA is not a certificate in PEM"):
            Tls(ca).context()
    with pytest.raises(ConfigError, match="certificate without its key"):
        Tls(certificate=certificate)
    with pytest.raises(ConfigError, match="key without its certificate"):
        Tls(key=key)
    cases = [
        (certificate, other, "is not that of"),
        (certificate, tmp_path / "none", "none cannot be read: No such file"),
        (tmp_path, key, "cannot be read: Is a directory"),
        (text, key, "not a certificate and its key"),
        (certificate, binary, "binary is not in PEM form"),
    ]
    for shown, of, words in cases:
        with pytest.raises(ConfigError, match=words):
            Tls(None, shown, of).context()


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(
    site: Authority, tmp_path: Path
) -> None:
    certificate, key = own_pair(site, tmp_path)
    locked = tmp_path / "locked.key"
    subprocess.run(
        [
            str(require("openssl")),
            "ec",
            "-aes256",
            "-passout",
            "pass:x",
            "-in",
            str(key),
            "-out",
            str(locked),
        ],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="has a passphrase"):
        Tls(None, certificate, locked).context()


def test_a_file_of_authorities_is_read(site: Authority, tmp_path: Path) -> None:
    assert Tls.trusting(site.certificate_path) == trust(site)
    assert Tls.trusting(None) == Tls()
    with pytest.raises(ConfigError, match="none cannot be read"):
        Tls.trusting(tmp_path / "none")


def test_a_fingerprint_is_checked_before_anybody_is_asked() -> None:
    for text in ("", "ab", "g" * 64, "a" * 63):
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            fetch_authority("nowhere.invalid", 1, text)
