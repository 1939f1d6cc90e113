"""The site's own certificate authority, and checks of certificates that the operator provides.

What it issues is valid from 1970 to 9999, RFC 5280's "no well-defined expiration": a device without
a clock chip must connect whatever its clock says. Issuing new ones ends trust, not a date.
"""

from __future__ import annotations

import ipaddress
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ConfigError, MissingExtra
from runtime.files import atomic_write, make_folder

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise MissingExtra("cryptography", "server") from error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import (
        PrivateKeyTypes,
        PublicKeyTypes,
    )

_MAX_NAME_CHARS = 64
_UNREADABLE = (OSError, ValueError, TypeError, UnsupportedAlgorithm)
_MEND = (
    "restore the folder from a backup, or remove it to make a new authority, "
    "which every device then has to be enrolled with again"
)


@dataclass(frozen=True)
class Validity:
    """From when to when a certificate holds, in UTC."""

    start: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    end: datetime = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


FOR_EVER = Validity()


class Authority:
    """A private CA (ECDSA P-256) in a folder of its own (mode 0700), made at its first use.

    ``authority.pem`` holds its key and its certificate in one file (mode 0600), so that there is
    never one without the other; ``authority.crt`` is the certificate alone, for others to read.

    Args:
        folder: nothing else is kept there.
        validity: of what it makes from now on, itself included; tests make expired ones.

    Raises:
        ConfigError: its files are damaged or incomplete; says how to mend it.
        MissingExtra: the library ``cryptography`` is not installed (on import).
    """

    def __init__(self, folder: Path, validity: Validity = FOR_EVER) -> None:
        self.folder = folder
        self._validity = validity
        make_folder(folder).chmod(0o700)
        self._key, self._certificate = self._read() if self._exists() else self._make()
        _write_unless_same(self.certificate_path, self.certificate_pem)

    @property
    def certificate_path(self) -> Path:
        """The file with the CA's certificate alone."""
        return self.folder / "authority.crt"

    @property
    def certificate_pem(self) -> str:
        """The CA's certificate, which those who connect are to trust."""
        return _pem(self._certificate)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the CA's certificate in DER, 64 hexadecimal digits."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def issue_server(self, names: Sequence[str], stem: str = "server") -> tuple[Path, Path]:
        """Return the files of a certificate for a listener, and of its key (mode 0600).

        The first holds the leaf and then the CA's certificate, so that whoever connects is shown
        the CA. Both stay as they are until ``names`` change.

        Args:
            names: DNS names and IP addresses under which the listener is reached.
            stem: of the two files' names.

        Raises:
            ConfigError: no name, or one that no certificate can be for.
        """
        subjects = _subjects(names)
        certificate, key = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        if not self._serves(certificate, key, subjects):
            leaf, leaf_key = self._issue(
                "rengo server",
                ExtendedKeyUsageOID.SERVER_AUTH,
                x509.SubjectAlternativeName(subjects),
            )
            # a crash in between leaves a pair that does not match, which is made again
            atomic_write(key, _key_pem(leaf_key).encode())
            atomic_write(certificate, (_pem(leaf) + self.certificate_pem).encode(), 0o644)
        return certificate, key

    def issue_client(self, name: str) -> tuple[str, str]:
        """Return a new certificate with the common name ``name`` and its key, both as PEM text.

        Raises:
            ConfigError: the name is empty or longer than 64 characters.
        """
        if not 0 < len(name) <= _MAX_NAME_CHARS:
            raise ConfigError(f"a certificate's name has 1 to 64 characters, not {len(name)}")
        leaf, key = self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, None)
        return _pem(leaf), _key_pem(key)

    @property
    def _path(self) -> Path:
        return self.folder / "authority.pem"

    def _exists(self) -> bool:
        if self._path.is_file():
            return True
        if self.certificate_path.exists():
            # a new authority here would be unknown to every device
            raise ConfigError(f"{self._path} is missing beside {self.certificate_path}: {_MEND}")
        return False

    def _read(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        try:
            data = self._path.read_bytes()
            key = serialization.load_pem_private_key(data, None)
            certificate = x509.load_pem_x509_certificate(data)
        except _UNREADABLE as error:
            raise ConfigError(f"{self._path} cannot be read: {_MEND}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not _fits(certificate, key):
            raise ConfigError(f"{self._path}: its key is not its certificate's: {_MEND}")
        self._path.chmod(0o600)
        return key, certificate

    def _make(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # a unique name, so that the authorities of two sites cannot be confused
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"rengo site {serial:x}"[:32])])
        public = key.public_key()
        certificate = (
            self._builder(name, name, public)
            .serial_number(serial)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        atomic_write(self._path, (_key_pem(key) + _pem(certificate)).encode())
        return key, certificate

    def _issue(
        self, name: str, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = self._key.public_key()
        builder = (
            self._builder(subject, self._certificate.subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
            )
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()), key

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .not_valid_before(self._validity.start)
            .not_valid_after(self._validity.end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    def _serves(self, path: Path, key_path: Path, subjects: Sequence[x509.GeneralName]) -> bool:
        """Whether the files are a pair of this authority for these names."""
        try:
            leaf, *rest = x509.load_pem_x509_certificates(path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            leaf.verify_directly_issued_by(self._certificate)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (*_UNREADABLE, InvalidSignature, x509.ExtensionNotFound):
            return False
        return (
            rest == [self._certificate]
            and _fits(leaf, key)
            and set(names) == set(subjects)
            and stat.S_IMODE(key_path.stat().st_mode) == 0o600
        )


def check_certificate(certificate: Path, key: Path) -> None:
    """Return when an operator's own certificate and key can serve a listener now.

    Raises:
        ConfigError: a file cannot be read, the key is another's or open to every user of this
            machine, or the certificate is out of its time; says how to mend it.
    """
    try:
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"certificate {certificate} cannot be read: {_reason(error)}") from error
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        mode = key.stat().st_mode
    except _UNREADABLE as error:
        raise ConfigError(f"key {key} cannot be read: {_reason(error)}") from error
    if not _fits(leaf, private):
        raise ConfigError(
            f"the key {key} is not that of the certificate {certificate} (its first one counts)"
        )
    if mode & stat.S_IRWXO:
        raise ConfigError(
            f"the key {key} is open to every user of this machine: "
            f"chmod 600 {shlex.quote(str(key))}"
        )
    _check_time(leaf, certificate)


def read_authority(path: Path) -> tuple[str, str]:
    """Return an authority's certificate as PEM text, and its sha256 in hex.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"authority {path} cannot be read: {_reason(error)}") from error
    return _pem(certificate), certificate.fingerprint(hashes.SHA256()).hex()


def _check_time(leaf: x509.Certificate, path: Path) -> None:
    now = datetime.now(UTC)
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now > leaf.not_valid_after_utc:
        raise ConfigError(
            f"the certificate {path} expired on {leaf.not_valid_after_utc:%Y-%m-%d}; {clock}: "
            "renew it"
        )
    if now < leaf.not_valid_before_utc:
        raise ConfigError(
            f"the certificate {path} is valid only from {leaf.not_valid_before_utc:%Y-%m-%d}; "
            f"{clock}: set the clock if it is wrong"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, TypeError):
        return "it has a passphrase; give one without"
    return "it is not in PEM form"


def _subjects(names: Sequence[str]) -> list[x509.GeneralName]:
    if not names:
        raise ConfigError("a server's certificate needs at least one name or address")
    found: dict[x509.GeneralName, None] = {}
    for name in names:
        found[_subject(name)] = None
    return list(found)


def _subject(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass  # not an address, so a name
    labels = name.split(".")
    usable = all(label and len(label) <= 63 and label.isascii() for label in labels)
    if not usable or len(name) > 253 or any(char in name for char in " /:@"):
        raise ConfigError(f"{name!r} is neither a DNS name nor an IP address")
    return x509.DNSName(name.lower())


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _fits(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    return _spki(certificate.public_key()) == _spki(key.public_key())


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _write_unless_same(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text("ascii", errors="replace") != text:
        atomic_write(path, text.encode(), 0o644)
