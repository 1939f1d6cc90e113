"""The site's own authority: made once, private, exact, and clear when it is damaged."""

from __future__ import annotations

import hashlib
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from rengo.site.certificates import Authority, check_certificate
from runtime.errors import ConfigError
from tests.certificates import FUTURE, LOOPBACK, PAST, issued_then, own_pair
from tests.support import require


@pytest.fixture
def site(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "site")


def openssl(*argv: str) -> str:
    done = subprocess.run(
        [str(require("openssl")), *argv], capture_output=True, text=True, check=True
    )
    return done.stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_once_and_is_private(site: Authority) -> None:
    again = Authority(site.folder)
    assert again.fingerprint == site.fingerprint
    assert again.certificate_pem == site.certificate_pem == site.certificate_path.read_text()
    assert (
        site.fingerprint
        == hashlib.sha256(ssl.PEM_cert_to_DER_cert(site.certificate_pem)).hexdigest()
    )
    assert mode(site.folder) == 0o700
    assert mode(site.folder / "authority.pem") == 0o600
    assert "PRIVATE" not in site.certificate_pem


def test_two_authorities_differ_in_everything(site: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    ours, theirs = (
        x509.load_pem_x509_certificate(a.certificate_pem.encode()) for a in (site, other)
    )
    assert site.fingerprint != other.fingerprint
    assert ours.subject != theirs.subject
    assert ours.serial_number != theirs.serial_number


def test_what_it_issues_never_runs_out(site: Authority, tmp_path: Path) -> None:
    pair = site.issue_server(LOOPBACK)
    for path in (site.certificate_path, pair[0], own_pair(site, tmp_path)[0]):
        said = openssl("x509", "-noout", "-dates", "-in", str(path))
        assert "notBefore=Jan  1 00:00:00 1970 GMT" in said
        assert "notAfter=Dec 31 23:59:59 9999 GMT" in said


def test_openssl_verifies_strictly_at_any_time(site: Authority, tmp_path: Path) -> None:
    server = site.issue_server([*LOOPBACK, "broker.example"])[0]
    client = own_pair(site, tmp_path)[0]
    ca = str(site.certificate_path)
    for at in ("1", "1735689600", "32503680000"):
        for purpose, leaf in (("sslserver", server), ("sslclient", client)):
            argv = ["verify", "-x509_strict", "-attime", at, "-purpose", purpose, "-CAfile", ca]
            assert "OK" in openssl(*argv, str(leaf))
    openssl("verify", "-verify_hostname", "broker.example", "-CAfile", ca, str(server))
    openssl("verify", "-verify_ip", "127.0.0.1", "-CAfile", ca, str(server))
    for purpose, leaf in (("sslserver", client), ("sslclient", server)):
        with pytest.raises(subprocess.CalledProcessError):
            openssl("verify", "-purpose", purpose, "-CAfile", ca, str(leaf))


def test_a_listener_shows_leaf_and_authority(site: Authority) -> None:
    certificate, key = site.issue_server(LOOPBACK)
    leaf, authority = x509.load_pem_x509_certificates(certificate.read_bytes())
    assert leaf.issuer == authority.subject
    assert authority.fingerprint(leaf.signature_hash_algorithm).hex() == site.fingerprint  # type: ignore[arg-type]
    assert mode(key) == 0o600
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == list(LOOPBACK)


def test_a_listeners_certificate_stays_until_its_names_change(site: Authority) -> None:
    pair = site.issue_server(["a.example", "10.0.0.1"])
    before = [path.read_bytes() for path in pair]
    assert Authority(site.folder).issue_server(["10.0.0.1", "A.example", "a.example"]) == pair
    assert [path.read_bytes() for path in pair] == before
    site.issue_server(["a.example"])
    assert [path.read_bytes() for path in pair] != before
    other = site.issue_server(["a.example"], "store")
    assert other != pair


@pytest.mark.parametrize("what", ["crt", "key", "swapped", "open", "another authority"])
def test_a_listeners_pair_that_does_not_serve_is_made_again(
    site: Authority, tmp_path: Path, what: str
) -> None:
    certificate, key = site.issue_server(LOOPBACK)
    if what in {"crt", "key"}:
        (site.folder / f"server.{what}").write_text("damaged")
    elif what == "swapped":
        key.write_bytes(site.issue_server(LOOPBACK, "other")[1].read_bytes())
    elif what == "open":
        key.chmod(0o644)
    else:
        other = Authority(tmp_path / "other").issue_server(LOOPBACK)
        certificate.write_bytes(other[0].read_bytes())
        key.write_bytes(other[1].read_bytes())
        key.chmod(0o600)
    assert site.issue_server(LOOPBACK) == (certificate, key)
    check_certificate(certificate, key)
    assert "OK" in openssl("verify", "-CAfile", str(site.certificate_path), str(certificate))


@pytest.mark.parametrize(
    "names", [[], [""], ["a b"], ["a..b"], ["http://a"], ["ä.example"], ["a:1"]]
)
def test_names_that_no_certificate_can_have_are_refused(site: Authority, names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"at least one name|neither a DNS name nor"):
        site.issue_server(names)


def test_a_clients_certificate_carries_its_name(site: Authority) -> None:
    text, key = site.issue_client("dev-a")
    certificate = x509.load_pem_x509_certificate(text.encode())
    assert [a.value for a in certificate.subject] == ["dev-a"]
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert key != site.issue_client("dev-a")[1]
    for name in ("", "x" * 65):
        with pytest.raises(ConfigError, match="1 to 64 characters"):
            site.issue_client(name)


def test_a_damaged_authority_says_how_to_mend_it(site: Authority, tmp_path: Path) -> None:
    path, whole = site.folder / "authority.pem", (site.folder / "authority.pem").read_text()
    other = Authority(tmp_path / "other")
    half = whole.partition("-----BEGIN CERTIFICATE-----")
    for text in ("", "damaged", whole[:200], half[0], half[0] + other.certificate_pem):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"authority\.pem.*restore the folder from a backup"):
            Authority(site.folder)
    path.unlink()
    with pytest.raises(ConfigError, match=r"authority\.pem is missing.*restore the folder"):
        Authority(site.folder)
    path.write_text(whole)
    site.certificate_path.unlink()
    assert Authority(site.folder).fingerprint == site.fingerprint
    assert mode(path) == 0o600
    assert site.certificate_path.read_text() == site.certificate_pem


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Authority(tmp_path / "file" / "site")


def test_an_operators_certificate_is_checked(site: Authority, tmp_path: Path) -> None:
    certificate, key = site.issue_server(LOOPBACK)
    check_certificate(certificate, key)
    for validity, words in (
        (PAST, "expired on 1981-01-01.*renew"),
        (FUTURE, "only from 9990-01-01"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_certificate(*issued_then(site, validity, words[:7].replace(" ", "-")))
    with pytest.raises(ConfigError, match="is not that of the certificate"):
        check_certificate(certificate, own_pair(site, tmp_path)[1])
    with pytest.raises(ConfigError, match=r"key .*none cannot be read: No such file"):
        check_certificate(certificate, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"certificate .*none cannot be read: No such file"):
        check_certificate(tmp_path / "none", key)
    with pytest.raises(ConfigError, match="not in PEM form"):
        check_certificate(key, key)
    key.chmod(0o640)
    check_certificate(certificate, key)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"open to every user.*chmod 600"):
        check_certificate(certificate, key)
    locked = tmp_path / "locked.key"
    openssl("ec", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(locked))
    with pytest.raises(ConfigError, match="has a passphrase"):
        check_certificate(certificate, locked)
