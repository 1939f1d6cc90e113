"""A certificate by which the parts of one server know each other, and nobody else."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from pathlib import Path

from runtime.errors import MissingExtra
from runtime.files import atomic_write

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
except ImportError as error:
    raise MissingExtra("cryptography", "server") from error

# it ends with its server, not by a date, which a clock might not know
_START, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def make_certificate(certificate: Path, key: Path, address: str) -> None:
    """Write a new certificate for an IP address, which is its own authority, and its key (0600).

    Whoever trusts it alone speaks with nobody but holders of that key.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rengo store")])
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_START)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(addresses, critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    atomic_write(key, private.private_bytes(pem, form, serialization.NoEncryption()))
    atomic_write(certificate, made.public_bytes(pem))
